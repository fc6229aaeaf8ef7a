"""The torch engine: every family, packed batches, CPU and GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from secondpass.checkpoint.adapter import change_of
from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.checkpoint.weights import load_weights
from secondpass.engine.batches import Budget, budget_of, in_batches, memory_checked
from secondpass.engine.cpu.linear_int8 import put_kernels
from secondpass.engine.cpu.parallel import Streams, threads_in_words
from secondpass.engine.cuda.copies import Arrival
from secondpass.engine.cuda.graphs import open_graphs
from secondpass.engine.device import pick_device, pick_precision
from secondpass.engine.early_exit import EarlyExits
from secondpass.engine.prefix import Portion, share
from secondpass.errors import EngineError
from secondpass.models.attention import pick_kernel, use_kernel
from secondpass.models.cross_encoder import CrossEncoder
from secondpass.packed import pack
from secondpass.types import Advance, Row, Run

KeysValues = tuple[torch.Tensor, torch.Tensor]  # of one block


class TorchEngine:
    """A cross-encoder on torch.

    cuda_graphs: small batches are replayed from recorded passes on a GPU. Not yet measured on one, therefore off.
    """

    name = "torch"

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
        self._dtype, self._reason = precision.dtype, precision.reason
        self.device, self.dtype = str(self._device), precision.name
        self.model = _load(checkpoint, self._dtype).to(self._device).eval()
        if precision.is_int8 and self.model.is_causal:
            raise ValueError("dtype is 'int8', which runs encoders only; give 'auto' for a decoder")
        config = self.model.backbone.config
        self.max_length: int = config.max_length
        if self._device.type == "cpu":
            self._reason += ", " + put_kernels(self.model, is_int8=precision.is_int8) + ", " + threads_in_words()
        self._budget = Budget(token_budget) if token_budget else budget_of(self._device, config, self._dtype)
        self._in_batches = Streams(config.width).in_batches if self._device.type == "cpu" else in_batches
        kernel = pick_kernel(self._device, self._dtype, config.head_width)
        self._reason += ", " + use_kernel(self.model, kernel)
        self._graphs = open_graphs(self.model, kernel, self._device, self._budget) if cuda_graphs else None
        self.shares = True  # compute what the rows of a query have in common once; off for comparison
        self._lock = threading.Lock()  # one call at a time: each uses all cores already

    @property
    def reason(self) -> str:
        """Why this precision, and which kernels."""
        return self._reason if self._graphs is None else f"{self._reason}, {self._graphs.reason}"

    @property
    def token_budget(self) -> int:
        """Tokens that are run at once; fewer from then on when they did not fit in memory."""
        return self._budget.tokens

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        run = self.model.resolved(run)
        with self._lock, torch.inference_mode():
            scored = self._scores_of_all if run.early_exit is None else self._scores_with_exits
            scores = scored(rows, run, progress)
        if not np.isfinite(scores).all():
            raise EngineError(
                f"{int((~np.isfinite(scores)).sum())} of {len(rows)} scores are not finite in {self.dtype}; "
                "load the model with dtype='float32'"
            )
        return scores

    def _scores_of_all(self, rows: Sequence[Row], run: Run, progress: Advance | None) -> NDArray[np.float32]:
        scores = np.empty((len(rows), len(run.cutoff_layers or (0,))), np.float32)
        pending: list[tuple[list[int], Arrival]] = []
        for portion in self._portions(rows):
            kept = self._kept(portion.shared, run)
            forward = partial(self._forward, portion, run, kept)
            for batch, values in self._in_batches([len(row) for row in portion.rows], self._budget, forward):
                pending.append(([portion.places[i] for i in batch], Arrival(values)))
                if progress is not None:
                    progress(len(batch))
        for places, arrival in pending:
            scores[places] = arrival.numpy()
        return scores

    def _scores_with_exits(self, rows: Sequence[Row], run: Run, progress: Advance | None) -> NDArray[np.float32]:
        def portions(rows: Sequence[Row]) -> list[tuple[Portion, list[KeysValues]]]:
            return [(portion, self._kept(portion.shared, run)) for portion in self._portions(rows)]

        exits = EarlyExits(model=self.model, run=run, budget=self._budget, device=self._device, portions=portions)
        return exits.scores(rows, progress)

    def _portions(self, rows: Sequence[Row]) -> list[Portion]:
        if self.shares and self.model.is_causal:
            return share(rows)
        return [Portion(places=list(range(len(rows))), rows=list(rows))]

    def _kept(self, shared: Sequence[Row], run: Run) -> list[KeysValues]:
        """Keys and values of what the rows of a portion share, up to the highest layer that is run."""
        if not shared:
            return []
        top = run.cutoff_layers[-1] if run.cutoff_layers else None
        with memory_checked(sum(map(len, shared))):
            return self.model.decoder().kept_states(pack(shared).to(self._device), top)

    def _forward(self, portion: Portion, run: Run, kept: Sequence[KeysValues], batch: Sequence[int]) -> torch.Tensor:
        rows = [portion.rows[i] for i in batch]
        replayed = None if self._graphs is None or kept else self._graphs.scores(rows)
        if replayed is not None:
            return replayed
        spans = [portion.spans[i] for i in batch] if portion.spans else None
        packed = pack(rows, spans, num_kept=sum(map(len, portion.shared)))
        values: torch.Tensor = self.model(packed.to(self._device), run, kept)
        return values


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> CrossEncoder:
    """The model; its tokenizer is only read where the score is a word's logit."""
    recipe = checkpoint.recipe
    answer_ids = recipe.answer_ids(checkpoint.tokenizer) if recipe.answers else []
    with torch.device("meta"):
        model = CrossEncoder(checkpoint.config, recipe, answer_ids=answer_ids)
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
