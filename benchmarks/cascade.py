"""What a cascade, a smaller depth and a deadline cost in quality, and what they save in time.

    python benchmarks/cascade.py quality SETS/nq-qed SETS/cranfield --queries 50
    python benchmarks/cascade.py time SETS/nq-qed SETS/cranfield --queries 8
    python benchmarks/cascade.py time SETS/nq-qed --queries 4 --large FOLDER

The embedded model reads all of BM25's first 100 at 256 tokens, or the cascade's first stage reads them at 64 tokens
and only the first of its list at 256. `quality` is nDCG@10, with scores that are computed once and kept; `time` is
the median of whole calls, the rankers taking turns. With --large a second model is the cascade's last stage instead.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from deadline import Query, ndcg, read

from secondpass import Cascade, Reranker

DEPTH = 100
SHORT = 64  # tokens that the cheap stage reads
KEEPS = (10, 20, 40)
BUDGETS = (100, 200, 400)


@dataclass(frozen=True)
class Way:
    """How a list is ranked: by what, how much of it, and in which time."""

    ranker: Reranker | Cascade | None  # None: BM25
    depth: int = DEPTH
    budget_ms: float | None = None

    def order(self, query: Query) -> list[int]:
        if self.ranker is None:
            return list(range(len(query.candidates)))
        ranking = self.ranker.rank(query.text, query.candidates[: self.depth], budget_ms=self.budget_ms)
        return [*(hit.index for hit in ranking), *range(self.depth, len(query.candidates))]


def ways(large: str | None, cache: Path | None, *, has_budgets: bool) -> dict[str, Way]:
    small = Reranker(max_length=SHORT, score_cache=cache)
    whole = Reranker(score_cache=cache) if large is None else Reranker(large)
    if has_budgets:
        small.warm_up()
        whole.warm_up()
    name = "256 tokens" if large is None else "the large model"
    cascades = {keep: Cascade(small=small, large=whole, keep=keep) for keep in KEEPS}
    made = {f"all at {name}": Way(whole), f"all at {SHORT} tokens": Way(small)}
    made |= {f"BM25's first {keep} at {name}": Way(whole, depth=keep) for keep in KEEPS}
    made |= {f"cascade: the first {keep} at {name}": Way(cascade) for keep, cascade in cascades.items()}
    for budget in BUDGETS if has_budgets else ():
        made[f"deadline {budget} ms, {name}"] = Way(whole, budget_ms=budget)
        made[f"deadline {budget} ms, cascade"] = Way(cascades[20], budget_ms=budget)
    return made


def quality(sets: dict[str, list[Query]], made: dict[str, Way]) -> None:
    row(["nDCG@10", *(f"{name} ({len(queries)})" for name, queries in sets.items()), "mean"])
    row(["---"] * (len(sets) + 2))
    for name, way in [("BM25's own order", Way(None)), *made.items()]:
        means = [statistics.fmean(ndcg(query, way.order(query)) for query in queries) for queries in sets.values()]
        row([name, *(f"{mean:.4f}" for mean in [*means, statistics.fmean(means)])])


def times(queries: list[Query], made: dict[str, Way]) -> None:
    taken: dict[str, list[float]] = {name: [] for name in made}
    gains: dict[str, list[float]] = {name: [] for name in made}
    for query in queries:
        for name, way in made.items():
            started = time.perf_counter()
            order = way.order(query)
            taken[name].append(1000 * (time.perf_counter() - started))
            gains[name].append(ndcg(query, order))
    whole = statistics.median(next(iter(taken.values())))
    row([f"{len(queries)} queries", "median ms", "largest ms", "of the first", "nDCG@10"])
    row(["---"] * 5)
    for name, each in taken.items():
        median = statistics.median(each)
        gain = statistics.fmean(gains[name])
        row([name, f"{median:.0f}", f"{max(each):.0f}", f"{median / whole:.0%}", f"{gain:.4f}"])


def row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "time"])
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--queries", type=int, default=50, help="of each data set")
    parser.add_argument("--large", help="the model of the last stage, else the embedded one at its full length")
    parser.add_argument("--scores", type=Path, help="a file in which `quality` keeps scores from run to run")
    options = parser.parse_args()
    sets = {folder.name: read(folder, DEPTH, options.queries) for folder in options.data}
    if options.what == "time":
        times([query for queries in sets.values() for query in queries], ways(options.large, None, has_budgets=True))
        return
    with tempfile.TemporaryDirectory() as temporary:
        quality(sets, ways(options.large, options.scores or Path(temporary) / "scores", has_budgets=False))


if __name__ == "__main__":
    main()
