"""Texts read apart and kept: the same scores whatever is kept, less computed, never more memory than allowed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secondpass import Reranker
from secondpass.engine.engine import ReopeningEngine
from secondpass.engine.late_interaction import CACHE_BYTES, LateInteractionEngine, PassageCache, ReadText
from secondpass.errors import CheckpointError
from secondpass.types import Row
from tests.checkpoints import tiny_bert

QUERY = "How long do rechargeable batteries keep their charge?"
PASSAGES = [f"Passage {n} says that a battery of kind {n} keeps its charge for {n} months." for n in range(6)]


def engine_of(reranker: Reranker) -> LateInteractionEngine:
    held = reranker._scoring.engine
    assert isinstance(held, ReopeningEngine) and isinstance(held.current, LateInteractionEngine)
    return held.current


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Every row that goes through a graph from now on."""
    seen: list[Row] = []
    original = LateInteractionEngine._read

    def noting(self: Any, keys: Sequence[bytes], *rest: Any, **named: Any) -> None:
        seen.extend(Row(np.frombuffer(key, np.int64).tolist(), (0, 0)) for key in keys)
        original(self, keys, *rest, **named)

    monkeypatch.setattr(LateInteractionEngine, "_read", noting)
    return seen


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return Reranker("default")


def text_of(num_bytes: int) -> ReadText:
    none = np.zeros(0, np.float32)
    return ReadText(ids=np.zeros(0, np.int64), units=np.zeros(num_bytes, np.uint8), told=none, pooled=none)


@pytest.mark.slow
def test_a_query_is_read_once_and_kept_passages_are_not_read_again(reranker: Reranker, read: list[Row]) -> None:
    first = reranker.score(QUERY, PASSAGES)
    assert len(read) == 1 + len(PASSAGES)
    assert reranker.score(QUERY, PASSAGES[::-1]) == first[::-1]
    assert len(read) == 1 + len(PASSAGES) + 1


@pytest.mark.slow
def test_many_queries_and_passages_some_of_them_kept_score_as_each_pair_alone() -> None:
    """So many queries that they take two batches; passages are read beside them."""
    queries = [f"question {'word ' * (index % 7)}{index}" for index in range(20)]
    pairs = [(query, passage) for query in queries for passage in PASSAGES[:2]] + [(PASSAGES[3], PASSAGES[3])]
    with Reranker("default", dtype="float32") as reranker:
        alone = [reranker.score(*pair)[0] for pair in ((query, [passage]) for query, passage in pairs)]
    with Reranker("default", dtype="float32") as other:
        other.score(QUERY, PASSAGES[1:2])
        assert other.score_pairs(pairs) == pytest.approx(alone, abs=1e-5)


def test_scores_are_those_of_a_reranker_that_keeps_nothing(reranker: Reranker) -> None:
    reranker.score("another query", PASSAGES)
    with Reranker("default", passage_cache_bytes=0) as other:
        assert other.score(QUERY, PASSAGES) == reranker.score(QUERY, PASSAGES)
        assert len(engine_of(other).cache) == 0
        assert not other.store_passages(PASSAGES)


def test_stored_passages_are_there_for_the_first_query(read: list[Row]) -> None:
    with Reranker("default") as reranker:
        assert reranker.store_passages(PASSAGES)
        read.clear()
        assert reranker.rank(QUERY, PASSAGES).usage.rows == len(PASSAGES)
        assert len(read) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["auto", pytest.param("float32", marks=pytest.mark.slow)])
def test_states_that_were_kept_elsewhere_give_the_same_scores_and_are_not_read_again(
    read: list[Row], dtype: str
) -> None:
    with Reranker("default", dtype=dtype) as first, Reranker("default", dtype=dtype) as second:
        expected = second.score(QUERY, [*PASSAGES, "new " * 90])
        states = [*first.states(PASSAGES[:2]), *first.states(["long " * 200, *PASSAGES[2:]])[1:]]
        assert first.states_mark == second.states_mark
    with Reranker("default", dtype=dtype) as other:
        damaged = [b"", b"xx", states[5][:-1], b"\xff" * len(states[4])]
        other.keep_states([*states[:4], *damaged])
        read.clear()
        assert other.score(QUERY, [*PASSAGES, "new " * 90]) == expected
        assert len(read) == 1 + 3
        other.keep_states(states)
        assert len(engine_of(other).cache) == len(PASSAGES) + 1


@pytest.mark.slow
def test_states_of_another_precision_have_another_mark(reranker: Reranker) -> None:
    marks = {Reranker("default", dtype=dtype).states_mark for dtype in ("float32", "bfloat16")}
    assert None not in marks and reranker.states_mark in marks and len(marks) == 2
    assert Reranker("default", passage_cache_bytes=0).states_mark is None


def test_a_model_that_reads_both_together_has_no_states(tmp_path: Path) -> None:
    reranker = Reranker(tiny_bert(tmp_path / "model"), device="cpu")
    assert reranker.states_mark is None
    reranker.keep_states([b"nothing"])
    with pytest.raises(ValueError, match="reads query and passage together; there are no states"):
        reranker.states(PASSAGES)


def test_a_model_that_reads_both_together_stores_nothing(tmp_path: Path) -> None:
    assert not Reranker(tiny_bert(tmp_path / "model"), device="cpu").store_passages(PASSAGES)


def test_progress_counts_kept_rows_too(reranker: Reranker) -> None:
    reranker.score(QUERY, PASSAGES[:3])
    heard: list[tuple[int, int]] = []
    reranker.rank(QUERY, [*PASSAGES, "new"], progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (7, 7)


def test_the_least_lately_used_goes_first_and_memory_stays_bounded() -> None:
    cache = PassageCache(max_bytes=100)
    for key in (b"a", b"b"):
        cache.put(key, text_of(40))
    assert cache.get(b"a") is not None
    cache.put(b"c", text_of(40))
    cache.put(b"c", text_of(40))  # another thread was as fast
    cache.put(b"large", text_of(101))
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c", b"large")] == [True, False, True, False]
    assert cache.num_bytes == 80


def test_threads_that_share_a_small_cache_get_the_same_scores() -> None:
    with Reranker("default", passage_cache_bytes=40_000) as reranker, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: reranker.score(QUERY, PASSAGES), range(8)))
        cache = engine_of(reranker).cache
        assert all(scores == found[0] for scores in found)
        assert 0 < cache.num_bytes <= cache.max_bytes < CACHE_BYTES
        assert cache.num_bytes == sum(text.num_bytes for text in cache._texts.values())


def test_a_graph_without_its_head_is_named(tmp_path: Path, reranker: Reranker) -> None:
    from secondpass.checkpoint.checkpoint import open_checkpoint
    from secondpass.engine.late_interaction import Joining

    checkpoint = open_checkpoint("default")
    graph = checkpoint.graph()
    assert graph is not None
    with pytest.raises(CheckpointError, match=r"not whole .*num_lead"):
        Joining.read(graph, {**checkpoint.config, "late_interaction": {}})


def test_bytes_of_the_cache_are_checked() -> None:
    with pytest.raises(ValueError, match="passage_cache_bytes is -1"):
        Reranker("default", passage_cache_bytes=-1)
