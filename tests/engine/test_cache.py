"""Scores on disk: the same scores, computed once, whatever the order of calls; a broken file loses nothing."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from secondpass import Reranker
from secondpass.engine.cache import ScoreCache
from secondpass.engine.engine import ReopeningEngine
from secondpass.errors import SecondpassError
from secondpass.types import Row, Run
from tests.checkpoints import tiny_bert

QUERY = "which river is long"
TEXTS = ["the river is long " + "water " * n for n in range(30)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_bert(tmp_path / "model")


def opened(folder: Path, cache: Path | None = None, **options: Any) -> Reranker:
    return Reranker(folder, dtype="float32", device="cpu", score_cache=cache, **options)


class Counting:
    """An engine that counts the rows that it really scores, and may be stopped after some of them."""

    def __init__(self, inner: Any, *, stop_after: int | None = None) -> None:
        self.inner, self.rows, self.stop_after = inner, 0, stop_after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, rows: Sequence[Row], run: Run, progress: Any = None) -> NDArray[np.float32]:
        if self.stop_after is not None and self.rows >= self.stop_after:
            raise KeyboardInterrupt
        self.rows += len(rows)
        scores: NDArray[np.float32] = self.inner.run(rows, run, progress)
        return scores


def counted(reranker: Reranker, *, stop_after: int | None = None) -> Counting:
    engine = reranker._scoring.engine
    assert isinstance(engine, ReopeningEngine)
    cache = engine.current
    assert isinstance(cache, ScoreCache)
    counting = Counting(cache._inner, stop_after=stop_after)
    cache._inner = counting
    return counting


def test_the_second_run_computes_nothing(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "scores.sqlite"
    plain = opened(folder).score(QUERY, TEXTS)
    first = opened(folder, cache).score(QUERY, TEXTS)
    again = opened(folder, cache)
    counting = counted(again)
    assert again.score(QUERY, TEXTS[::-1])[::-1] == first == pytest.approx(plain, abs=1e-5)
    assert counting.rows == 0
    assert [hit.index for hit in again.rank(QUERY, TEXTS)] == [hit.index for hit in opened(folder).rank(QUERY, TEXTS)]


def test_only_what_is_new_is_computed(folder: Path, tmp_path: Path) -> None:
    reranker = opened(folder, tmp_path / "scores")
    counting = counted(reranker)
    reranker.score(QUERY, TEXTS[:20])
    seen: list[tuple[int, int]] = []
    scores = reranker.score_pairs([(QUERY, text) for text in TEXTS], progress=lambda *at: seen.append(at))
    assert counting.rows == 30
    assert seen[0] == (20, 30)
    assert seen[-1] == (30, 30)
    assert scores == pytest.approx(opened(folder).score(QUERY, TEXTS), abs=1e-5)


def test_another_model_cut_or_query_has_its_own_scores(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "scores"
    other = tiny_bert(tmp_path / "other", seed=5)
    opened(folder, cache).score(QUERY, TEXTS)
    for reranker, plain in (
        (opened(other, cache), opened(other)),
        (opened(folder, cache, max_length=12), opened(folder, max_length=12)),
    ):
        assert reranker.score(QUERY, TEXTS) == pytest.approx(plain.score(QUERY, TEXTS), abs=1e-5)
        assert reranker.score("a bridge", TEXTS) == pytest.approx(plain.score("a bridge", TEXTS), abs=1e-5)


def test_weights_that_changed_in_place_are_another_model(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "scores"
    before = opened(folder, cache).score(QUERY, TEXTS)
    tiny_bert(folder, seed=9)
    after = opened(folder, cache).score(QUERY, TEXTS)
    assert after != pytest.approx(before, abs=1e-5)
    assert after == pytest.approx(opened(folder).score(QUERY, TEXTS), abs=1e-5)


def test_an_interruption_keeps_what_was_done(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondpass.engine.cache.BATCHES", 1)
    stopped = opened(folder, tmp_path / "scores", token_budget=40)
    counting = counted(stopped, stop_after=12)
    with pytest.raises(KeyboardInterrupt):
        stopped.score(QUERY, TEXTS)
    done = counting.rows
    resumed = opened(folder, tmp_path / "scores", token_budget=40)
    counting = counted(resumed)
    assert resumed.score(QUERY, TEXTS) == pytest.approx(opened(folder).score(QUERY, TEXTS), abs=1e-5)
    assert counting.rows == 30 - done
    assert done >= 12


def test_a_file_that_is_no_cache_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, " * 100)
    with pytest.raises(SecondpassError, match=r"notes\.txt: not usable as a cache of scores"):
        opened(folder, tmp_path / "notes.txt")
    with pytest.raises(SecondpassError, match="not usable"):
        opened(folder, tmp_path)


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_no_scores(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reranker = opened(folder, tmp_path / "scores")
    engine = reranker._scoring.engine
    assert isinstance(engine, ReopeningEngine)
    cache = engine.current
    assert isinstance(cache, ScoreCache)
    pages = cache._store.execute("PRAGMA page_count").fetchone()[0]
    cache._store.execute(f"PRAGMA max_page_count={pages}")
    texts = ["water " * n + "long " * m for n in range(40) for m in range(20)]
    with caplog.at_level(logging.WARNING):
        scores = reranker.score(QUERY, texts)
    assert scores == pytest.approx(opened(folder).score(QUERY, texts), abs=1e-5)
    assert "no longer kept" in caplog.text


def test_threads_and_a_second_process_may_share_it(folder: Path, tmp_path: Path) -> None:
    reranker = opened(folder, tmp_path / "scores")
    other = sqlite3.connect(tmp_path / "scores")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: reranker.score(QUERY, TEXTS), range(8)))
    assert all(scores == results[0] for scores in results)
    assert other.execute("SELECT count(*) FROM scores").fetchone() == (30,)
    other.close()


def test_info_is_that_of_the_engine(folder: Path, tmp_path: Path) -> None:
    assert opened(folder, tmp_path / "scores").info() == opened(folder).info()
