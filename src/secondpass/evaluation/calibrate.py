"""Fitting a calibration on labelled pairs, with its reliability on pairs that were held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.calibration import Calibration
from secondpass.data.pairs import LabelledQuery
from secondpass.errors import DataError
from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.evaluation.datasets.trec import Run

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FOLDS = 5
BINS = 10
MIN_OF_EACH = 10  # relevant and other pairs: with fewer, a fit says nothing
MIN_ACCEPTED = 20  # pairs above a threshold: with fewer, their precision says nothing
_STEPS, _TOLERANCE = 100, 1e-10


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Pairs whose probability lies in [low, high): their number, mean probability, and the share that is relevant."""

    low: float
    high: float
    pairs: int
    mean_probability: float | None
    relevant: float | None


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How far probabilities can be believed: 0 is best for each.

    ece: the expected calibration error over ten bins of equal width (Guo et al. 2017). brier: the mean squared error
    (Brier 1950). log_loss: in nats.
    """

    ece: float
    brier: float
    log_loss: float
    bins: tuple[Bin, ...]


def fit_platt(scores: Floats, labels: Bools) -> tuple[float, float]:
    """Slope and intercept of the logistic curve through labelled logits.

    Platt 1999 with his smoothed targets, by Newton's method with halved steps (Lin, Lin and Weng 2007).
    Raises DataError where a greater logit does not go with relevance.
    """
    positive, negative = int(labels.sum()), int((~labels).sum())
    targets = np.where(labels, (positive + 1) / (positive + 2), 1 / (negative + 2))
    shift, scale = float(scores.mean()), float(scores.std()) or 1.0
    design = np.stack([(scores - shift) / scale, np.ones_like(scores)], axis=1)
    weights = np.array([0.0, np.log((positive + 1) / (negative + 1))])
    loss = _cross_entropy(design @ weights, targets)
    for _ in range(_STEPS):
        chances = _sigmoid(design @ weights)
        gradient = design.T @ (chances - targets)
        curvature = (design * (chances * (1 - chances))[:, None]).T @ design + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (new := _cross_entropy(design @ (weights - size * step), targets)) > loss and size > 1e-10:
            size /= 2
        weights, gained, loss = weights - size * step, loss - new, new
        if abs(gained) < _TOLERANCE * len(scores):
            break
    slope, intercept = float(weights[0]) / scale, float(weights[1]) - float(weights[0]) * shift / scale
    if not slope > 0:
        raise DataError(
            "a greater score does not go with relevance on these pairs, so they cannot calibrate; check the labels"
        )
    return slope, intercept


def reliability(probabilities: Floats, labels: Bools) -> Reliability:
    """Of probabilities (N,) and labels (N,)."""
    bin_of = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    bins, gap = [], 0.0
    for index in range(BINS):
        inside = bin_of == index
        count = int(inside.sum())
        mean = float(probabilities[inside].mean()) if count else None
        share = float(labels[inside].mean()) if count else None
        gap += count * abs(mean - share) if mean is not None and share is not None else 0.0
        low, high = index / BINS, (index + 1) / BINS
        bins.append(Bin(low=low, high=high, pairs=count, mean_probability=mean, relevant=share))
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return Reliability(
        ece=gap / len(labels),
        brier=float(np.square(probabilities - labels).mean()),
        log_loss=float(-np.log(np.where(labels, clipped, 1 - clipped)).mean()),
        bins=tuple(bins),
    )


def find_threshold(scores: Floats, labels: Bools, precision: float) -> float | None:
    """The least logit from which on the pairs reach this precision; None where no 20 pairs do."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(labels[order])
    counts = np.arange(1, len(ordered) + 1)
    is_last = np.append(ordered[1:] != ordered[:-1], True)  # equal logits are accepted together
    reached = np.flatnonzero(is_last & (hits / counts >= precision) & (counts >= MIN_ACCEPTED))
    return float(ordered[reached[-1]]) if len(reached) else None


def fit_calibration(
    scores: Sequence[float],
    labels: Sequence[bool],
    groups: Sequence[str],
    *,
    precision: float | None = None,
    uncalibrated: Sequence[float] | None = None,
    model: Mapping[str, Any] | None = None,
    fitted_on: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Calibration:
    """A calibration fitted on all pairs; its held-out figures are from five parts, each left out of a fit in turn.

    groups names the query of each pair, and pairs of one query are never in two parts. uncalibrated: what the model
    says now, to compare. Raises DataError for too few pairs or queries.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(labels, np.bool_)
    _check(x, y, groups, precision)
    slope, intercept = fit_platt(x, y)
    held = _held_out(x, y, _folds(groups, seed), precision)
    if uncalibrated is not None:
        now = reliability(np.asarray(uncalibrated, np.float64), y)
        held["uncalibrated"] = {"ece": now.ece, "brier": now.brier, "log_loss": now.log_loss}
    base = {"pairs": len(x), "relevant": int(y.sum()), "queries": len(set(groups))}
    return Calibration(
        slope=slope,
        intercept=intercept,
        threshold=None if precision is None else find_threshold(x, y, precision),
        wanted_precision=precision,
        model=dict(model or {}),
        fitted_on={**(fitted_on or {}), **base},
        held_out=held,
    )


def candidate_pairs(dataset: Dataset, run: Run) -> Iterator[LabelledQuery]:
    """The candidates of each query; those without a judgement count as not relevant."""
    for query, candidates in run.items():
        grades = dataset.qrels[query]
        yield LabelledQuery(
            name=f"{dataset.name}: {query}",
            text=dataset.queries[query],
            texts=tuple(dataset.documents[name] for name in candidates),
            labels=tuple(grades.get(name, 0) > 0 for name in candidates),
        )


def _check(scores: Floats, labels: Bools, groups: Sequence[str], precision: float | None) -> None:
    if not len(scores) == len(labels) == len(groups):
        raise ValueError(f"{len(scores)} scores, {len(labels)} labels and {len(groups)} groups; one of each per pair")
    if precision is not None and not 0 < precision <= 1:
        raise ValueError(f"precision is {precision}; give more than 0 and at most 1")
    if not np.isfinite(scores).all():
        raise DataError("a score is not a finite number, so the pairs cannot calibrate")
    positive, negative = int(labels.sum()), int((~labels).sum())
    if min(positive, negative) < MIN_OF_EACH or len(set(groups)) < FOLDS:
        raise DataError(
            f"{positive} relevant and {negative} other pairs of {len(set(groups))} queries; {MIN_OF_EACH} of each "
            f"and {FOLDS} queries are the least, and some hundreds are better"
        )


def _folds(groups: Sequence[str], seed: int) -> NDArray[np.int64]:
    """The part of each pair (N,); the parts have equally many queries."""
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    part = {names[index]: rank % FOLDS for rank, index in enumerate(order)}
    return np.array([part[group] for group in groups], np.int64)


def _held_out(scores: Floats, labels: Bools, folds: NDArray[np.int64], precision: float | None) -> dict[str, Any]:
    probabilities, is_accepted = np.zeros(len(scores)), np.zeros(len(scores), np.bool_)
    for fold in range(FOLDS):
        out = folds == fold
        if not labels[~out].any() or labels[~out].all():
            raise DataError("the relevant pairs are of too few queries to hold a part out; more queries are needed")
        slope, intercept = fit_platt(scores[~out], labels[~out])
        probabilities[out] = _sigmoid(slope * scores[out] + intercept)
        least = None if precision is None else find_threshold(scores[~out], labels[~out], precision)
        is_accepted[out] = scores[out] >= (np.inf if least is None else least)
    found: dict[str, Any] = {"folds": FOLDS, **asdict(reliability(probabilities, labels))}
    if precision is not None:
        found["threshold"] = _at_threshold(labels, is_accepted)
    return found


def _at_threshold(labels: Bools, is_accepted: Bools) -> dict[str, Any]:
    accepted, right = int(is_accepted.sum()), int((labels & is_accepted).sum())
    return {
        "accepted": accepted,
        "precision": right / accepted if accepted else None,
        "recall": right / int(labels.sum()),
    }


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _cross_entropy(x: Floats, targets: Floats) -> float:
    return float((np.logaddexp(0, x) - targets * x).sum())
