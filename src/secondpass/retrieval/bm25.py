"""BM25 over texts in memory, by the `bm25s` package."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from secondpass.errors import MissingExtra
from secondpass.retrieval.words import words

if TYPE_CHECKING:
    import bm25s

Found = list[tuple[int, float]]  # indexes of texts with their scores, best first

K1, B = 0.9, 0.4  # Anserini's, which BEIR's tables use
# Lucene's English list, left out of queries. Other languages do without: their common words weigh little anyway.
_COMMON = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with".split()
)


class BM25:
    """Finds texts by the words that they share with a query.

    Robertson et al. 1994, in Lucene's variant: no score is negative. Words are those of `words`, without stemming.
    Raises MissingExtra without `bm25s`.
    """

    def __init__(self, texts: Iterable[str], *, k1: float = K1, b: float = B) -> None:
        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in texts]
        self._size = len(ids)
        self._vocabulary = vocabulary
        self._index = _index(ids, vocabulary, k1, b) if vocabulary else None

    def __len__(self) -> int:
        return self._size

    def scores(self, query: str) -> NDArray[np.float32]:
        """The score of every text (N,); 0 where it shares no word with the query."""
        asked = words(query)
        asked = [word for word in asked if word not in _COMMON] or asked
        known = [self._vocabulary[word] for word in asked if word in self._vocabulary]
        if self._index is None or not known:
            return np.zeros(self._size, np.float32)
        return np.asarray(self._index.get_scores_from_ids(known), np.float32)

    def search(self, query: str, top_k: int) -> Found:
        """The best top_k texts that share a word with the query; equal scores in input order."""
        scores = self.scores(query)
        return [(index, score) for index, score in best(scores, top_k) if score > 0]


def best(scores: NDArray[np.float32], top_k: int) -> Found:
    """Indexes and scores of the top_k highest, best first; equal scores in input order."""
    top_k = min(top_k, len(scores))
    if top_k < 1:
        return []
    least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    indexes = np.flatnonzero(scores >= least)  # with all that equal the last, so that their order is no accident
    order = indexes[np.argsort(-scores[indexes], kind="stable")][:top_k]
    return [(int(index), float(scores[index])) for index in order]


def _index(ids: list[list[int]], vocabulary: dict[str, int], k1: float, b: float) -> bm25s.BM25:
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtra("bm25s", "eval") from error
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index((ids, vocabulary), show_progress=False, create_empty_token=False)
    return index
