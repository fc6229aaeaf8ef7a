"""What an engine is, and which one runs a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secondpass.types import Row, Run

Progress = Callable[[int], None]  # told how many more rows are done


class Engine(Protocol):
    """Scores rows; knows nothing of texts. Safe to call from several threads."""

    name: str
    device: str
    dtype: str
    reason: str  # why this precision and kernel, in words for info()
    max_length: int  # longest row in tokens

    def run(self, rows: Sequence[Row], run: Run, progress: Progress | None = None) -> NDArray[np.float32]:
        """Logits (N, outputs) in the order of the rows."""
        ...
