"""Models on sets side by side: the report's figures, and the queries that a model hurt most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.evaluation.evaluation import DEPTHS, MEASURES, Evaluation, as_depths, evaluate
from secondpass.evaluation.first_stage import bm25_run
from secondpass.evaluation.measures import Measure, ranked
from secondpass.evaluation.significance import EQUAL, Difference, difference
from secondpass.types import Progress, Scorer


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query that the reranker hurt: where its best relevant document stood, stands now, and what is first now."""

    dataset: str
    query: str
    before: float
    after: float
    relevant: str
    rank_before: int
    rank_after: int
    first_now: str


def worst_hurt(evaluation: Evaluation, count: int = 3) -> list[Example]:
    """The queries that lose most of the first measure at the greatest depth."""
    measure, depth = evaluation.measures[0], evaluation.deepest
    before, after = evaluation.before(measure, depth), evaluation.after(measure, depth)
    order = np.argsort(after - before, kind="stable")[:count]
    names = list(evaluation.dataset.qrels)
    return [
        _example(evaluation, names[place], float(before[place]), float(after[place]))
        for place in order
        if after[place] < before[place] - EQUAL
    ]


def _example(evaluation: Evaluation, query: str, before: float, after: float) -> Example:
    dataset = evaluation.dataset
    first, now = ranked(evaluation.first[query]), ranked(evaluation.scores[query])
    grades = dataset.qrels[query]
    relevant = next(name for name in first if grades.get(name, 0) > 0)
    return Example(
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
        models = self.models
        for place, one in enumerate(models):
            for other in models[place + 1 :]:
                yield one, other


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
