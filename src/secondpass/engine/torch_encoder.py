"""Vectors on torch: packed batches of single texts, CPU and GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secondpass.checkpoint.adapter import change_of
from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.checkpoint.weights import FULL_PRECISION, load_weights
from secondpass.engine.batches import Budget, budget_of, filled, in_batches
from secondpass.engine.cpu.linear_int8 import put_kernels
from secondpass.engine.cpu.parallel import Streams, threads_in_words
from secondpass.engine.cpu.threads import this_processor
from secondpass.engine.cuda.copies import Arrival
from secondpass.engine.device import pick_device, pick_dtype
from secondpass.engine.engine import TURN_TOKENS, EngineFacts, Heads, Turns, Vectors
from secondpass.errors import CheckpointError, EngineError
from secondpass.models.attention import pick_kernel, use_kernel
from secondpass.models.layers import Linear
from secondpass.models.text_encoder import TextEncoder
from secondpass.packed import pack, plan
from secondpass.text.families import is_classifier
from secondpass.types import Row

# Outputs of one vector per token; the others have one per row.
_BY_TOKEN = ("tokens", "weights")


class TorchEncoder:
    """A text encoder on torch."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        heads: Heads,
        *,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
    ) -> None:
        self._device = pick_device(device)
        self._dtype, reason = pick_dtype(dtype, self._device)
        self.model = _load(checkpoint, heads, self._dtype).to(self._device).eval()
        config = self.model.backbone.config
        self.width: int = config.width
        self._budget = Budget(token_budget) if token_budget else budget_of(self._device, config, self._dtype)
        self._in_batches = Streams(config.width).in_batches if self._device.type == "cpu" else in_batches
        self.fingerprint = _fingerprint(self.model)
        if self._device.type == "cpu":
            reason += ", " + put_kernels(self.model) + ", " + threads_in_words()
        reason += ", " + use_kernel(
            self.model, pick_kernel(self._device, self._dtype, config.head_width, has_amx=this_processor().has_amx)
        )
        self._reason, self._max_length = reason, int(config.max_length)
        self._turns = Turns()  # one caller at a time: each uses all cores already

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(
            name="torch",
            device=str(self._device),
            dtype=str(self._dtype).removeprefix("torch."),
            reason=self._reason,
            max_length=self._max_length,
            token_budget=self._budget.tokens,
        )

    def run(
        self, rows: Sequence[Row], outputs: Collection[str], visible: Sequence[int] | None = None
    ) -> dict[str, Vectors]:
        starts = np.array([0, *accumulate(len(row) for row in rows)])
        found: dict[str, Vectors] = {}

        order = range(len(rows)) if visible is None else sorted(range(len(rows)), key=visible.__getitem__)
        lengths = [len(rows[index]) for index in order]  # rows of one length stay together where as much is visible
        for part in plan(lengths, token_budget=max(TURN_TOKENS, self._budget.tokens)):
            picked = [order[i] for i in part]

            def forward(batch: list[int], picked: Sequence[int] = picked) -> dict[str, Tensor]:
                seen = None if visible is None else tuple(visible[picked[i]] for i in batch)
                return self._forward([rows[picked[i]] for i in batch], outputs, seen)

            arriving: list[tuple[list[int], dict[str, Arrival]]] = []
            with self._turns, torch.inference_mode():
                for batch, values in self._in_batches([lengths[i] for i in part], self._budget, forward):
                    copies = {name: Arrival(copy) for name, copy in values.items()}
                    arriving.append(([picked[i] for i in batch], copies))
                    if len(arriving) > 1:  # one batch is computed while the one before it is put in its place
                        _put(found, *arriving.pop(0), starts)
            for batch, copies in arriving:
                _put(found, batch, copies, starts)
        self._check_finite(found)
        return found

    def _forward(
        self, rows: Sequence[Row], outputs: Collection[str], visible: tuple[int, ...] | None
    ) -> dict[str, Tensor]:
        fills = self._device.type == "cpu" and visible is None
        given = filled(rows, self._max_length) if fills else rows
        batch = replace(pack(given), visible=visible).to(self._device)
        values: dict[str, Tensor] = self.model(batch, outputs)
        num_tokens = sum(map(len, rows))
        return {name: x[: num_tokens if name in _BY_TOKEN else len(rows)] for name, x in values.items()}

    def _check_finite(self, found: dict[str, Vectors]) -> None:
        for name, values in found.items():
            bad = int((~np.isfinite(values)).any(axis=1).sum())
            if bad:
                raise EngineError(
                    f"{bad} of {len(values)} vectors ({name}) are not finite in {self.facts.dtype}; "
                    "load the model with dtype='float32'"
                )


def _put(found: dict[str, Vectors], batch: list[int], copies: dict[str, Arrival], starts: NDArray[np.int64]) -> None:
    """Copy the vectors of a batch to the positions of its rows, or of their tokens, in the whole."""
    tokens = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in batch])
    for name, copy in copies.items():
        part = copy.numpy()
        positions, size = (tokens, int(starts[-1])) if name in _BY_TOKEN else (batch, len(starts) - 1)
        if name not in found:
            found[name] = np.empty((size, part.shape[1]), np.float32)
        found[name][positions] = part


def _load(checkpoint: Checkpoint, heads: Heads, dtype: torch.dtype) -> TextEncoder:
    with torch.device("meta"):
        model = TextEncoder(checkpoint.config, pooling=heads.pooling, token_width=heads.token_width)
    try:
        load_weights(
            model,
            checkpoint.weight_files(),
            renames=model.renames,
            ignored=model.ignored,
            dtype=dtype,
            change=change_of(checkpoint),
        )
    except CheckpointError as error:
        if not is_classifier(checkpoint.config):
            raise
        message = f"{checkpoint.name} is a reranker, it scores pairs; open it with secondpass.Reranker ({error})"
        raise CheckpointError(message) from error
    width = model.backbone.config.width
    for name, file in (heads.files or {}).items():
        model.head[name] = _load_linear(file, width, width if name == "tokens" else 1)
    return model


def _load_linear(file: Path, num_in: int, num_out: int) -> Linear:
    with torch.device("meta"):
        linear = Linear(num_in, num_out)
    load_weights(linear, [file], renames=(), dtype=torch.float32)
    return linear


def _fingerprint(model: nn.Module) -> str:
    """sha256 over the norms and heads: little to read, changed by any training, float32 in every precision."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if FULL_PRECISION.fullmatch(name):
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
