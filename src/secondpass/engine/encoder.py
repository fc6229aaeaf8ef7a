"""What reads single texts: rows of token ids to vectors. The counterpart of engine.py, which reads pairs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.errors import MissingExtra
from secondpass.types import Row

Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What a checkpoint has above its backbone.

    token_width: the width D of a projection without bias among the backbone's weights (ColBERT). files: linear
    layers that lie beside them, by the output that they make ("tokens", "weights"), as BGE-M3 has.
    """

    pooling: str = "cls"
    token_width: int | None = None
    files: Mapping[str, Path] | None = None


class Encoder(Protocol):
    """Vectors of rows; knows nothing of texts. Safe to call from several threads."""

    name: str
    device: str
    dtype: str
    reason: str  # why this precision and kernel, in words for info()
    max_length: int  # longest row in tokens
    width: int  # of a pooled vector
    fingerprint: str  # of the weights, whatever the precision

    def run(
        self, rows: Sequence[Row], outputs: Collection[str], visible: Sequence[int] | None = None
    ) -> dict[str, Vectors]:
        """Of "pooled" (N, C), "tokens" (T, D) and "weights" (T, 1) those asked for, in the order of the rows.

        visible: only so many first tokens of each row are seen, though all have an output.
        """
        ...


def open_encoder(
    checkpoint: Checkpoint,
    heads: Heads,
    *,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
) -> Encoder:
    """The encoder of a checkpoint, on torch. Raises MissingExtra where torch is not there."""
    if find_spec("torch") is None:
        raise MissingExtra("torch", "torch")
    from secondpass.engine.torch_encoder import TorchEncoder

    return TorchEncoder(checkpoint, heads, device=device, dtype=dtype, token_budget=token_budget)
