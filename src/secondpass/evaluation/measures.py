"""Measures of one ranking against its judgements, with the figures of trec_eval and ir-measures.

A measure is a value, read from its name: `parse("nDCG@10")`. It is called with the grades of the judged documents of
one query and the scores of the ranked ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Grades = Mapping[str, int]
Scores = Mapping[str, float]


def ranked(scores: Scores) -> list[str]:
    """Documents, best first, as trec_eval sorts them: scores in single precision, equal ones by descending name."""
    by_name = sorted(scores, reverse=True)
    single = np.array([scores[name] for name in by_name], np.float64).astype(np.float32)
    return [by_name[index] for index in np.argsort(-single, kind="stable")]


def _ranked_ascending(scores: Scores) -> list[str]:
    """As MS MARCO's script sorts them: equal scores by ascending name. ir-measures has RR@k from it."""
    return sorted(scores, key=lambda name: (-scores[name], name))


def _ndcg(gains: Sequence[int], best: Sequence[int], cutoff: int | None, num_relevant: int) -> float:
    """Järvelin and Kekäläinen 2002 with linear gains; a grade below 0 gains nothing."""
    ideal = _dcg(best[:cutoff])
    return _dcg(gains[:cutoff]) / ideal if ideal else 0.0


def _dcg(gains: Sequence[int]) -> float:
    positive = np.maximum(np.array(gains, np.float64), 0)
    return float((positive / np.log2(np.arange(len(positive)) + 2)).sum())


def _reciprocal_rank(hits: Sequence[int], best: Sequence[int], cutoff: int | None, num_relevant: int) -> float:
    return next((1 / (rank + 1) for rank, hit in enumerate(hits[:cutoff]) if hit), 0.0)


def _recall(hits: Sequence[int], best: Sequence[int], cutoff: int | None, num_relevant: int) -> float:
    return sum(hits[:cutoff]) / num_relevant if num_relevant else 0.0


def _precision(hits: Sequence[int], best: Sequence[int], cutoff: int | None, num_relevant: int) -> float:
    length = len(hits) if cutoff is None else cutoff
    return sum(hits[:cutoff]) / length if length else 0.0


def _average_precision(hits: Sequence[int], best: Sequence[int], cutoff: int | None, num_relevant: int) -> float:
    found, total = 0, 0.0
    for rank, hit in enumerate(hits[:cutoff], 1):
        if hit:
            found += 1
            total += found / rank
    return total / num_relevant if num_relevant else 0.0


def _hit_rate(hits: Sequence[int], best: Sequence[int], cutoff: int | None, num_relevant: int) -> float:
    return float(any(hits[:cutoff]))


@dataclass(frozen=True)
class MeasureKind:
    """A family of measures: its name here, its other names, its name in ir-measures, and how it is computed.

    compute gets grades (or, when binary, 1 for a hit) in the order of the ranking, the best grades there are, the
    cutoff, and the number of relevant documents.
    """

    name: str
    others: tuple[str, ...]
    symbol: str
    compute: Callable[[Sequence[int], Sequence[int], int | None, int], float]
    is_graded: bool = False
    needs_cutoff: bool = False


KINDS = (
    MeasureKind("nDCG", (), "nDCG", _ndcg, is_graded=True),
    MeasureKind("MRR", ("rr", "recip_rank"), "RR", _reciprocal_rank),
    MeasureKind("recall", ("r",), "R", _recall, needs_cutoff=True),
    MeasureKind("MAP", ("ap",), "AP", _average_precision),
    MeasureKind("precision", ("p",), "P", _precision, needs_cutoff=True),
    MeasureKind("hit_rate", ("success", "hit", "hits", "accuracy"), "Success", _hit_rate, needs_cutoff=True),
)
_BY_NAME = {name.lower(): kind for kind in KINDS for name in (kind.name, *kind.others)}
_FORM = re.compile(r"(?P<name>[A-Za-z_]+)(\(rel=(?P<rel>\d+)\))?(@(?P<cutoff>\d+))?")


@dataclass(frozen=True)
class Measure:
    """A measure of one query's ranking, in 0..1. least_grade is the grade from which a document is relevant."""

    kind: MeasureKind
    cutoff: int | None = None
    least_grade: int = 1

    def __str__(self) -> str:
        return self._written(self.kind.name)

    @property
    def symbol(self) -> str:
        """The name in ir-measures."""
        return self._written(self.kind.symbol)

    def __call__(self, grades: Grades, scores: Scores) -> float:
        """The figure of a query; documents that were not judged count as not relevant. Without a relevant one: 0."""
        # ir-measures has these two from different tools, which break ties differently.
        is_from_msmarco = self.kind.name == "MRR" and self.cutoff is not None
        order = _ranked_ascending(scores) if is_from_msmarco else ranked(scores)
        gains = [grades.get(name, 0) for name in order]
        best = sorted(grades.values(), reverse=True)
        num_relevant = sum(grade >= self.least_grade for grade in best)
        if not self.kind.is_graded:
            gains = [int(gain >= self.least_grade) for gain in gains]
        return self.kind.compute(gains, best, self.cutoff, num_relevant)

    def _written(self, name: str) -> str:
        level = f"(rel={self.least_grade})" if self.least_grade != 1 else ""
        return f"{name}{level}" + (f"@{self.cutoff}" if self.cutoff is not None else "")


def parse(name: str) -> Measure:
    """The measure of a name like nDCG@10, MRR@10, recall@100, MAP, precision@5, hit_rate@1 or recall(rel=2)@100.

    The names of ir-measures (RR, R, AP, P, Success) are understood too. Raises ValueError for another.
    """
    form = _FORM.fullmatch(name.strip())
    kind = _BY_NAME.get(form["name"].lower()) if form else None
    if form is None or kind is None:
        known = ", ".join(kind.name for kind in KINDS)
        raise ValueError(f"there is no measure {name!r}; there are {known}, as in nDCG@10")
    cutoff = int(form["cutoff"]) if form["cutoff"] else None
    least = int(form["rel"]) if form["rel"] else 1
    if cutoff == 0 or (cutoff is None and kind.needs_cutoff):
        raise ValueError(f"{name!r} needs a cutoff of 1 or more, as in {kind.name}@10")
    if least < 1 or (kind.is_graded and least != 1):
        raise ValueError(f"{name!r}: rel is the least grade that counts, 1 or more, and is not for nDCG")
    return Measure(kind, cutoff, least)


def as_measures(measures: Iterable[str | Measure]) -> tuple[Measure, ...]:
    """Measures by name or as they are, each once. Raises ValueError for none, or for one that is not known."""
    if isinstance(measures, str):
        measures = measures.split(",")
    found = tuple(dict.fromkeys(parse(one) if isinstance(one, str) else one for one in measures))
    if not found:
        raise ValueError("no measure is named; give one, as nDCG@10")
    return found
