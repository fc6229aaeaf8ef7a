"""What is done beside the engine grows with the number of pairs, not with its square."""

from __future__ import annotations

import time
from collections.abc import Sequence
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


def seconds(scoring: Scoring, count: int) -> float:
    pairs = [(f"q {number % 50}", f"the river {number}") for number in range(count)]
    started = time.process_time()
    scoring.score(pairs)
    return time.process_time() - started


@pytest.mark.slow
def test_twice_as_many_pairs_take_no_more_than_three_times_as_long(tmp_path: Path) -> None:
    scoring = Reranker(tiny_bert(tmp_path / "model"))._scoring
    scoring = replace(scoring, engine=Nothing(scoring.engine.facts))
    small, large = (min(seconds(scoring, count) for _ in range(3)) for count in (20_000, 40_000))
    assert large < 3 * small
