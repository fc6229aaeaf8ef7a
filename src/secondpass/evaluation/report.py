"""Models on sets side by side: the report's figures as plain values, and the queries that a model hurt most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.evaluation.evaluation import DEPTHS, MEASURES, Evaluation, as_depths, evaluate
from secondpass.evaluation.first_stage import bm25_run
from secondpass.evaluation.measures import Measure, ranked
from secondpass.evaluation.significance import EQUAL, RESAMPLES, Difference, difference
from secondpass.types import Progress, Scorer

AVERAGE = "average"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Evaluations of models on sets, each model on every set. seed is that of the draws."""

    evaluations: tuple[Evaluation, ...]
    seed: int = 0
    infos: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(each.model for each in self.evaluations))

    @property
    def measures(self) -> tuple[Measure, ...]:
        return self.evaluations[0].measures

    @property
    def depths(self) -> tuple[int, ...]:
        return self.evaluations[0].depths

    def of(self, model: str) -> list[Evaluation]:
        return [each for each in self.evaluations if each.model == model]

    def change(self, evaluations: Sequence[Evaluation], measure: Measure, depth: int) -> Difference:
        """From the first stage to the model, over the sets of the evaluations."""
        before = [each.before(measure, depth) for each in evaluations]
        return difference(before, [each.after(measure, depth) for each in evaluations], self.seed)

    def between(self, one: str, other: str, measure: Measure, depth: int) -> Difference:
        """From one model to another, over all sets."""
        before = [each.after(measure, depth) for each in self.of(one)]
        return difference(before, [each.after(measure, depth) for each in self.of(other)], self.seed)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The models against each other, in the order in which they are named."""
        return combinations(self.models, 2)


def compare(
    models: Mapping[str, Scorer],
    datasets: Iterable[Dataset],
    *,
    first_stages: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    depths: Iterable[int] = DEPTHS,
    measures: Iterable[str | Measure] = MEASURES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Several models, by name, on several sets. first_stages: runs by the name of the set; BM25's where None."""
    depths, measures, every = as_depths(depths), tuple(measures), list(datasets)
    if not models or not every or len({dataset.name for dataset in every}) < len(every):
        raise ValueError("give a model or more and a set or more, each set with a name of its own")
    runs = first_stages or {dataset.name: bm25_run(dataset, depths[-1]) for dataset in every}
    evaluations = [
        evaluate(
            scorer,
            dataset,
            first_stage=runs[dataset.name],
            depths=depths,
            measures=measures,
            model=name,
            first_stage_name="run" if first_stages else "BM25",
            progress=progress,
        )
        for name, scorer in models.items()
        for dataset in every
    ]
    return Report(evaluations=tuple(evaluations), seed=seed)


@dataclass(frozen=True, kw_only=True)
class HurtQuery:
    """A query that the reranker hurt: where its best relevant document stood, stands now, and what is first now."""

    dataset: str
    query: str
    before: float
    after: float
    relevant: str
    rank_before: int
    rank_after: int
    first_now: str


def worst_hurt(evaluation: Evaluation, count: int = 3) -> list[HurtQuery]:
    """The queries that lose most of the first measure at the greatest depth."""
    measure, depth = evaluation.measures[0], evaluation.deepest
    before, after = evaluation.before(measure, depth), evaluation.after(measure, depth)
    order = np.argsort(after - before, kind="stable")[:count]
    names = list(evaluation.dataset.qrels)
    return [
        _example(evaluation, names[index], float(before[index]), float(after[index]))
        for index in order
        if after[index] < before[index] - EQUAL
    ]


def _example(evaluation: Evaluation, query: str, before: float, after: float) -> HurtQuery:
    dataset = evaluation.dataset
    first, now = ranked(evaluation.first[query]), ranked(evaluation.scores[query])
    grades = dataset.qrels[query]
    relevant = next(name for name in first if grades.get(name, 0) > 0)
    return HurtQuery(
        dataset=dataset.name,
        query=dataset.queries[query],
        before=before,
        after=after,
        relevant=dataset.documents[relevant],
        rank_before=first.index(relevant) + 1,
        rank_after=now.index(relevant) + 1,
        first_now=dataset.documents[now[0]],
    )


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One model at one depth on one set, or on the average of all, by the first measure."""

    model: str
    dataset: str
    depth: int
    queries: int
    change: Difference


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One model at one depth, the mean over the sets that were timed; seconds per query."""

    model: str
    depth: int
    p50_s: float
    p95_s: float
    pairs_per_s: float
    queries: int


def rows(report: Report) -> list[ReportRow]:
    """For each model and depth a row per set, and the average where there are several."""
    measure = report.measures[0]
    found = []
    for model in report.models:
        of_model = report.of(model)
        parts = [(each.dataset.name, [each]) for each in of_model]
        parts += [(AVERAGE, of_model)] if len(of_model) > 1 else []
        for name, evaluations in parts:
            queries = sum(len(each.dataset.queries) for each in evaluations)
            for depth in report.depths:
                change = report.change(evaluations, measure, depth)
                found.append(ReportRow(model=model, dataset=name, depth=depth, queries=queries, change=change))
    return found


def summary(report: Report, every: Sequence[ReportRow]) -> list[ReportRow]:
    """One row per model: the average, or the only set, at the greatest depth."""
    last = {row.model: row for row in every if row.depth == report.depths[-1]}
    return [last[model] for model in report.models]


def verdict(report: Report, row: ReportRow) -> str:
    """The verdict on a model as a sentence."""
    change, measure = row.change, report.measures[0]
    firsts = " or ".join(dict.fromkeys(each.first_stage for each in report.evaluations))
    sets = len(report.of(row.model))
    where = f"on {row.dataset}" if sets == 1 else f"on the average of {sets} sets"
    words = {"helps": "helps", "hurts": "hurts", "cannot be told": "it cannot be told whether it helps"}
    return (
        f"{row.model}: {words[change.verdict]}. {measure} {where} goes from {change.before:.4f} to "
        f"{change.after:.4f} when the first {row.depth} of {firsts} are reranked: {change.change:+.4f} "
        f"(95% interval {change.low:+.4f} to {change.high:+.4f}, p {_p(change.p)}); "
        f"{change.helped} queries are better, {change.hurt} worse, {change.equal} equal."
    )


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def speeds(report: Report) -> list[Speed]:
    found = []
    for model in report.models:
        for depth in report.depths:
            each = [one.latency[depth] for one in report.of(model) if one.latency]
            if not each:
                continue
            found.append(
                Speed(
                    model=model,
                    depth=depth,
                    p50_s=float(np.mean([one.p50_s for one in each])),
                    p95_s=float(np.mean([one.p95_s for one in each])),
                    pairs_per_s=float(np.mean([one.pairs_per_s for one in each])),
                    queries=sum(one.num_queries for one in each),
                )
            )
    return found


def examples(report: Report, count: int) -> dict[str, list[HurtQuery]]:
    """For each model the queries that it hurts most, over all sets."""
    found = {}
    for model in report.models:
        worst = [one for each in report.of(model) for one in worst_hurt(each, count)]
        found[model] = sorted(worst, key=lambda one: one.after - one.before)[:count]
    return found


def notes(report: Report) -> list[str]:
    """What was left out, by set; each once."""
    every = [
        f"{each.dataset.name}: {note}" for each in report.evaluations for note in (*each.dataset.notes, *each.notes)
    ]
    return list(dict.fromkeys(every))


def between(report: Report) -> list[dict[str, Any]]:
    """The models against each other, by the first measure at the greatest depth."""
    depth, measure = report.depths[-1], report.measures[0]
    return [
        {"from": one, "to": other, **_difference(report.between(one, other, measure, depth))}
        for one, other in report.pairs()
    ]


def as_dict(report: Report, count: int = 3) -> dict[str, Any]:
    """Everything, for JSON: seconds, shares in 0..1, and figures of each query."""
    every = rows(report)
    return {
        "measures": [str(measure) for measure in report.measures],
        "depths": list(report.depths),
        "seed": report.seed,
        "resamples": RESAMPLES,
        "models": {model: dict((report.infos or {}).get(model, {})) for model in report.models},
        "verdicts": [
            {"model": row.model, "verdict": row.change.verdict, "sentence": verdict(report, row)}
            for row in summary(report, every)
        ],
        "results": [
            {"model": row.model, "dataset": row.dataset, "depth": row.depth, "queries": row.queries}
            | _difference(row.change)
            for row in every
        ],
        "between_models": between(report),
        "measured": [_measured(each, depth) for each in report.evaluations for depth in report.depths],
        "speed": [asdict(speed) for speed in speeds(report)],
        "worst_hurt": {model: [asdict(one) for one in some] for model, some in examples(report, count).items()},
        "notes": notes(report),
        "queries": [query for each in report.evaluations for query in _queries(each)],
    }


def _difference(change: Difference) -> dict[str, Any]:
    return {**asdict(change), "verdict": change.verdict}


def _measured(evaluation: Evaluation, depth: int) -> dict[str, Any]:
    """The means of every measure."""
    return {
        "model": evaluation.model,
        "dataset": evaluation.dataset.name,
        "first_stage": evaluation.first_stage,
        "depth": depth,
        "before": {str(one): float(evaluation.before(one, depth).mean()) for one in evaluation.measures},
        "after": {str(one): float(evaluation.after(one, depth).mean()) for one in evaluation.measures},
    }


def _queries(evaluation: Evaluation) -> list[dict[str, Any]]:
    measure, depth = evaluation.measures[0], evaluation.deepest
    before, after = evaluation.before(measure, depth).tolist(), evaluation.after(measure, depth).tolist()
    shared = {"model": evaluation.model, "dataset": evaluation.dataset.name}
    return [
        {**shared, "query": query, "before": old, "after": new}
        for query, old, new in zip(evaluation.dataset.qrels, before, after, strict=True)
    ]
