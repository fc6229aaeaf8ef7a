"""What several first stages found, joined into one list.

Convex combinations of scores were better than reciprocal ranks on each of six sets; so were they for Bruch, Gai and
Ingber 2023, "An Analysis of Fusion Functions for Hybrid Retrieval".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from secondpass.retrieval.bm25 import Found

RANK_CONSTANT = 60  # Cormack, Clarke and Buettcher 2009
# Measured for the first two; the others weigh as what they are like. RRF gives all the same.
WEIGHTS: Mapping[str, float] = {"dense": 0.7, "bm25": 0.3, "sparse": 0.3, "colbert": 0.7}


@dataclass(frozen=True, slots=True)
class Fused:
    """One candidate: its fused score, and of each stage that found it (rank from 1, score)."""

    index: int
    score: float
    stages: Mapping[str, tuple[int, float]]


def convex(runs: Mapping[str, Found], weights: Mapping[str, float] = WEIGHTS) -> list[Fused]:
    """The weighted sum of scores that are scaled to 0..1 within each run; what a run lacks counts 0 there.

    A weight is divided by those of the runs that found anything, so that one run alone keeps its order and scale.
    """
    total = sum(weights.get(name, 1.0) for name, run in runs.items() if run)
    scores: dict[int, float] = {}
    for name, run in runs.items():
        weight = weights.get(name, 1.0) / total if run else 0.0
        for (index, _), share in zip(run, scaled([score for _, score in run]), strict=True):
            scores[index] = scores.get(index, 0.0) + weight * share
    return _fused(runs, scores)


def reciprocal(runs: Mapping[str, Found], *, constant: int = RANK_CONSTANT) -> list[Fused]:
    """The sum of 1 / (constant + rank) over the runs: for runs whose scores cannot be compared."""
    scores: dict[int, float] = {}
    for run in runs.values():
        for rank, (index, _) in enumerate(run, 1):
            scores[index] = scores.get(index, 0.0) + 1 / (constant + rank)
    return _fused(runs, scores)


FUSIONS: Mapping[str, Callable[[Mapping[str, Found]], list[Fused]]] = {"convex": convex, "rrf": reciprocal}


def scaled(scores: Sequence[float]) -> list[float]:
    """Scores to 0..1 by their least and greatest; all 1 where they are equal."""
    if not scores:
        return []
    least, span = min(scores), max(scores) - min(scores)
    return [(score - least) / span if span else 1.0 for score in scores]


def _fused(runs: Mapping[str, Found], scores: Mapping[int, float]) -> list[Fused]:
    stages: dict[int, dict[str, tuple[int, float]]] = {index: {} for index in scores}
    for name, run in runs.items():
        for rank, (index, score) in enumerate(run, 1):
            stages[index][name] = (rank, score)
    return [Fused(index, score, stages[index]) for index, score in sorted(scores.items(), key=lambda item: -item[1])]
