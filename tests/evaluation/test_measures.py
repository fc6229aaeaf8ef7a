"""Measures against ir-measures, which calls trec_eval's own code; ties, holes and odd grades included."""

from __future__ import annotations

import ir_measures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondpass.evaluation.measures import as_measures, parse, ranked

NAMES = (
    *("nDCG", "nDCG@1", "nDCG@3", "nDCG@10", "MRR", "MRR@3", "MRR@10", "recall@1", "recall@5", "MAP", "MAP@3"),
    *("precision@1", "precision@5", "precision@20", "hit_rate@1", "hit_rate@3"),
    *("MRR(rel=2)", "MRR(rel=2)@2", "recall(rel=2)@5", "MAP(rel=2)", "precision(rel=3)@5", "hit_rate(rel=2)@3"),
)
documents = st.sampled_from([*"abcdefghijkl", "é", "Z", "10", "9", "文"])
# Few different scores, so that many are equal; some differ by less than single precision holds.
few = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 1e-9, 1.0 + 2e-9, -2.5, 3.25, 1e30, 7e-12])
runs = st.dictionaries(documents, few | st.floats(-1e6, 1e6), min_size=1)
# trec_eval's code never comes back where all grades are negative.
judged = st.dictionaries(documents, st.integers(-1, 4), min_size=1).filter(lambda grades: max(grades.values()) >= 0)


@pytest.mark.filterwarnings("ignore:(ast|Attribute):DeprecationWarning")  # of ir_measures, on Python 3.12 and later
@settings(max_examples=80, deadline=None)
@given(run=runs, grades=judged)
def test_figures_are_those_of_ir_measures(run: dict[str, float], grades: dict[str, int]) -> None:
    measures = [parse(name) for name in NAMES]
    asked = {ir_measures.parse_measure(measure.symbol): measure for measure in measures}
    found = list(ir_measures.iter_calc(list(asked), {"q": grades}, {"q": run}))
    assert len(found) == len(NAMES)
    for metric in found:
        assert asked[metric.measure](grades, run) == pytest.approx(metric.value, abs=1e-9), metric.measure


def test_figures_by_hand() -> None:
    grades = {"a": 2, "b": 1, "c": 0, "missed": 1}
    scores = {"c": 3.0, "a": 2.0, "b": 1.0}
    dcg, ideal = 2 / 1.5849625007211562 + 1 / 2, 2 + 1 / 1.5849625007211562 + 1 / 2
    assert parse("nDCG@10")(grades, scores) == pytest.approx(dcg / ideal, abs=1e-12)
    assert parse("MRR@10")(grades, scores) == 1 / 2
    assert parse("recall@2")(grades, scores) == 1 / 3
    assert parse("MAP")(grades, scores) == pytest.approx((1 / 2 + 2 / 3) / 3, abs=1e-12)
    assert parse("precision@5")(grades, scores) == 2 / 5
    assert parse("hit_rate@1")(grades, scores) == 0


def test_a_query_without_a_relevant_document_has_0() -> None:
    assert [measure({"a": 0}, {"a": 1.0}) for measure in as_measures(NAMES)] == [0.0] * len(NAMES)


def test_nothing_ranked_has_0() -> None:
    assert [measure({"a": 1}, {}) for measure in as_measures(NAMES)] == [0.0] * len(NAMES)


def test_equal_scores_are_sorted_by_descending_name() -> None:
    assert ranked({"a": 1.0, "c": 1.0 + 1e-12, "b": 1.0, "d": 0.0}) == ["c", "b", "a", "d"]


def test_names_are_understood_in_several_ways() -> None:
    assert parse("ndcg@10") == parse(" nDCG@10 ")
    assert str(parse("Success@1")) == "hit_rate@1"
    assert str(parse("RR(rel=2)@10")) == "MRR(rel=2)@10"
    assert [str(one) for one in as_measures("nDCG@10,MAP,nDCG@10")] == ["nDCG@10", "MAP"]


@pytest.mark.parametrize("name", ["", "F1@3", "nDCG@0", "recall", "nDCG@x", "nDCG(rel=2)@10", "MAP(rel=0)"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"nDCG|recall@10|rel is"):
        parse(name)
