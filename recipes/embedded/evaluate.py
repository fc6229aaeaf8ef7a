"""nDCG@10 of model folders on the development sets: BM25's first passages, reranked by what ships, as it ships."""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from collection import read_collection
from fit import ndcg
from sets import DEV

from secondpass import Reranker


def read_candidates(folder: Path, depth: int, max_queries: int) -> dict[str, list[str]]:
    """Passages of each of the first queries by identifier, in BM25's order."""
    found: dict[str, list[str]] = {}
    with gzip.open(folder / "bm25-top100.tsv.gz", "rt", encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            query, passage, rank, _ = line.split("\t")
            if int(rank) <= depth:
                found.setdefault(query, []).append(passage)
    return dict(sorted(found.items())[:max_queries])


def evaluate(folder: Path, rerankers: dict[str, Reranker], depth: int, max_queries: int) -> dict[str, float]:
    collection = read_collection(folder)
    rows: dict[str, list[float]] = {"BM25": [], **{name: [] for name in rerankers}}
    for query, passages in read_candidates(folder, depth, max_queries).items():
        judged = collection.qrels.get(query, {})
        if not any(judged.values()):
            continue
        text, texts = collection.queries[query], [collection.passages[name] for name in passages]
        grades = np.array([judged.get(name, 0) for name in passages], dtype=float)
        rows["BM25"].append(ndcg(-np.arange(len(passages)), grades, list(judged.values())))
        for name, reranker in rerankers.items():
            rows[name].append(ndcg(np.array(reranker.score(text, texts)), grades, list(judged.values())))
    return {name: round(float(np.mean(values)), 4) for name, values in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dev", type=Path, help="folder of the development sets")
    parser.add_argument("models", type=Path, nargs="+", help="folders to compare")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--depth", type=int, default=30)
    parser.add_argument("--max-queries", type=int, default=50)
    arguments = parser.parse_args()
    rerankers = {str(folder): Reranker(folder, max_length=256) for folder in arguments.models}
    figures = {}
    for name in DEV:
        figures[name] = evaluate(arguments.dev / name, rerankers, arguments.depth, arguments.max_queries)
        print(name, figures[name], flush=True)
    means = {name: float(np.mean([one[name] for one in figures.values()])) for name in next(iter(figures.values()))}
    print("mean", {name: round(value, 4) for name, value in means.items()})
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
