"""Ranking within a time: what is scored, in which order, and what is said of the rest. The clock is a made one."""

from __future__ import annotations

import math
import threading
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
from secondpass.scoring.ranking import RankOptions
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
        self.wait = 0.0  # for other callers
        self.num_kept = 0  # of each run's rows: they take no time
        self.runs: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, rows: Sequence[Row], run: Run, progress: Any = None) -> NDArray[np.float32]:
        self.runs.append(len(rows))
        kept = min(self.num_kept, len(rows))
        seconds = self.call + self.token * sum(map(len, rows[kept:]))
        self.clock.now += self.wait + seconds
        scores: NDArray[np.float32] = self.inner.run(rows, run)
        if progress is not None:
            if kept:
                progress(kept, 0.0)
            progress(len(rows) - kept, seconds)
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


def forget(reranker: Any) -> None:
    reranker._scoring = replace(reranker._scoring, pace=Pace())


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
    assert [hit.rank for hit in ranking] == list(range(1, 41))
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


class Labelled(list[float]):
    """A column of a table that was sorted: what is indexed are its labels."""

    def __getitem__(self, label: int) -> float:  # type: ignore[override]
        return list(self)[::-1][label]


def test_first_scores_go_by_their_place_and_not_by_labels() -> None:
    assert RankOptions(budget_ms=40, first_scores=Labelled([1.0, 3.0, 2.0])).first_order(3) == [1, 2, 0]
    assert RankOptions(budget_ms=40, first_scores=Labelled([3.0, 2.0, 1.0])).first_order(3) == [0, 1, 2]


def test_first_scores_that_are_nan_come_last() -> None:
    scores = [1.0, math.nan, 3.0, 2.0, math.nan, 4.0]
    assert RankOptions(budget_ms=40, first_scores=scores).first_order(6) == [5, 2, 3, 0, 1, 4]


def test_with_time_enough_all_are_scored_in_one_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, engine, _ = slow(folder, monkeypatch)
    ranking = reranker.rank(QUERY, TEXTS, budget_ms=60_000)
    assert ranking.usage.unscored == 0
    assert engine.runs == [40]
    whole = reranker.rank(QUERY, TEXTS)
    assert [hit.index for hit in ranking] == [hit.index for hit in whole]


@pytest.mark.promise("README.md", "gives the best ranking it can in that time")
@pytest.mark.parametrize("budget", [0.01, 0.7])
def test_without_time_the_first_alone_is_scored(folder: Path, monkeypatch: pytest.MonkeyPatch, budget: float) -> None:
    reranker, engine, _ = slow(folder, monkeypatch)
    ranking = reranker.rank(QUERY, TEXTS, budget_ms=budget, top_n=3)
    assert engine.runs == [1]
    assert [(hit.index, hit.is_scored) for hit in ranking] == [(0, True), (1, False), (2, False)]


def test_a_reranker_that_never_ran_tries_one_then_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, engine, clock = slow(folder, monkeypatch)
    forget(reranker)
    started = clock.now
    reranker.rank(QUERY, TEXTS, budget_ms=40)
    assert engine.runs[0] == 1
    assert sum(engine.runs) > 5
    assert clock.now - started <= 0.040


def scored_in(reranker: Any, clock: Clock, budget: float, texts: Sequence[str] = TEXTS) -> tuple[int, float]:
    """How many were scored, and the seconds that it took."""
    started = clock.now
    ranking = reranker.rank(QUERY, texts, budget_ms=budget)
    return len(texts) - ranking.usage.unscored, clock.now - started


@pytest.mark.promise("README.md", "gives the best ranking it can in that time")
def test_a_slow_first_run_is_forgotten_soon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a cold process or another one had the cores: no warm_up, and one run of ten times the budget."""
    reranker, engine, clock = slow(folder, monkeypatch)
    forget(reranker)
    engine.call = 0.4
    assert scored_in(reranker, clock, 40)[0] == 1
    engine.call = 1e-3
    found = [scored_in(reranker, clock, 40) for _ in range(12)]
    assert all(count >= 1 and seconds <= 0.040 * 1.05 for count, seconds in found)
    assert found[-1][0] > 10


def test_a_machine_that_is_always_too_slow_scores_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, engine, clock = slow(folder, monkeypatch, call=0.1)
    for _ in range(5):
        engine.runs.clear()
        assert scored_in(reranker, clock, 40)[0] == 1
        assert engine.runs == [1]


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_jump_of_speed_is_followed(folder: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    reranker, engine, clock = slow(folder, monkeypatch)
    texts = TEXTS * 1
    engine.call, engine.token = 1e-3 * factor, 1e-4 * factor
    budget = 40 * factor
    overrun = scored_in(reranker, clock, budget, texts)[1] - budget / 1000
    assert overrun <= 0.040 * factor  # of one portion at most
    for _ in range(6):
        scored_in(reranker, clock, budget, texts)
    count, seconds = scored_in(reranker, clock, budget, texts)
    assert count > 10
    assert seconds <= budget / 1000


@pytest.mark.promise("README.md", "gives the best ranking it can in that time")
def test_a_pace_that_is_far_too_fast_is_mended_where_some_is_always_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the lists of all questions share passages, which the embedded model keeps."""
    reranker, engine, clock = slow(folder, monkeypatch, token=1e-3)
    engine.num_kept = 2
    forget(reranker)
    for work in (900, 1000):
        reranker._scoring.pace.learn(work, 1e-4)
    for _ in range(3):
        scored_in(reranker, clock, 40)
    found = [scored_in(reranker, clock, 40) for _ in range(5)]
    assert all(3 <= count < 20 and seconds <= 0.040 for count, seconds in found)


def test_what_small_runs_say_of_the_pace_is_not_believed_of_large_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two took about the same time, as where the cores were busy for a moment: more seems to cost nothing."""
    reranker, engine, _ = slow(folder, monkeypatch)
    forget(reranker)
    for work, seconds in ((10, 0.01), (14, 0.010001)):
        reranker._scoring.pace.learn(work, seconds)
    assert reranker._scoring.pace.fit()[1] < 1e-6
    reranker.rank(QUERY, TEXTS, budget_ms=40)
    assert 1 < engine.runs[0] <= 12  # of 10 tokens and more


def test_the_pace_is_learned_from_calls_without_a_deadline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, engine, clock = slow(folder, monkeypatch)
    forget(reranker)
    reranker.score(QUERY, TEXTS)
    engine.runs.clear()
    count, seconds = scored_in(reranker, clock, 40)
    assert engine.runs[0] > 1
    assert seconds <= 0.040 and count > 10


@pytest.mark.promise("README.md", "gives the best ranking it can in that time")
def test_waiting_for_another_thread_is_not_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, engine, clock = slow(folder, monkeypatch)
    engine.wait = 0.3
    assert all(scored_in(reranker, clock, 40)[0] >= 1 for _ in range(20))
    engine.wait = 0.0
    for _ in range(10):
        scored_in(reranker, clock, 40)
    assert scored_in(reranker, clock, 40)[0] > 10


@pytest.mark.slow
def test_a_call_comes_in_between_the_turns_of_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread scores a long list, and must not be done before the ranking with a deadline is."""
    monkeypatch.setattr("secondpass.engine.torch.TURN_TOKENS", 40)
    reranker: Any = Reranker(folder, dtype="float32", device="cpu", token_budget=40)
    done: list[int] = []
    found: list[tuple[int, int]] = []
    threads: list[threading.Thread] = []

    def rank() -> None:
        ranking = reranker.rank(QUERY, TEXTS[:3], budget_ms=300)
        found.append((3 - ranking.usage.unscored, len(done)))

    def progress(rows: int, total: int) -> None:
        done.append(rows)
        if not threads:
            threads.append(threading.Thread(target=rank))
            threads[0].start()
        while not found and len(done) < 200 and not reranker._scoring.engine.current._turns.is_wanted:
            pass  # let the other one arrive

    reranker.score_pairs([(QUERY, f"the river is long {n}") for n in range(2000)], progress=progress)
    threads[0].join()
    num_scored, at = found[0]
    assert num_scored >= 1
    assert at < len(done)
    assert 3 - reranker.rank(QUERY, TEXTS[:3], budget_ms=60_000).usage.unscored == 3


def test_windows_of_a_document_are_scored_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, _, _ = slow(folder, monkeypatch)
    reranker._scoring = replace(reranker._scoring, reader=replace(reranker._scoring.reader, has_windows=True))
    texts = ["the river is long " * 60, *TEXTS]
    ranking = reranker.rank(QUERY, texts, budget_ms=120)
    assert next(hit for hit in ranking if hit.index == 0).is_scored
    assert ranking.usage.rows > len([hit for hit in ranking if hit.is_scored])


@settings(deadline=None, max_examples=30)
@given(call=st.floats(1e-5, 3e-3), token=st.floats(1e-6, 3e-4), budget=st.floats(5, 400), count=st.integers(1, 40))
@pytest.mark.slow
def test_an_even_pace_is_kept_and_its_time_is_used(
    folder: Path, call: float, token: float, budget: float, count: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        reranker, _, clock = slow(folder, monkeypatch, call=call, token=token)
        started = clock.now
        num_scored = count - reranker.rank(QUERY, TEXTS[:count], budget_ms=budget).usage.unscored
        taken = clock.now - started
        row = call + 22 * token  # of the longest
        assert taken <= max(budget / 1000, row)
        assert num_scored == count or num_scored == 1 or taken >= budget / 1000 / 2 - row


@pytest.mark.parametrize("budget", [0, -1, math.nan])
def test_a_budget_that_is_no_time_is_refused(folder: Path, budget: float) -> None:
    with pytest.raises(ValueError, match="budget_ms is"):
        Reranker(folder, dtype="float32", device="cpu").rank(QUERY, TEXTS, budget_ms=budget)


def test_first_scores_of_another_length_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="first_scores has 2 scores for 40 documents"):
        Reranker(folder, dtype="float32", device="cpu").rank(QUERY, TEXTS, first_scores=[1.0, 2.0], budget_ms=50)


def test_a_pace_is_a_fixed_part_and_one_for_the_work() -> None:
    pace = Pace()
    assert pace.fit() is None
    pace.learn(1000, 0.11)
    assert pace.fit() == pytest.approx((0.0, 0.00011))
    pace.learn(100, 0.02)
    assert pace.fit() == pytest.approx((0.01, 0.0001))
    for _ in range(20):
        pace.learn(1000, 0.01)  # of one size: the mean alone is known
    assert pace.fit() == pytest.approx((0.0, 0.00001), rel=0.05)


def test_a_run_of_which_most_was_kept_says_only_that_a_pace_is_too_fast() -> None:
    """What is kept takes some time, which is not to be blamed on the rest."""
    pace = Pace()
    pace.learn(1000, 0.1)
    for share in (0.01, 0.4):
        pace.learn(1000, 0.05, share)
    assert pace.fit() == pytest.approx((0.0, 1e-4))
    pace.learn(1000, 0.05, 0.5)
    assert pace.fit() == pytest.approx((0.0, 1e-4))
    pace.learn(1000, 0.2, 0.1)
    assert sum(pace.fit() or ()) > 2e-4


def test_scores_that_were_kept_say_nothing_of_the_pace(folder: Path, tmp_path: Path) -> None:
    reranker: Any = Reranker(folder, dtype="float32", device="cpu", score_cache=tmp_path / "scores")
    reranker.score(QUERY, TEXTS)
    before = reranker._scoring.pace.sums
    assert before[0] > 0
    reranker.score(QUERY, TEXTS)
    assert reranker._scoring.pace.sums == before
    reranker.score(QUERY, [*TEXTS, *(f"{text} again" for text in TEXTS)])
    assert reranker._scoring.pace.sums != before
