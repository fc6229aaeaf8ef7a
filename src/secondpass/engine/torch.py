"""The torch engine: every family, packed batches, CPU and GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from secondpass.checkpoint.files import Checkpoint
from secondpass.checkpoint.weights import load_weights
from secondpass.engine.device import pick_device, pick_dtype
from secondpass.engine.engine import Progress
from secondpass.engine.fused import fuse_linears
from secondpass.errors import EngineError
from secondpass.models.cross_encoder import CrossEncoder
from secondpass.packed import pack, plan
from secondpass.types import Row, Run

# Tokens in one micro-batch. On a CPU more than a few thousand gain nothing and leave the cache.
TOKEN_BUDGETS = {"cpu": 4096, "cuda": 65536, "mps": 16384}


class TorchEngine:
    """A cross-encoder on torch."""

    name = "torch"

    def __init__(
        self, checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto", token_budget: int | None = None
    ) -> None:
        self._device = pick_device(device)
        self._dtype, self.reason = pick_dtype(dtype, self._device)
        self.device, self.dtype = str(self._device), str(self._dtype).removeprefix("torch.")
        self.token_budget = token_budget or TOKEN_BUDGETS[self._device.type]
        with torch.device("meta"):
            self.model = CrossEncoder(checkpoint.config)
        load_weights(
            self.model,
            checkpoint.weight_files(),
            renames=self.model.renames,
            ignored=self.model.ignored,
            dtype=self._dtype,
        )
        self.model.to(self._device).eval()
        self.max_length: int = self.model.backbone.config.max_length
        if self._device.type == "cpu":
            self.reason += ", " + fuse_linears(self.model)
        self._lock = threading.Lock()  # one forward at a time: each uses all cores already

    def run(self, rows: Sequence[Row], run: Run, progress: Progress | None = None) -> NDArray[np.float32]:
        scores = np.empty((len(rows), 1), np.float32)
        pending: list[tuple[list[int], torch.Tensor]] = []
        with self._lock, torch.inference_mode():
            for batch in plan([len(row) for row in rows], token_budget=self.token_budget):
                pending.append((batch, self._forward([rows[index] for index in batch])))
                if progress is not None:
                    progress(len(batch))
            for batch, values in pending:
                scores[batch, 0] = values.cpu().numpy()
        if not np.isfinite(scores).all():
            raise EngineError(
                f"{int((~np.isfinite(scores)).sum())} of {len(rows)} scores are not finite in {self.dtype}; "
                "load the model with dtype='float32'"
            )
        return scores

    def _forward(self, rows: Sequence[Row]) -> torch.Tensor:
        try:
            values: torch.Tensor = self.model(pack(rows).to(self._device))
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"out of memory with {sum(map(len, rows))} tokens at once; lower token_budget or max_length"
            ) from error
        return values
