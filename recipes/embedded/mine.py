"""Candidate lists for training: each query with its positive, hard and random negatives, and two teachers' scores.

Per set one file `lists.npz`: candidates (Q, 16) as rows of `passages`, the positive first; cosine and BM25 scores of
the same shape; a mask of the candidates in use; and `natural`, BM25's first 30 of some queries, to fit the teacher.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from biencoder import BiEncoder
from collection import Bm25, Collection, by_hash, read_collection
from derived import code, halves

NUM_CANDIDATES = 16
BM25_DEPTH, DENSE_DEPTH = 60, 30
NUM_NATURAL, NATURAL_DEPTH = 100, 30
DUPLICATE = 0.95  # cosine between passages


@dataclass(frozen=True, kw_only=True)
class Source:
    written_by_people: bool
    max_queries: int = 20_000
    made: Callable[[Path], Collection] | None = None  # from the folder of the training sets, where the set is derived

    @property
    def share(self) -> float:
        """How often a list of this set is drawn for training, against one of weak pairs."""
        return 2.0 if self.written_by_people else 1.5 if self.made else 1.0


SOURCES = {
    "stackexchange-coffee": Source(written_by_people=True),
    "selqa-dev": Source(written_by_people=True),
    "covid-qa": Source(written_by_people=True),
    "pubmedqa": Source(written_by_people=True),
    "qamr": Source(written_by_people=True),
    "squad-sentences": Source(written_by_people=True),
    "tldr-en": Source(written_by_people=False),
    "wikipedia-vital-en": Source(written_by_people=False),
    "medquad": Source(written_by_people=True, max_queries=6_000),
    "openstax": Source(written_by_people=False, max_queries=3_000),
    "debian-descriptions": Source(written_by_people=False, max_queries=4_000),
    "docs-software-en": Source(written_by_people=False, max_queries=4_500),
    "code": Source(written_by_people=False, max_queries=3_000, made=code),
    "halves": Source(written_by_people=False, made=halves),
}


def subset(collection: Collection, max_queries: int) -> Collection:
    """The set cut to `max_queries` queries and their passages, where it has more."""
    if len(collection.qrels) <= max_queries:
        return collection
    queries = by_hash(sorted(collection.qrels), max_queries)
    kept = {passage for query in queries for passage in collection.qrels[query]}
    return Collection(
        passages={name: text for name, text in collection.passages.items() if name in kept},
        queries={name: collection.queries[name] for name in queries},
        qrels={name: collection.qrels[name] for name in queries},
    )


def top(scores: np.ndarray, depth: int) -> np.ndarray:
    depth = min(depth, scores.shape[1] - 1)
    part = np.argpartition(-scores, depth, axis=1)[:, :depth]
    return np.take_along_axis(part, np.argsort(-np.take_along_axis(scores, part, 1), axis=1), 1)


def mine(collection: Collection, encoder: BiEncoder, *, margin: float) -> dict[str, np.ndarray]:
    """Arrays of `lists.npz`. A candidate with a cosine `margin` above the positive's may be relevant: left out."""
    rng = np.random.default_rng(0)
    names = list(collection.passages)
    row_of = {name: row for row, name in enumerate(names)}
    queries = [query for query, judged in collection.qrels.items() if any(judged.values())]
    passages = encoder.encode(list(collection.passages.values()))
    vectors = encoder.encode([collection.queries[query] for query in queries])
    bm25 = Bm25(list(collection.passages.values()))
    rows, natural = [], []
    for start in range(0, len(queries), 256):
        chunk = queries[start : start + 256]
        cosine = vectors[start : start + 256] @ passages.T
        lexical = bm25.scores([collection.queries[query] for query in chunk])
        tops = zip(top(cosine, DENSE_DEPTH), top(lexical, BM25_DEPTH), strict=True)
        if start == 0:
            natural = natural_lists(collection, names, chunk[:NUM_NATURAL], cosine, lexical)
        for row, (query, (dense, words)) in enumerate(zip(chunk, tops, strict=True)):
            relevant = [row_of[name] for name, grade in collection.qrels[query].items() if grade > 0]
            positive = relevant[int(rng.integers(len(relevant)))]
            allowed = (passages @ passages[positive] <= DUPLICATE) & (cosine[row] < cosine[row, positive] + margin)
            allowed[relevant] = False
            listed = [positive, *pick(dense, words, allowed, rng)]
            padded = np.resize(listed, NUM_CANDIDATES)
            rows.append((padded, cosine[row, padded], lexical[row, padded], len(listed)))
    candidates, cosines, lexicals, counts = (np.array(column) for column in zip(*rows, strict=True))
    mask = np.arange(NUM_CANDIDATES) < counts[:, None]
    lists = {"candidates": candidates, "cosine": cosines, "bm25": lexicals, "mask": mask}
    return lists | {"queries": np.array(queries), "natural": natural}


def natural_lists(
    collection: Collection, names: list[str], queries: list[str], cosine: np.ndarray, lexical: np.ndarray
) -> np.ndarray:
    """(queries, 30, 3): cosine, BM25 and grade of BM25's first 30, nothing left out; the teacher is fitted to them.

    The filter of the mined lists looks at the cosine, which therefore seems better there than it is.
    """
    found = top(lexical[: len(queries)], NATURAL_DEPTH)
    grades = [
        [min(1, collection.qrels[query].get(names[row], 0)) for row in rows]
        for query, rows in zip(queries, found.tolist(), strict=True)
    ]
    scores = [np.take_along_axis(values[: len(queries)], found, 1) for values in (cosine, lexical)]
    return np.stack([*scores, np.array(grades)], -1).astype(np.float32)


def pick(dense: np.ndarray, lexical: np.ndarray, allowed: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Up to 15 negatives: 7 from each ranking, drawn towards its top, and the rest at random."""
    picked: list[int] = []
    for ranking in (dense, lexical):
        pool = [row for row in ranking.tolist() if allowed[row] and row not in picked]
        weights = 1 / (np.arange(len(pool)) + 5.0)
        size = min(7, len(pool))
        if size:
            picked += rng.choice(pool, size, replace=False, p=weights / weights.sum()).tolist()
    others = [row for row in rng.integers(len(allowed), size=30).tolist() if allowed[row] and row not in picked]
    return picked + list(dict.fromkeys(others))[: NUM_CANDIDATES - 1 - len(picked)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path, help="folder of the training sets")
    parser.add_argument("bi_encoder", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-length", type=int, default=160)
    parser.add_argument("--max-queries", type=int, default=1_000_000, help="of each set, for a trial of the recipe")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    encoder = BiEncoder(arguments.bi_encoder, arguments.max_length)
    for name, source in SOURCES.items():
        if (arguments.out / name / "texts.json").exists():
            continue  # so that a run cut short goes on where it stopped
        whole = source.made(arguments.train) if source.made else read_collection(arguments.train / name)
        collection = subset(whole, min(source.max_queries, arguments.max_queries))
        lists = mine(collection, encoder, margin=0.15 if source.written_by_people else 0.05)
        (arguments.out / name).mkdir(parents=True, exist_ok=True)
        np.savez(arguments.out / name / "lists.npz", **lists)
        queries = [collection.queries[query] for query in lists["queries"]]
        texts = {"queries": queries, "passages": list(collection.passages.values())}
        (arguments.out / name / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
        print(name, lists["candidates"].shape, len(collection.passages), lists["mask"].mean(), flush=True)


if __name__ == "__main__":
    main()
