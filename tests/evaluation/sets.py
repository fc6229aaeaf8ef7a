"""A small set with scorers whose figures are known."""

from __future__ import annotations

from collections.abc import Sequence

from secondpass.evaluation import Dataset
from secondpass.types import DocumentLike

NUM_QUERIES = 12
LETTERS = "bcdefghijklm"  # words of the tiny model's vocabulary, so that no two queries are the same to it


def small_set(name: str = "small") -> Dataset:
    """Twelve queries, each with one relevant document, which shares one word; five others share two."""
    queries = {f"q{n}": f"river{n} bridge{n} {LETTERS[n]}" for n in range(NUM_QUERIES)}
    documents, qrels = {}, {}
    for n in range(NUM_QUERIES):
        documents[f"r{n}"] = f"river{n} is the answer"
        documents |= {f"o{n}-{k}": f"river{n} bridge{n} " + "stone " * (k + 1) for k in range(5)}
        qrels[f"q{n}"] = {f"r{n}": 1, f"o{n}-0": 0}
    return Dataset(name=name, queries=queries, documents=documents, qrels=qrels)


class Wise:
    """Knows the answer."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def score(self, query: str, documents: Sequence[DocumentLike]) -> list[float]:
        self.asked.append(len(documents))
        return [float("answer" in str(document)) for document in documents]


class Foolish:
    """Puts the answer last."""

    def score(self, query: str, documents: Sequence[DocumentLike]) -> list[float]:
        return [-float("answer" in str(document)) for document in documents]
