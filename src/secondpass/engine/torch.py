"""The torch engine: every family, packed batches, CPU and GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from secondpass.checkpoint.adapter import change_of, check_words
from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.checkpoint.weights import load_weights
from secondpass.engine.batches import Budget, budget_of, computed, filled, in_batches
from secondpass.engine.cpu.linear_int8 import put_kernels
from secondpass.engine.cpu.parallel import Streams, threads_in_words
from secondpass.engine.cpu.threads import this_processor
from secondpass.engine.cuda.copies import Arrival
from secondpass.engine.cuda.graphs import open_graphs
from secondpass.engine.device import pick_device, pick_precision
from secondpass.engine.early_exit import EarlyExits
from secondpass.engine.engine import TURN_TOKENS, EngineFacts, Turns
from secondpass.engine.prefix import SharedRows, share
from secondpass.errors import EngineError
from secondpass.models.attention import pick_kernel, use_kernel
from secondpass.models.cross_encoder import CrossEncoderModel
from secondpass.packed import pack, plan
from secondpass.types import Advance, Row, Run

KeysValues = tuple[torch.Tensor, torch.Tensor]  # of one block


class TorchEngine:
    """A cross-encoder on torch.

    cuda_graphs: small batches are replayed from recorded passes on a GPU. Not yet measured on one, therefore off.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self._device = pick_device(device)
        precision = pick_precision(dtype, self._device)
        self._dtype, self._precision, reason = precision.dtype, precision.name, precision.reason
        self.model = _load(checkpoint, self._dtype).to(self._device).eval()
        if precision.is_int8 and self.model.is_decoder:
            raise ValueError("dtype is 'int8', which runs encoders only; give 'auto' for a decoder")
        config = self.model.backbone.config
        if self._device.type == "cpu":
            reason += ", " + put_kernels(self.model, is_int8=precision.is_int8) + ", " + threads_in_words()
        self._budget = Budget(token_budget) if token_budget else budget_of(self._device, config, self._dtype)
        self._in_batches = Streams(config.width).in_batches if self._device.type == "cpu" else in_batches
        kernel = pick_kernel(self._device, self._dtype, config.head_width, has_amx=this_processor().has_amx)
        self._reason, self._max_length = f"{reason}, {use_kernel(self.model, kernel)}", int(config.max_length)
        self._graphs = open_graphs(self.model, kernel, self._device, self._budget) if cuda_graphs else None
        self._fills = self._device.type == "cpu" and not (self.model.is_decoder or self.model.reads_texts_apart)
        self.shares = True  # compute what the rows of a query have in common once; off for comparison
        self._turns = Turns()  # one caller at a time: each uses all cores already

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(
            name="torch",
            device=str(self._device),
            dtype=self._precision,
            reason=self._reason if self._graphs is None else f"{self._reason}, {self._graphs.reason}",
            max_length=self._max_length,
            token_budget=self._budget.tokens,
        )

    def check(self, run: Run) -> None:
        self.model.resolved(run)

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        run = self.model.resolved(run)
        scored = self._scores_of_all if run.early_exit is None else self._scores_with_exits
        scores = scored(rows, run, progress)
        if not np.isfinite(scores).all():
            raise EngineError(
                f"{int((~np.isfinite(scores)).sum())} of {len(rows)} scores are not finite in {self._precision}; "
                "load the model with dtype='float32'"
            )
        return scores

    def _scores_of_all(self, rows: Sequence[Row], run: Run, progress: Advance | None) -> NDArray[np.float32]:
        scores = np.empty((len(rows), len(run.cutoff_layers or (0,))), np.float32)
        pending: list[tuple[list[int], Arrival]] = []
        for portion in self._portions(rows):
            lengths = [len(row) for row in portion.rows]
            kept: list[KeysValues] = []
            for part in plan(lengths, token_budget=max(TURN_TOKENS, self._budget.tokens)):
                with self._turns as turn, torch.inference_mode():
                    kept = kept or self._kept(portion.shared, run)
                    forward = partial(self._forward, portion, run, kept, part)
                    for batch, values in self._in_batches([lengths[i] for i in part], self._budget, forward):
                        pending.append(([portion.indices[part[i]] for i in batch], Arrival(values)))
                        if progress is not None:
                            progress(len(batch), turn.lap())
        for indices, arrival in pending:
            scores[indices] = arrival.numpy()
        return scores

    def _scores_with_exits(self, rows: Sequence[Row], run: Run, progress: Advance | None) -> NDArray[np.float32]:
        def portions(rows: Sequence[Row]) -> list[tuple[SharedRows, list[KeysValues]]]:
            with self._turns, torch.inference_mode():
                return [(portion, self._kept(portion.shared, run)) for portion in self._portions(rows)]

        exits = EarlyExits(
            model=self.model,
            run=run,
            budget=self._budget,
            device=self._device,
            portions=portions,
            turns=self._turns,
        )
        with torch.inference_mode():
            return exits.scores(rows, progress)

    def _portions(self, rows: Sequence[Row]) -> list[SharedRows]:
        if self.shares and self.model.is_causal:
            return share(rows)
        return [SharedRows(indices=list(range(len(rows))), rows=list(rows))]

    def _kept(self, shared: Sequence[Row], run: Run) -> list[KeysValues]:
        """Keys and values of what the rows of a portion share, up to the highest layer that is run."""
        if not shared:
            return []
        top = run.cutoff_layers[-1] if run.cutoff_layers else None
        packed = pack(shared).to(self._device)
        return computed(lambda: self.model.decoder().kept_states(packed, top), sum(map(len, shared)))

    def _forward(
        self, portion: SharedRows, run: Run, kept: Sequence[KeysValues], part: Sequence[int], batch: Sequence[int]
    ) -> torch.Tensor:
        rows = [portion.rows[part[i]] for i in batch]
        replayed = None if self._graphs is None or kept else self._graphs.scores(rows)
        if replayed is not None:
            return replayed
        spans = [portion.spans[part[i]] for i in batch] if portion.spans else None
        given = filled(rows, self._max_length) if self._fills else rows
        packed = pack(given, spans, num_kept=sum(map(len, portion.shared)))
        values: torch.Tensor = self.model(packed.to(self._device), run, kept)
        return values[: len(rows)]


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> CrossEncoderModel:
    """The model; its tokenizer is only read where the score is a word's logit."""
    recipe = checkpoint.recipe
    check_words(checkpoint)
    answer_ids = recipe.answer_ids(checkpoint.tokenizer) if recipe.answers else []
    with torch.device("meta"):
        model = CrossEncoderModel(checkpoint.config, recipe, answer_ids=answer_ids)
    load_weights(
        model,
        checkpoint.weight_files(),
        renames=model.renames,
        ignored=model.ignored,
        dtype=dtype,
        rows=model.rows,
        change=change_of(checkpoint),
    )
    return model
