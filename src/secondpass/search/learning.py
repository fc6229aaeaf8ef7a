"""Cognitive weights from what people did with rankings: a regularised logistic fit, and what it is worth.

A hit that was used says that it answers better than those above it that were not (skip-above; Joachims et al. 2005):
those below may never have been looked at. The model is p(used) = sigmoid(b + z + sum of w r), with z's coefficient
fixed to 1, weights of 0 or more, and a penalty on their distance from the defaults, so that few judgements change
little. The last part by time is kept out, to see whether learnt weights put what was used higher.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.cognitive import TERMS, Cognitive, gate

MIN_IMPRESSIONS = 200  # fewer say too little about five weights
HELD_OUT = 0.3
PENALTY = 4.0  # as if so many judgements spoke for each default
STEPS = 2000
Figures = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Impression:
    """A ranking that somebody judged: relevance (N,) in logits, terms (N, 5), the hit's index, and whether it was
    used or rejected."""

    relevance: Figures
    terms: Figures
    hit: int
    is_used: bool


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """Fitted weights, on how many impressions, and of each held-out use the reciprocal rank with them and without."""

    settings: Cognitive
    num_fitted: int
    plain: Figures
    default: Figures
    learnt: Figures


def impressions(judgements: Iterable[Mapping[str, Any]]) -> list[Impression]:
    """Those of `Index.feedback`, in the order of time; what has no figures is left out."""
    found = []
    for judgement in sorted(judgements, key=lambda each: float(each["time"])):
        shown = judgement["shown"]
        ids = [row["id"] for row in shown]
        if judgement["hit"] not in ids or not all("relevance" in row for row in shown):
            continue
        found.append(
            Impression(
                relevance=np.array([row["relevance"] for row in shown], np.float64),
                terms=np.array([[row[name] for name in TERMS] for row in shown], np.float64),
                hit=ids.index(judgement["hit"]),
                is_used=judgement["kind"] != "rejected",
            )
        )
    return found


def learn(found: Sequence[Impression], defaults: Cognitive) -> Learnt:
    """Weights from the earlier impressions, and what they do for the later ones."""
    cut = round(len(found) * (1 - HELD_OUT))
    weights = fit(found[:cut], np.array(list(defaults.weights.values())))
    learnt = _with(defaults, weights)
    later = [each for each in found[cut:] if each.is_used]
    none = _with(defaults, np.zeros(len(TERMS)))
    return Learnt(
        settings=learnt,
        num_fitted=cut,
        plain=reciprocal_ranks(later, none),
        default=reciprocal_ranks(later, defaults),
        learnt=reciprocal_ranks(later, learnt),
    )


def fit(found: Sequence[Impression], defaults: Figures, *, penalty: float = PENALTY) -> Figures:
    """Weights (5,) of 0 or more, by projected gradient descent on the penalised loss, which is convex."""
    offset, terms, labels = _examples(found)
    if not len(labels) or labels.min() == labels.max():
        return np.array(defaults)
    weights: Figures = defaults.copy()
    bias = 0.0
    step = 1.0 / (0.25 * float((np.square(terms).sum(axis=1) + 1).sum()) + penalty)
    for _ in range(STEPS):
        error = 1 / (1 + np.exp(-(bias + offset + terms @ weights))) - labels
        weights = np.maximum(weights - step * (terms.T @ error + penalty * (weights - defaults)), 0.0)
        bias -= step * float(error.sum())
    return weights


def reciprocal_ranks(found: Sequence[Impression], settings: Cognitive) -> Figures:
    """1 / rank of what was used, in the order that the settings give."""
    weights = np.array(list(settings.weights.values()))
    ranks = []
    for each in found:
        extra = np.clip(each.terms @ weights, -settings.bound, settings.bound)
        gates = np.array([gate(z, least=settings.min_probability) for z in each.relevance])
        final = each.relevance + gates * extra
        ranks.append(1.0 / (1 + int((final > final[each.hit]).sum())))
    return np.array(ranks, np.float64)


def _with(settings: Cognitive, weights: Figures) -> Cognitive:
    recency, frequency, confidence, entities, importance = map(float, weights)
    return replace(
        settings,
        recency=recency,
        frequency=frequency,
        confidence=confidence,
        entities=entities,
        importance=importance,
    )


def _examples(found: Sequence[Impression]) -> tuple[Figures, Figures, Figures]:
    """Logits (M,), terms (M, 5) and labels (M,): what was used, and those above it; what was rejected."""
    rows = []
    for each in found:
        above = range(each.hit) if each.is_used else ()
        rows += [(each.relevance[at], each.terms[at], 0.0) for at in above]
        rows.append((each.relevance[each.hit], each.terms[each.hit], float(each.is_used)))
    if not rows:
        return np.empty(0), np.empty((0, len(TERMS))), np.empty(0)
    offsets, terms, labels = zip(*rows, strict=True)
    return np.array(offsets), np.stack(terms), np.array(labels)
