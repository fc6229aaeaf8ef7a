"""Fusion against sums worked out by hand."""

from __future__ import annotations

import pytest

from secondpass.retrieval.fusion import convex, reciprocal


def test_convex_sums_scaled_scores() -> None:
    fused = convex({"dense": [(1, 0.9), (2, 0.8), (3, 0.4)], "bm25": [(3, 12.0), (4, 8.0), (1, 4.0)]})
    # dense scaled 1, 0.8, 0; BM25 scaled 1, 0.5, 0
    assert [(each.index, pytest.approx(each.score)) for each in fused] == [(1, 0.7), (2, 0.56), (3, 0.3), (4, 0.15)]
    assert fused[0].stages == {"dense": (1, 0.9), "bm25": (3, 4.0)}


def test_one_run_alone_keeps_its_order_and_has_the_whole_weight() -> None:
    fused = convex({"dense": [], "bm25": [(7, 3.0), (8, 1.0)]})
    assert [(each.index, each.score) for each in fused] == [(7, 1.0), (8, 0.0)]


def test_equal_scores_all_count() -> None:
    assert [each.score for each in convex({"bm25": [(1, 2.0), (2, 2.0)]})] == [1.0, 1.0]


def test_reciprocal_sums_ranks() -> None:
    fused = reciprocal({"dense": [(1, 0.9), (2, 0.8)], "bm25": [(2, 5.0)]})
    assert [(each.index, pytest.approx(each.score)) for each in fused] == [(2, 1 / 62 + 1 / 61), (1, 1 / 61)]


def test_nothing_found_is_nothing() -> None:
    assert convex({}) == []
    assert convex({"dense": [], "bm25": []}) == []
    assert reciprocal({"bm25": []}) == []
