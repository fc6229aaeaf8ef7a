"""How well a ranking keeps its deadline, and what it is worth: `rank(budget_ms=...)` and the cascade on real data.

    python benchmarks/deadline.py SETS/nq-qed SETS/medquad-dev --budgets 20 40 80 160

For each budget: calls, the median and 99th percentile of the time taken over the budget, candidates scored, and
nDCG@10 of the data sets' own BM25 candidates, in their order. With --large FOLDER also the cascade of the embedded
model and that one. Only on an idle machine do the times mean anything.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secondpass import Cascade, Reranker


@dataclass(frozen=True)
class Query:
    text: str
    candidates: list[str]  # as BM25 has them
    gains: list[int]  # of the candidates
    ideal: list[int]  # all gains of the query, largest first


def lines(file: Path) -> Iterator[dict[str, str]]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def read(folder: Path, depth: int, limit: int) -> list[Query]:
    texts = {
        each["_id"]: f"{each.get('title', '')}\n{each['text']}".strip() for each in lines(folder / "corpus.jsonl.gz")
    }
    queries = {each["_id"]: each["text"] for each in lines(folder / "queries.jsonl.gz")}
    gains: dict[str, dict[str, int]] = defaultdict(dict)
    for file in (folder / "qrels").iterdir():
        for query, text, gain in list(csv.reader(file.open(encoding="utf-8"), delimiter="\t"))[1:]:
            gains[query][text] = int(gain)
    found: dict[str, list[str]] = defaultdict(list)
    with gzip.open(folder / "bm25-top100.tsv.gz", "rt", encoding="utf-8") as stream:
        for query, text, *_ in csv.reader(stream, delimiter="\t"):
            if text in texts and len(found[query]) < depth:
                found[query].append(text)
    kept = sorted(query for query in queries if any(gains[query].values()) and query in found)[:limit]
    return [
        Query(
            queries[query],
            [texts[text] for text in found[query]],
            [gains[query].get(text, 0) for text in found[query]],
            sorted(gains[query].values(), reverse=True),
        )
        for query in kept
    ]


def ndcg(query: Query, order: list[int]) -> float:
    def dcg(gains: list[int]) -> float:
        return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains[:10]))

    return dcg([query.gains[place] for place in order]) / dcg(query.ideal)


def measure(ranker: Reranker | Cascade, queries: list[Query], budget: float | None) -> str:
    over, scored, gains, taken = [], [], [], []
    for query in queries:
        started = time.perf_counter()
        ranking = ranker.rank(query.text, query.candidates, budget_ms=budget)
        taken.append(1000 * (time.perf_counter() - started))
        over.append(0.0 if budget is None else taken[-1] - budget)
        scored.append(len(ranking) - ranking.usage.unscored)
        gains.append(ndcg(query, [hit.index for hit in ranking]))
    over.sort()
    taken.sort()
    late = "-" if budget is None else f"{over[int(0.99 * (len(over) - 1))] / budget:+.1%}"
    share = "-" if budget is None else f"{sum(x > 0 for x in over) / len(over):.1%}"
    return (
        f"{len(queries)} | {taken[len(taken) // 2]:.1f} | {late} | {share} "
        f"| {sum(scored) / len(scored):.1f} | {sum(gains) / len(gains):.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--budgets", type=float, nargs="+", default=[10, 20, 40, 80, 160])
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--queries", type=int, default=100, help="of each data set")
    parser.add_argument("--model", default="default")
    parser.add_argument("--large", help="the second model of a cascade")
    parser.add_argument("--keep", type=int, nargs="+", default=[10, 20])
    options = parser.parse_args()
    queries = [query for folder in options.data for query in read(folder, options.depth, options.queries)]
    rankers: dict[str, Reranker | Cascade] = {options.model: Reranker(options.model)}
    if options.large is not None:
        rankers |= {
            f"cascade, keep {keep}": Cascade(options.model, options.large, keep=keep) for keep in options.keep
        }
        rankers[options.large] = Reranker(options.large)
    first = sum(ndcg(query, list(range(len(query.candidates)))) for query in queries) / len(queries)
    print(f"BM25's own order: nDCG@10 {first:.4f}; at most {options.depth} candidates\n")
    print("| ranker | budget ms | calls | median ms | over at the 99th percentile | calls over | scored | nDCG@10 |")
    print("|---|---|---|---|---|---|---|---|")
    for name, ranker in rankers.items():
        ranker.warm_up()
        for budget in [*options.budgets, None]:
            print(f"| {name} | {budget or 'none'} | {measure(ranker, queries, budget)} |", flush=True)


if __name__ == "__main__":
    main()
