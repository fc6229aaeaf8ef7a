"""A report's figures as plain values, which JSON, Markdown and the HTML page show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from secondpass.evaluation.comparison import Example, Report, worst_hurt
from secondpass.evaluation.evaluation import Evaluation
from secondpass.evaluation.significance import RESAMPLES, Difference

AVERAGE = "average"


@dataclass(frozen=True, kw_only=True)
class Row:
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


def rows(report: Report) -> list[Row]:
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
                found.append(Row(model=model, dataset=name, depth=depth, queries=queries, change=change))
    return found


def summary(report: Report, every: Sequence[Row]) -> list[Row]:
    """One row per model: the average, or the only set, at the greatest depth."""
    last = {row.model: row for row in every if row.depth == report.depths[-1]}
    return [last[model] for model in report.models]


def verdict(report: Report, row: Row) -> str:
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


def examples(report: Report, count: int) -> dict[str, list[Example]]:
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
