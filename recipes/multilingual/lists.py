"""The sets of the multilingual recipe, cut to small collections, and word matching over pieces."""

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from scipy.sparse import csr_matrix

from secondpass.evaluation import load_dataset

BLOCK = 16  # neighbours in a corpus are of one article or page: they stay together, as hard negatives


@dataclass(frozen=True, kw_only=True)
class Source:
    max_passages: int
    max_queries: int
    max_length: int = 192  # tokens of a passage
    written_by_people: bool = False


SOURCES = {
    "docs-software-zh": Source(max_passages=800, max_queries=900),
    "jaquad": Source(max_passages=480, max_queries=800, max_length=256, written_by_people=True),
    "squad-sentences": Source(max_passages=1_200, max_queries=1_000, written_by_people=True),
    "docs-software-other": Source(max_passages=480, max_queries=500),
    "wikipedia-vital-es": Source(max_passages=400, max_queries=300),
    "qamr": Source(max_passages=480, max_queries=600, written_by_people=True),
    "cmrc2018-trial": Source(max_passages=128, max_queries=250, max_length=512, written_by_people=True),
    "tldr-zh": Source(max_passages=240, max_queries=200),
}
HELD_OUT = ("cmrc2018-trial", "tldr-zh")  # for every choice; never trained on


@dataclass(frozen=True, kw_only=True)
class Collection:
    passages: dict[str, str]  # title and text
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def read_collection(folder: Path) -> Collection:
    """The set in `folder`, in the BEIR layout; of the qrels, what is relevant."""
    found = load_dataset(folder)
    qrels = {
        query: {passage: grade for passage, grade in judged.items() if grade > 0}
        for query, judged in found.qrels.items()
    }
    return Collection(passages=dict(found.documents), queries=dict(found.queries), qrels=qrels)


def cut(collection: Collection, source: Source) -> Collection:
    """Blocks of neighbouring passages up to `max_passages`, and queries whose relevant passages are all in there.

    Passages that would be cut short are left out, so that a positive has what makes it relevant.
    """
    names = [name for name, text in collection.passages.items() if num_tokens(text) <= source.max_length]
    blocks = [names[start : start + BLOCK] for start in range(0, len(names), BLOCK)]
    blocks.sort(key=lambda block: crc32(block[0].encode()))
    kept = {name for block in blocks[: -(-source.max_passages // BLOCK)] for name in block}
    queries = [query for query, judged in collection.qrels.items() if judged.keys() <= kept]
    queries = sorted(queries, key=lambda name: crc32(name.encode()))[: source.max_queries]
    return Collection(
        passages={name: collection.passages[name] for name in names if name in kept},
        queries={name: collection.queries[name] for name in queries},
        qrels={name: collection.qrels[name] for name in queries},
    )


def num_tokens(text: str) -> float:
    """About how many tokens a text has: three for five Chinese or Japanese characters, one for four others."""
    return sum(0.6 if char >= "\u2e80" else 0.25 for char in text)


class WordMatch:
    """The graph's word matching (model.py) over a whole collection: scores of queries (Q, V) times weights (V, P)."""

    def __init__(
        self, passages: list[list[int]], weights: np.ndarray, *, k1: float, b: float, mean_length: float
    ) -> None:
        rows = np.repeat(np.arange(len(passages)), [len(ids) for ids in passages])
        columns = np.concatenate([np.array(ids, dtype=np.int64) for ids in passages])
        counts = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(passages), len(weights)))
        counts.sum_duplicates()
        lengths = np.array([len(ids) for ids in passages])
        norm = np.repeat(k1 * (1 - b + b * lengths / mean_length), np.diff(counts.indptr))
        counts.data /= counts.data + norm
        self.saturated = counts.T.tocsr()
        self.weights = weights

    def scores(self, queries: list[list[int]]) -> np.ndarray:
        """(queries, passages), 0..1: the share of the query's weight that the passage matches."""
        rows = np.repeat(np.arange(len(queries)), [len(ids) for ids in queries])
        columns = np.concatenate([np.array(ids, dtype=np.int64) for ids in queries])
        matrix = csr_matrix((self.weights[columns], (rows, columns)), shape=(len(queries), len(self.weights)))
        best = np.maximum(np.asarray(matrix.sum(1)), 1e-6)
        return (np.asarray((matrix @ self.saturated).todense()) / best).astype(np.float32)
