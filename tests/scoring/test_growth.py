"""What is done beside the engine grows with the number of pairs, not with its square."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from secondpass import Reranker
from secondpass.engine.engine import EngineFacts
from secondpass.scoring.scoring import Scoring
from secondpass.types import Advance, Row, Run
from tests.checkpoints import tiny_bert


class Nothing:
    """An engine that takes no time."""

    def __init__(self, facts: EngineFacts) -> None:
        self.facts = facts

    def check(self, run: Run) -> None:
        """It runs anything."""

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        return np.zeros((len(rows), 1), np.float32)


def seconds(scoring: Scoring, count: int, names: Iterator[int]) -> float:
    """Of processor time, for texts that were never seen."""
    pairs = [(f"q {number % 50}", f"the river {next(names)}") for number in range(count)]
    gc.disable()  # its cost follows what all other tests left in memory
    try:
        started = time.process_time()
        scoring.score(pairs)
        return time.process_time() - started
    finally:
        gc.enable()


@pytest.mark.slow
def test_four_times_as_many_pairs_take_no_more_than_six_times_as_long(tmp_path: Path) -> None:
    scoring = Reranker(tiny_bert(tmp_path / "model"))._scoring
    scoring = replace(scoring, engine=Nothing(scoring.engine.facts))
    names = itertools.count()
    small, large = (min(seconds(scoring, count, names) for _ in range(3)) for count in (20_000, 80_000))
    assert large < 6 * small
