"""Weights from uses: learnt where they say something, left alone where they say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from secondpass.cognitive import TERMS, Cognitive
from secondpass.search.learning import Impression, fit, impressions, learn, reciprocal_ranks

DEFAULTS = np.array(list(Cognitive().weights.values()))


def simulated(count: int, truth: dict[str, float], seed: int = 0) -> list[Impression]:
    """Rankings by relevance whose readers use the hit that is best by the true weights, with some noise."""
    rng = np.random.default_rng(seed)
    weights = np.array([truth.get(name, 0.0) for name in TERMS])
    found = []
    for _ in range(count):
        relevance = -np.sort(-rng.normal(1.0, 0.7, 6))
        terms = rng.uniform(-1, 1, (6, len(TERMS)))
        liked = relevance + terms @ weights + rng.gumbel(0, 0.3, 6)
        found.append(Impression(relevance=relevance, terms=terms, hit=int(liked.argmax()), is_used=True))
    return found


def test_a_term_that_readers_follow_gets_more_weight_and_one_that_they_do_not_less() -> None:
    learnt = fit(simulated(600, {"recency": 2.0}), DEFAULTS)
    by_name = dict(zip(TERMS, learnt, strict=True))
    assert by_name["recency"] > 1.0
    assert by_name["confidence"] < 0.3
    assert all(weight >= 0 for weight in learnt)


def test_few_judgements_change_little_and_one_sided_ones_nothing() -> None:
    assert np.abs(fit(simulated(3, {"recency": 2.0}), DEFAULTS) - DEFAULTS).max() < 0.5
    assert np.array_equal(fit([], DEFAULTS), DEFAULTS)
    top = [Impression(relevance=np.ones(1), terms=np.ones((1, len(TERMS))), hit=0, is_used=True)]
    assert np.array_equal(fit(top, DEFAULTS), DEFAULTS)


def test_learnt_weights_help_on_later_uses_only_where_there_is_something_to_learn() -> None:
    some = learn(simulated(800, {"recency": 1.0, "importance": 0.8}), Cognitive())
    assert some.num_fitted == 560
    assert len(some.learnt) == 240
    assert some.learnt.mean() > some.default.mean() > some.plain.mean() - 0.05


def test_reciprocal_ranks_by_hand() -> None:
    terms = np.zeros((3, len(TERMS)))
    terms[2, 0] = 1.0  # recency
    shown = Impression(relevance=np.array([1.0, 0.8, 0.7]), terms=terms, hit=2, is_used=True)
    assert reciprocal_ranks([shown], Cognitive(recency=0.0)).tolist() == [pytest.approx(1 / 3)]
    assert reciprocal_ranks([shown], Cognitive(recency=0.2)).tolist() == [0.5]
    assert reciprocal_ranks([shown], Cognitive(recency=0.5)).tolist() == [1.0]


def test_judgements_without_figures_are_left_out() -> None:
    row = {"relevance": 0.5, **dict.fromkeys(TERMS, 0.0)}
    whole = {"time": 2.0, "hit": 7, "kind": "used", "shown": [{"id": 3, **row}, {"id": 7, **row}]}
    found = impressions([whole, {**whole, "shown": [{"id": 7}]}, {**whole, "hit": 9}, {**whole, "kind": "rejected"}])
    assert [(each.hit, each.is_used) for each in found] == [(1, True), (1, False)]
