"""Text-ranking sets in the BEIR layout, and a plain BM25 over them."""

import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from scipy.sparse import csr_matrix

WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Collection:
    passages: dict[str, str]  # title and text
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def read_jsonl(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_collection(folder: Path) -> Collection:
    """The set in `folder`; of the qrels, the only split there is."""
    rows = read_jsonl(folder / "corpus.jsonl.gz")
    passages = {row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in rows}
    queries = {row["_id"]: row["text"] for row in read_jsonl(folder / "queries.jsonl.gz")}
    qrels: dict[str, dict[str, int]] = {}
    (path,) = (folder / "qrels").glob("*.tsv")
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        query, passage, score = line.split("\t")
        qrels.setdefault(query, {})[passage] = int(score)
    return Collection(passages=passages, queries=queries, qrels=qrels)


def by_hash(ids: list[str], count: int) -> list[str]:
    """At most `count` of the ids, the same ones on every machine."""
    return sorted(ids, key=lambda name: crc32(name.encode()))[:count]


class Bm25:
    """BM25 (Lucene variant, k1 0.9, b 0.4) as a share of the highest score that the query could reach."""

    def __init__(self, passages: list[str], k1: float = 0.9, b: float = 0.4) -> None:
        self.words: dict[str, int] = {}
        bags = [WORD.findall(text.lower()) for text in passages]
        rows = np.repeat(np.arange(len(bags)), [len(bag) for bag in bags])
        columns = np.array([self.words.setdefault(word, len(self.words)) for bag in bags for word in bag])
        counts = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(bags), len(self.words)))
        counts.sum_duplicates()
        lengths = np.array([len(bag) for bag in bags])
        found = np.bincount(counts.indices, minlength=len(self.words))
        self.idf = np.log(1 + (len(bags) - found + 0.5) / (found + 0.5))
        norm = k1 * (1 - b + b * lengths / lengths.mean())
        per_entry = np.repeat(norm, np.diff(counts.indptr))
        counts.data = self.idf[counts.indices] * counts.data / (counts.data + per_entry)
        self.weights = counts.T.tocsr()  # (words, passages)

    def scores(self, queries: list[str]) -> np.ndarray:
        """(queries, passages), 0..1."""
        bags = [{self.words[w] for w in WORD.findall(text.lower()) if w in self.words} for text in queries]
        rows = np.repeat(np.arange(len(bags)), [len(bag) for bag in bags])
        columns = np.array([word for bag in bags for word in bag], dtype=np.int64)
        matrix = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(bags), len(self.words)))
        best = np.maximum(matrix @ self.idf, 1e-6)
        return np.asarray((matrix @ self.weights).todense(), dtype=np.float32) / best[:, None].astype(np.float32)
