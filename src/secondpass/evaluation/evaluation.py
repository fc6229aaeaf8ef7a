"""A reranker on a set: what the first stage found, before and after."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral

import numpy as np

from secondpass.errors import SecondpassError
from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.evaluation.datasets.trec import Run
from secondpass.evaluation.first_stage import bm25_run, cut, given_run
from secondpass.evaluation.measures import Measure, as_measures, ranked
from secondpass.evaluation.significance import Figures
from secondpass.types import Progress, Scorer

MEASURES = ("nDCG@10", "MRR@10", "recall@10", "MAP", "hit_rate@1")
DEPTHS = (100,)
TIMED_QUERIES = 10  # for the depths that are not scored on their own


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds per query, and how many queries they come from."""

    p50_s: float
    p95_s: float
    pairs_per_s: float
    num_queries: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model on one set. first and scores are its candidates with the first stage's and the model's scores.

    latency is empty where nothing was timed.
    """

    model: str
    dataset: Dataset
    first_stage: str
    first: Run = field(repr=False)
    scores: Run = field(repr=False)
    depths: tuple[int, ...]
    measures: tuple[Measure, ...]
    latency: Mapping[int, Latency]
    notes: tuple[str, ...] = ()

    @property
    def deepest(self) -> int:
        return self.depths[-1]

    def before(self, measure: str | Measure, depth: int) -> Figures:
        """The measure of each query's first `depth` candidates in the order of the first stage (Q,).

        Raises ValueError for a measure or a depth that was not evaluated.
        """
        return self._measured(False, measure, depth)

    def after(self, measure: str | Measure, depth: int) -> Figures:
        """The same candidates in the order of the model (Q,)."""
        return self._measured(True, measure, depth)

    def _measured(self, is_after: bool, measure: str | Measure, depth: int) -> Figures:
        (asked,) = as_measures([measure])
        if asked not in self.measures or depth not in self.depths:
            there = f"{', '.join(map(str, self.measures))} at {', '.join(map(str, self.depths))}"
            raise ValueError(f"{asked} at depth {depth} was not evaluated; there are {there}")
        return self._figures[is_after, asked, depth]

    @cached_property
    def _figures(self) -> dict[tuple[bool, Measure, int], Figures]:
        figures = {}
        for depth in self.depths:
            for is_after, scores in ((False, self.first), (True, self.scores)):
                shown = {q: {name: scores[q][name] for name in ranked(self.first[q])[:depth]} for q in self.first}
                for measure in self.measures:
                    values = [measure(grades, shown[query]) for query, grades in self.dataset.qrels.items()]
                    figures[is_after, measure, depth] = np.array(values)
        return figures


def evaluate(
    scorer: Scorer,
    dataset: Dataset,
    *,
    first_stage: Mapping[str, Mapping[str, float]] | None = None,
    depths: Iterable[int] = DEPTHS,
    measures: Iterable[str | Measure] = MEASURES,
    model: str = "model",
    first_stage_name: str | None = None,
    is_timed: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """The set's candidates reranked by the scorer, with the figures of each query before and after.

    first_stage: scores by query and document; BM25's where None. The candidates of the greatest depth are scored
    once, and lesser depths are cut from them. is_timed: False where the scorer looks scores up in a cache; `timed`
    measures latency afterwards. Raises SecondpassError for a scorer that gives too few scores, or NaN.
    """
    depths = as_depths(depths)
    first = bm25_run(dataset, depths[-1]) if first_stage is None else given_run(dataset, first_stage, depths[-1])
    scores, seconds = score_run(scorer, dataset, first, progress)
    found = Evaluation(
        model=model,
        dataset=dataset,
        first_stage=first_stage_name or ("BM25" if first_stage is None else "run"),
        first=first,
        scores=scores,
        depths=depths,
        measures=as_measures(measures),
        latency={},
        notes=_notes(first),
    )
    if not is_timed:
        return found
    deepest = _latency(seconds, [len(candidates) for candidates in first.values()])
    return replace(found, latency={**_latencies(scorer, found, depths[:-1]), depths[-1]: deepest})


def _notes(first: Run) -> tuple[str, ...]:
    empty = sum(not candidates for candidates in first.values())
    note = f"the first stage found nothing for {empty} of {len(first)} queries, which count as 0"
    return (note,) if empty else ()


def timed(evaluation: Evaluation, scorer: Scorer) -> Evaluation:
    """The evaluation with the scorer's latency at each depth, from a part of the queries."""
    return replace(evaluation, latency=_latencies(scorer, evaluation, evaluation.depths))


def _latencies(scorer: Scorer, evaluation: Evaluation, depths: Sequence[int]) -> dict[int, Latency]:
    return {depth: measure_latency(scorer, evaluation.dataset, evaluation.first, depth) for depth in depths}


def as_depths(depths: Iterable[int]) -> tuple[int, ...]:
    """Different depths, the greatest last. Raises ValueError for none, or for what is no number of 1 or more."""
    if not isinstance(depths, Iterable):
        raise TypeError(f"depths is a {type(depths).__name__}; give a list, [{depths!r}] for one")
    found = list(dict.fromkeys(depths))
    if not found or not all(isinstance(depth, Integral) and depth >= 1 for depth in found):
        raise ValueError(f"depths are {found}; give one or more of 1 or more")
    return tuple(sorted(map(int, found)))


def score_run(
    scorer: Scorer, dataset: Dataset, first: Run, progress: Progress | None = None
) -> tuple[Run, list[float]]:
    """The scorer's scores of all candidates, and the seconds that each query took. Raises SecondpassError."""
    scores: Run = {}
    seconds = []
    _warm_up(scorer, dataset, first)
    for done, (query, candidates) in enumerate(first.items(), 1):
        started = time.perf_counter()
        found = _scored(scorer, dataset, query, list(candidates))
        seconds.append(time.perf_counter() - started)
        scores[query] = dict(zip(candidates, found, strict=True))
        if progress is not None:
            progress(done, len(first))
    return scores, seconds


def measure_latency(scorer: Scorer, dataset: Dataset, first: Run, depth: int) -> Latency:
    """The time for the first `depth` candidates of some queries, evenly drawn."""
    queries = [query for query, candidates in first.items() if candidates]
    drawn = [queries[int(index)] for index in np.linspace(0, len(queries) - 1, min(TIMED_QUERIES, len(queries)))]
    _warm_up(scorer, dataset, first)
    seconds, pairs = [], []
    for query in drawn:
        candidates = list(cut(first[query], depth))
        started = time.perf_counter()
        _scored(scorer, dataset, query, candidates)
        seconds.append(time.perf_counter() - started)
        pairs.append(len(candidates))
    return _latency(seconds, pairs)


def _latency(seconds: Sequence[float], pairs: Sequence[int]) -> Latency:
    """Of the queries that had candidates."""
    taken = [second for second, count in zip(seconds, pairs, strict=True) if count]
    if not taken:
        return Latency(p50_s=0.0, p95_s=0.0, pairs_per_s=0.0, num_queries=0)
    p50, p95 = np.percentile(taken, [50, 95])
    return Latency(
        p50_s=float(p50), p95_s=float(p95), pairs_per_s=sum(pairs) / max(sum(taken), 1e-9), num_queries=len(taken)
    )


def _warm_up(scorer: Scorer, dataset: Dataset, first: Run) -> None:
    """One pair, so that no query pays for what is set up on first use."""
    query = next((query for query, candidates in first.items() if candidates), None)
    if query is not None:
        _scored(scorer, dataset, query, list(first[query])[:1])


def _scored(scorer: Scorer, dataset: Dataset, query: str, candidates: Sequence[str]) -> list[float]:
    if not candidates:
        return []
    scores = [
        float(score) for score in scorer.score(dataset.queries[query], [dataset.documents[c] for c in candidates])
    ]
    if len(scores) != len(candidates):
        raise SecondpassError(
            f"{dataset.name}: the scorer gave {len(scores)} scores for {len(candidates)} documents of query {query}"
        )
    odd = next((index for index, score in enumerate(scores) if math.isnan(score)), None)
    if odd is not None:
        raise SecondpassError(f"{dataset.name}: the scorer gave NaN for {candidates[odd]} of query {query}")
    return scores
