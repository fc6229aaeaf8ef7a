"""Ranking within a time: what is scored, in which order, and what is said of the rest. The clock is a made one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import secondpass.scoring.deadline
import secondpass.scoring.scoring
from secondpass import Reranker
from secondpass.scoring.deadline import Pace
from secondpass.types import Row, Run
from tests.checkpoints import tiny_bert

QUERY = "which river is long"
TEXTS = [f"the river is long {'water ' * (n % 5)}{n}" for n in range(40)]


class Clock:
    """Stands still but for what is said to take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowEngine:
    """The engine of a reranker, on a clock: a fixed time for each call and one for each token."""

    def __init__(self, inner: Any, clock: Clock, *, call: float, token: float) -> None:
        self.inner, self.clock, self.call, self.token = inner, clock, call, token
        self.runs: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, rows: Sequence[Row], run: Run, progress: Any = None) -> NDArray[np.float32]:
        self.runs.append(len(rows))
        seconds = self.call + self.token * sum(map(len, rows))
        self.clock.now += seconds
        scores: NDArray[np.float32] = self.inner.run(rows, run)
        if progress is not None:
            progress(len(rows), seconds)
        return scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


def slow(folder: Path, monkeypatch: pytest.MonkeyPatch, *, call: float = 1e-3, token: float = 1e-4) -> Any:
    """A reranker on a made clock, which it knows the pace of, and its engine."""
    reranker = Reranker(folder, dtype="float32", device="cpu")
    clock = Clock()
    for module in (secondpass.scoring.deadline, secondpass.scoring.scoring):
        monkeypatch.setattr(module, "time", clock)
    engine = SlowEngine(reranker._scoring.engine, clock, call=call, token=token)
    reranker._scoring = replace(reranker._scoring, engine=engine)
    reranker.warm_up()
    engine.runs.clear()
    return reranker, engine, clock


def test_what_fits_is_scored_in_the_first_stages_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, _, clock = slow(folder, monkeypatch)
    started = clock.now
    ranking = reranker.rank(QUERY, TEXTS, budget_ms=40)
    assert clock.now - started <= 0.040
    scored = [hit for hit in ranking if hit.is_scored]
    rest = [hit for hit in ranking if not hit.is_scored]
    assert 5 < len(scored) < 40
    assert sorted(hit.index for hit in scored) == list(range(len(scored)))
    assert [hit.index for hit in rest] == list(range(len(scored), 40))
    assert ranking.usage.unscored == len(rest)
    assert [hit.rank for hit in ranking] == list(range(40))
    assert all(math.isnan(hit.score) and math.isnan(hit.probability) for hit in rest)


def test_the_scored_have_the_scores_of_a_full_ranking(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, _, _ = slow(folder, monkeypatch)
    scores = reranker.score(QUERY, TEXTS)
    ranking = reranker.rank(QUERY, TEXTS, budget_ms=40)
    scored = [hit for hit in ranking if hit.is_scored]
    assert [hit.score for hit in scored] == pytest.approx([scores[hit.index] for hit in scored], abs=1e-5)
    assert [hit.score for hit in scored] == sorted((hit.score for hit in scored), reverse=True)


def test_first_scores_say_which_come_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, _, _ = slow(folder, monkeypatch)
    ranking = reranker.rank(QUERY, TEXTS, budget_ms=40, first_scores=[float(n) for n in range(40)])
    scored = {hit.index for hit in ranking if hit.is_scored}
    assert scored == set(range(40 - len(scored), 40))
    assert [hit.index for hit in ranking if not hit.is_scored] == list(range(39 - len(scored), -1, -1))


def test_with_time_enough_all_are_scored_in_one_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, engine, _ = slow(folder, monkeypatch)
    ranking = reranker.rank(QUERY, TEXTS, budget_ms=60_000)
    assert ranking.usage.unscored == 0
    assert engine.runs == [40]
    whole = reranker.rank(QUERY, TEXTS)
    assert [hit.index for hit in ranking] == [hit.index for hit in whole]


def test_no_time_scores_nothing_and_keeps_the_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, engine, _ = slow(folder, monkeypatch)
    ranking = reranker.rank(QUERY, TEXTS, budget_ms=0.7, top_n=3)
    assert engine.runs == []
    assert [(hit.index, hit.is_scored) for hit in ranking] == [(0, False), (1, False), (2, False)]


def test_a_reranker_that_never_ran_tries_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, engine, _ = slow(folder, monkeypatch)
    reranker._scoring.pace.seen.clear()
    reranker.rank(QUERY, TEXTS, budget_ms=40)
    assert engine.runs[0] == 1


def test_one_slow_run_is_not_remembered_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, _, clock = slow(folder, monkeypatch)
    for runs in reranker._scoring.pace.seen.values():
        runs.append((runs[0][0], 1.0))  # as when another process had the cores
    scored = []
    for _ in range(20):
        started = clock.now
        scored.append(40 - reranker.rank(QUERY, TEXTS, budget_ms=40).usage.unscored)
        assert clock.now - started <= 0.040
    assert scored[0] >= 1
    assert scored[-1] > 5


def test_a_machine_that_is_always_too_slow_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, engine, _ = slow(folder, monkeypatch, call=0.1)
    for _ in range(3):
        assert reranker.rank(QUERY, TEXTS, budget_ms=40).usage.unscored == 40
    assert engine.runs == []


def test_where_runs_are_often_too_slow_few_calls_try(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, engine, clock = slow(folder, monkeypatch)
    for runs in reranker._scoring.pace.seen.values():
        runs += [(runs[0][0], 1.0), (runs[0][0], 1.0)]
    tried = []
    for _ in range(150):
        started, engine.runs[:] = clock.now, []
        reranker.rank(QUERY, TEXTS[:1], budget_ms=20)
        tried.append(bool(engine.runs))
        for runs in reranker._scoring.pace.seen.values():  # what ran was slow too
            runs += [(runs[0][0], 1.0)] * tried[-1]
        assert clock.now - started <= 0.02
    assert 1 <= sum(tried) <= 4


def test_windows_of_a_document_are_scored_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, _, _ = slow(folder, monkeypatch)
    reranker._scoring = replace(reranker._scoring, reader=replace(reranker._scoring.reader, has_windows=True))
    texts = ["the river is long " * 60, *TEXTS]
    ranking = reranker.rank(QUERY, texts, budget_ms=120)
    assert next(hit for hit in ranking if hit.index == 0).is_scored
    assert ranking.usage.rows > len([hit for hit in ranking if hit.is_scored])


@settings(deadline=None, max_examples=30)
@given(call=st.floats(1e-5, 3e-3), token=st.floats(1e-6, 3e-4), budget=st.floats(5, 400), count=st.integers(1, 40))
def test_an_even_pace_is_never_overrun(folder: Path, call: float, token: float, budget: float, count: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        reranker, _, clock = slow(folder, monkeypatch, call=call, token=token)
        started = clock.now
        reranker.rank(QUERY, TEXTS[:count], budget_ms=budget)
        assert clock.now - started <= budget / 1000


@pytest.mark.parametrize("budget", [0, -1, math.nan])
def test_a_budget_that_is_no_time_is_refused(folder: Path, budget: float) -> None:
    with pytest.raises(ValueError, match="budget_ms is"):
        Reranker(folder, dtype="float32", device="cpu").rank(QUERY, TEXTS, budget_ms=budget)


def test_first_scores_of_another_length_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="first_scores has 2 scores for 40 documents"):
        Reranker(folder, dtype="float32", device="cpu").rank(QUERY, TEXTS, first_scores=[1.0, 2.0])


def test_a_pace_is_learned_by_size() -> None:
    pace = Pace()
    assert pace.seconds(100) is None
    assert pace.room(1.0) is None
    pace.learn(1000, 0.1)
    pace.learn(10, 0.01)
    assert pace.seconds(1000) == pytest.approx(0.11)
    assert pace.seconds(10) == pytest.approx(0.011)
    assert pace.seconds(4000) == pytest.approx(0.44)
    assert pace.seconds(900) == pytest.approx(1.1 * (0.01 + 0.09 * 0.9))
    assert pace.seconds(1) == pytest.approx(0.011)
    room = pace.room(0.22)
    assert room is not None
    assert 1900 < room <= 2000
