"""BM25 against its formula, and search among vectors against sorting all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from secondpass.retrieval.bm25 import BM25, best
from secondpass.retrieval.vectors import VectorIndex
from secondpass.retrieval.words import words

TEXTS = ["the cold river", "a river, a bridge and a river", "snow", "", "寒冷的河流", "long cold winter by the river"]


def by_formula(query: str, texts: list[str], k1: float = 0.9, b: float = 0.4) -> list[float]:
    """Lucene's variant, as published by Kamphuis et al. 2020."""
    rows = [words(text) for text in texts]
    mean = sum(map(len, rows)) / len(rows)
    scores = []
    for row in rows:
        score = 0.0
        for word in words(query):
            holding = sum(word in other for other in rows)
            idf = math.log(1 + (len(rows) - holding + 0.5) / (holding + 0.5))
            count = row.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(row) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["cold river", "river river", "河流", "bridge over nothing"])
def test_scores_are_those_of_the_formula(query: str) -> None:
    assert BM25(TEXTS).scores(query) == pytest.approx(by_formula(query, TEXTS), abs=1e-5)


def test_search_finds_only_texts_that_share_a_word() -> None:
    index = BM25(TEXTS)
    assert [place for place, _ in index.search("cold river", 10)] == [0, 5, 1]
    assert [place for place, _ in index.search("河流", 10)] == [4]
    assert index.search("unheard", 10) == index.search("", 10) == []
    assert len(index.search("river", 2)) == 2


def test_common_words_count_only_where_there_are_no_others() -> None:
    index = BM25(TEXTS)
    assert index.search("is the river cold", 9) == index.search("river cold", 9)
    assert {place for place, _ in index.search("the", 9)} == {0, 5}


@pytest.mark.parametrize("texts", [[], ["", "..."]])
def test_nothing_to_find(texts: list[str]) -> None:
    index = BM25(texts)
    assert len(index) == len(texts) and index.search("river", 3) == []


def test_best_keeps_equal_scores_in_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 4, size=12).astype(np.float32)
        expected = sorted(range(12), key=lambda place: -scores[place])[:5]
        assert [place for place, _ in best(scores, 5)] == expected
    assert best(scores, 0) == []


class Letters:
    """Vectors of letter counts."""

    def encode(self, texts: list[str], *, kind: str = "document") -> NDArray[np.float32]:
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], np.float32).reshape(-1, 3)


def test_vectors_are_compared_by_their_cosine() -> None:
    seen: list[tuple[int, int]] = []
    index = VectorIndex(Letters(), ["aab", "bbbbbb", "", "ab"], progress=lambda *done: seen.append(done))
    assert seen == [(4, 4)]
    assert index.scores("ba") == pytest.approx([3 / math.sqrt(10), 1 / math.sqrt(2), 0, 1], abs=1e-6)
    assert [place for place, _ in index.search("ba", 3)] == [3, 0, 1]
    assert VectorIndex(Letters(), []).search("a", 3) == []
