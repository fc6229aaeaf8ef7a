"""What an engine is, and which one runs a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.errors import MissingExtra
from secondpass.types import Advance, Row, Run


class Engine(Protocol):
    """Scores rows; knows nothing of texts. Safe to call from several threads."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...

    @property
    def reason(self) -> str:
        """Why this precision and kernel, in words for info()."""
        ...

    @property
    def max_length(self) -> int:
        """Longest row in tokens."""
        ...

    @property
    def token_budget(self) -> int:
        """Tokens that are run at once."""
        ...

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        """Logits (N, outputs) in the order of the rows."""
        ...


def open_engine(
    checkpoint: Checkpoint,
    *,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    score_cache: str | Path | None = None,
) -> Engine:
    """The engine for a checkpoint; "auto" takes torch where there are weights and torch is installed.

    score_cache is a file in which scores are kept, to be looked up before they are computed. Raises ValueError for
    an unknown engine, MissingExtra where torch is needed and not there.
    """
    if engine not in ("auto", *ENGINES):
        raise ValueError(f"engine is {engine!r}; give 'auto', {' or '.join(map(repr, ENGINES))}")
    picked = _pick(checkpoint, device) if engine == "auto" else engine
    opened = ENGINES[picked](checkpoint, device, dtype, token_budget)
    if score_cache is None:
        return opened
    from secondpass.engine.cache import ScoreCache

    return ScoreCache(opened, Path(score_cache), checkpoint.identity())


def _pick(checkpoint: Checkpoint, device: str) -> str:
    if checkpoint.has_weights() and find_spec("torch") is not None:
        return "torch"
    if device not in ("auto", "cpu"):
        return "torch"  # which reads the weights out of a graph
    return "torch" if checkpoint.graph() is None else "openvino"


def _open_torch(checkpoint: Checkpoint, device: str, dtype: str, token_budget: int | None) -> Engine:
    if find_spec("torch") is None:
        raise MissingExtra("torch", "torch")
    from secondpass.engine.torch import TorchEngine

    return TorchEngine(checkpoint, device=device, dtype=dtype, token_budget=token_budget)


def _open_openvino(checkpoint: Checkpoint, device: str, dtype: str, token_budget: int | None) -> Engine:
    from secondpass.engine.openvino import OpenVinoEngine

    return OpenVinoEngine(checkpoint, device=device, dtype=dtype, token_budget=token_budget)


ENGINES: dict[str, Callable[[Checkpoint, str, str, int | None], Engine]] = {
    "torch": _open_torch,
    "openvino": _open_openvino,
}
