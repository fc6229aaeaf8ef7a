"""Cognitive scoring against figures worked out by hand, and the properties that it promises."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from datetime import date, datetime, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondpass.cognitive import (
    DAY_S,
    MAX_BOUND,
    Cognitive,
    Signals,
    association,
    base_level,
    base_level_approximated,
    confidence_evidence,
    end_of,
    frequency_evidence,
    gate,
    half_life,
    importance_evidence,
    named_entities,
    order,
    posterior,
    recency_evidence,
    seconds_of,
    signals_of,
    spread,
    spreading,
    weigh,
)

NOW = 1_800_000_000.0
YEAR_S = 365 * DAY_S

LOGITS = st.floats(-12, 12)
AGES = st.floats(0, 20 * YEAR_S)
SIGNALS = st.builds(
    lambda created, accessed, confidence, importance, entities: Signals(
        created=None if created is None else NOW - created,
        accessed=tuple(NOW - age for age in accessed),
        confidence=confidence,
        importance=importance,
        entities=entities,
    ),
    st.none() | AGES,
    st.lists(AGES, max_size=4),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(0, 1),
    st.none() | st.frozensets(st.sampled_from(["paris", "london", "東京"])),
)


def final(logit: float, signals: Signals, **options: float) -> float:
    return weigh(Cognitive(**options), [logit], [signals], query="", now=NOW)[0].logit  # type: ignore[arg-type]


# Figures


def test_base_level_sums_powers_of_ages() -> None:
    # 100^-0.5 + 25^-0.5 = 0.1 + 0.2
    assert base_level([100, 25]) == pytest.approx(math.log(0.3))
    assert base_level([10000]) == pytest.approx(-0.5 * math.log(10000))
    assert base_level([16], decay=0.25) == pytest.approx(math.log(0.5))


def test_base_level_of_nothing_is_minus_infinity_and_of_now_is_finite() -> None:
    assert base_level([]) == -math.inf
    assert base_level([0.0]) == 0.0
    assert base_level([-50.0]) == 0.0


def test_approximated_base_level_without_recent_ages_is_the_published_form() -> None:
    # ln(n / (1 - d)) - d ln L, with n 10, d 0.5, L 10000
    assert base_level_approximated(10, 10000) == pytest.approx(math.log(20) - 0.5 * math.log(10000))


def test_approximated_base_level_is_exact_where_all_ages_are_known() -> None:
    assert base_level_approximated(2, 100, recent_ages_s=[25, 100]) == pytest.approx(base_level([25, 100]))


def test_approximated_base_level_is_near_the_exact_one_for_even_accesses() -> None:
    ages = [1000.0 * k for k in range(1, 101)]
    near = base_level_approximated(100, 100_000, recent_ages_s=ages[:2])
    assert near == pytest.approx(base_level(ages), abs=0.02)  # an integral in place of a sum


def test_half_life_halves() -> None:
    assert half_life(0, days=30) == 1
    assert half_life(30 * DAY_S, days=30) == 0.5
    assert half_life(90 * DAY_S, days=30) == 0.125
    assert half_life(-5, days=30) == 1


def test_recency_is_zero_at_the_half_life() -> None:
    assert recency_evidence(0, days=365) == 1
    assert recency_evidence(YEAR_S, days=365) == 0
    assert recency_evidence(2 * YEAR_S, days=365) == -0.5


def test_posterior_counts_the_prior() -> None:
    assert posterior(0, 0) == 0.5
    assert posterior(3, 1) == pytest.approx(4 / 6)
    assert posterior(0, 2, prior=(4, 1)) == pytest.approx(4 / 7)


def test_confidence_evidence_is_a_scaled_logit() -> None:
    assert confidence_evidence(0.5) == 0
    assert confidence_evidence(0.95) == pytest.approx(1)
    assert confidence_evidence(1.0) == pytest.approx(1)
    assert confidence_evidence(0.0) == pytest.approx(-1)
    assert confidence_evidence(0.8) == pytest.approx(math.log(4) / math.log(19))


def test_frequency_of_uses_as_old_as_the_text_is_logarithmic() -> None:
    assert frequency_evidence([100.0], 100.0) == pytest.approx(math.log(2) / math.log(4))
    assert frequency_evidence([100.0] * 3, 100.0) == pytest.approx(1)
    assert frequency_evidence([], 100.0) == 0
    # one use at a quarter of the age: ln(1 + 2) / ln 4
    assert frequency_evidence([100.0], 400.0) == pytest.approx(math.log(3) / math.log(4))


def test_frequency_of_a_text_without_date_takes_its_first_use_as_its_age() -> None:
    assert frequency_evidence([100.0], None) == pytest.approx(0.5)


def test_association_falls_with_the_fan_to_zero() -> None:
    assert association(1) == 3
    assert association(2) == pytest.approx(3 - math.log(2))
    assert association(1000) == 0


def test_spreading_weighs_rare_entities_more() -> None:
    sources = {"rare": 0.5, "common": 0.5}
    fans = {"rare": 1, "common": 10}
    # S - ln fan: 3 and 3 - 2.302585
    assert spreading(sources, ["rare"], fans) == pytest.approx(3 / (3 + 3 - math.log(10)))
    assert spreading(sources, ["rare", "common", "other"], fans) == pytest.approx(1)
    assert spreading({}, ["rare"], fans) == 0


def test_spread_goes_one_hop_and_divides_by_the_links() -> None:
    found = spread({"a": 1.0}, {"a": {"b": 3.0, "c": 1.0}, "b": {"d": 1.0}}, share=0.5)
    assert found == {"a": 1.0, "b": pytest.approx(0.375), "c": pytest.approx(0.125)}


def test_gate_is_shut_for_the_irrelevant_and_open_from_one_half() -> None:
    assert gate(-5) == 0
    assert gate(0) == 1
    assert gate(7) == 1
    assert gate(math.log(0.275 / 0.725)) == pytest.approx(0.5)


def test_every_term_is_in_parts_and_makes_the_final_logit() -> None:
    signals = Signals(
        created=NOW - 2 * YEAR_S,
        accessed=(NOW - 2 * YEAR_S,),
        confidence=0.95,
        importance=1.0,
        entities=frozenset({"Paris"}),
    )
    other = Signals(entities=frozenset({"London"}))
    first, second = weigh(Cognitive(), [1.0, 1.0], [signals, other], query="hotels in Paris", now=NOW)
    parts = first.parts
    assert parts["recency"] == pytest.approx(-0.5)
    assert parts["frequency"] == pytest.approx(0.5)
    assert parts["confidence"] == pytest.approx(1)
    assert parts["importance"] == 1
    assert parts["entities"] == pytest.approx(0.5)
    assert parts["evidence"] == pytest.approx(0.5 * -0.5 + 0.25 * 0.5 + 0.5 + 0.3 * 0.5 + 0.25)
    assert parts["final"] == pytest.approx(1.0 + parts["evidence"]) == first.logit
    assert second.parts["entities"] == pytest.approx(-0.5)


# Properties


@given(LOGITS, SIGNALS, st.floats(0, MAX_BOUND))
def test_evidence_is_bounded(logit: float, signals: Signals, bound: float) -> None:
    assert abs(final(logit, signals, bound=bound, recency=9.0, confidence=9.0) - logit) <= bound + 1e-12


@given(LOGITS)
def test_what_is_not_known_changes_nothing(logit: float) -> None:
    assert final(logit, Signals()) == logit


@given(st.floats(-40, -2.9444389791664405), SIGNALS)
def test_the_irrelevant_keep_their_logit(logit: float, signals: Signals) -> None:
    assert final(logit, signals) == logit


@given(LOGITS, st.floats(0, 6), SIGNALS, st.floats(0, MAX_BOUND))
def test_with_equal_evidence_the_more_relevant_stays_first(
    logit: float, more: float, signals: Signals, bound: float
) -> None:
    low = final(logit, signals, bound=bound)
    assert final(logit + more, signals, bound=bound) >= low - 1e-12


@given(LOGITS, AGES, AGES)
def test_newer_is_never_worse(logit: float, age: float, other: float) -> None:
    newer, older = sorted((age, other))
    assert final(logit, Signals(created=NOW - newer)) >= final(logit, Signals(created=NOW - older))


@given(st.lists(AGES, min_size=1, max_size=6), AGES, AGES)
def test_one_more_use_is_never_worse(uses: list[float], use: float, created: float) -> None:
    assert frequency_evidence([*uses, use], created) >= frequency_evidence(uses, created) - 1e-12


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 20))
def test_support_raises_and_contradiction_lowers(supports: int, contradictions: int, more: int) -> None:
    middle = posterior(supports, contradictions)
    assert posterior(supports + more, contradictions) > middle > posterior(supports, contradictions + more)


@given(st.lists(st.tuples(LOGITS, SIGNALS), min_size=1, max_size=8))
def test_terms_stay_within_one(candidates: list[tuple[float, Signals]]) -> None:
    logits, signals = map(list, zip(*candidates, strict=True))
    for each in weigh(Cognitive(), logits, signals, query="from Paris to 東京", now=NOW):
        for name in ("recency", "frequency", "confidence", "entities", "importance"):
            assert -1 <= float(each.parts[name]) <= 1


# Rules


@pytest.mark.parametrize(("value", "is_superseded"), [(None, False), (0, False), (1, True), (True, True)])
def test_superseded_is_true_or_false(value: object, is_superseded: bool) -> None:
    assert signals_of({"superseded": value}).is_superseded is is_superseded


def test_superseded_records_come_after_all_others() -> None:
    signals = [Signals(is_superseded=True), Signals(), Signals()]
    weighed = weigh(Cognitive(), [9.0, -3.0, 1.0], signals, query="", now=NOW)
    assert order(weighed) == [2, 1, 0]
    assert weighed[0].parts["superseded"] == 1


def test_the_newest_of_one_subject_stands_for_it() -> None:
    old = Signals(created=NOW - 2 * YEAR_S, subject="guide.md#Install")
    new = Signals(created=NOW - DAY_S, subject="guide.md#Install")
    other = Signals(subject="other.md#Install")
    weighed = weigh(Cognitive(), [3.0, 1.0, 2.0], [old, new, other], query="", now=NOW)
    assert order(weighed) == [1, 0, 2]
    assert [each.parts["superseded"] for each in weighed] == [1, 0, 0]
    plain = weigh(Cognitive(has_subjects=False), [3.0, 1.0, 2.0], [old, new, other], query="", now=NOW)
    assert order(plain) == [0, 2, 1]


def test_the_query_names_entities_as_whole_words_or_in_scripts_without_blanks() -> None:
    signals = [Signals(entities=frozenset({"Ada", "New York", "東京", "--"}))]
    assert named_entities("does Adam like New-York and 東京都?", signals) == {"New York": 0.5, "東京": 0.5}
    mixed = [Signals(entities=frozenset({"docker", "dock", "SSH端口", "café"}))]
    assert named_entities("用Docker部署怎么配置SSH端口", mixed) == {"docker": 0.5, "SSH端口": 0.5}
    assert named_entities("Docker로 배포", mixed) == {"docker": 1.0}
    assert named_entities("dockeré, cafétéria", [Signals(entities=frozenset({"docker", "caf"}))]) == {}


def test_the_same_clock_gives_the_same_figures() -> None:
    signals = [Signals(created=NOW - 5 * DAY_S)]
    first = weigh(Cognitive(), [0.3], signals, query="q", now=NOW)
    assert first == weigh(Cognitive(), [0.3], signals, query="q", now=NOW)
    assert first != weigh(Cognitive(), [0.3], signals, query="q", now=NOW + DAY_S)


# Fields


def test_fields_of_documents_become_signals() -> None:
    found = signals_of(
        {
            "created": "2026-11-28",
            "accessed": [5, "1970-01-01T00:00:10Z"],
            "supports": 3,
            "contradictions": 1,
            "entities": ["a"],
            "importance": 1,
            "superseded": True,
            "subject": 7,
        }
    )
    day = datetime(2026, 11, 28, tzinfo=timezone.utc).timestamp()
    assert found == Signals(
        created=day,
        accessed=(5.0, 10.0),
        confidence=4 / 6,
        entities=frozenset({"a"}),
        importance=1.0,
        is_superseded=True,
        subject="7",
    )
    assert signals_of({"text": "x"}) == Signals()


def test_fields_may_be_numpys_numbers_and_arrays() -> None:
    moments, names = np.array([5, 10]), np.array(["Ada", "Bob"])
    found = signals_of(
        {"created": moments[0], "accessed": moments, "confidence": np.float32(0.5), "entities": names}
        | {"importance": np.int64(1), "superseded": np.bool_(True)}
    )
    plain = Signals(created=5.0, accessed=(5.0, 10.0), confidence=0.5, importance=1.0, is_superseded=True)
    assert found == replace(plain, entities=frozenset({"Ada", "Bob"}))
    assert Cognitive(now=moments[1], recency=np.float32(0.5)).recency == 0.5


@pytest.mark.parametrize("subject", [None, "", " \t"])
def test_a_blank_subject_is_none(subject: str | None) -> None:
    assert signals_of({"subject": subject}).subject is None


class NotATime(datetime):
    """As pandas has for a date that a table lacks."""

    def __eq__(self, other: object) -> bool:
        return False

    def timestamp(self) -> float:
        raise ValueError("NaTType does not support timestamp")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"created": NotATime(2026, 1, 1, tzinfo=timezone.utc)}, r"created is NotATime\(.*; give seconds"),
        ({"subject": math.nan}, "subject is nan; give a name"),
        ({"entities": np.array([1])}, r"entities is array\(\[1\]\); give a list"),
        ({"created": "yesterday"}, "created is 'yesterday'"),
        ({"accessed": [True]}, "accessed is True"),
        ({"confidence": "high"}, "confidence is 'high'"),
        ({"entities": "Paris"}, "entities is 'Paris'; give a list"),
        ({"importance": math.nan}, "importance is nan"),
        ({"superseded": "false"}, "superseded is 'false'; give true or false"),
        ({"superseded": [0]}, r"superseded is \[0\]; give true or false"),
        ({"importance": 10**350}, r"importance is 10{70,}\.\.\.; give a number"),
        ({"importance": 3}, "importance is 3.0; give 0..1"),
        ({"confidence": -0.1}, "confidence is -0.1; give 0..1"),
        ({"created": 1764359270000}, "created is 1764359270000; give seconds"),  # the clock of a browser
        ({"entities": 5}, "entities is 5; give a list"),
    ],
)
def test_fields_that_cannot_be_read_are_named(record: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        signals_of(record)


def test_moments_have_one_meaning() -> None:
    assert seconds_of("1970-01-02", "now") == DAY_S
    assert DAY_S - 0.01 < end_of("1970-01-01", "until") < end_of("1970-01-02T00:00", "until") == DAY_S
    assert seconds_of("1970-01-01T02:00:00+02:00", "now") == 0
    assert seconds_of(datetime(1970, 1, 1, 1, tzinfo=timezone.utc), "now") == 3600
    assert seconds_of(date(1970, 1, 2), "now") == DAY_S
    assert end_of(date(1970, 1, 1), "until") == end_of("1970-01-01", "until")
    assert end_of(datetime(1970, 1, 2), "until") == DAY_S
    assert end_of(19700101, "until") == 19700101


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the standard library reads no such days before")
@pytest.mark.parametrize("day", ["19700101", "1970-W01-4"])
def test_a_day_in_any_form_ends_at_its_end(day: str) -> None:
    assert end_of(day, "until") == end_of("1970-01-01", "until")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bound": 3.0}, "bound is 3.0"),
        ({"recency": -1.0}, "weight of recency is -1.0"),
        ({"half_life_days": 0}, "half_life_days is 0"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"min_probability": 0.4}, "min_probability is 0.4"),
        ({"recancy": 1.0}, "cognitive has no 'recancy'; there are now, recency"),
        ({"recency": "high"}, "recency is 'high'; give a number"),
        ({"bound": None}, "bound is None; give a number"),
        ({"has_subjects": "false"}, "has_subjects is 'false'; give true or false"),
        ({"now": "noon"}, "now is 'noon'; give seconds"),
        ({"fans": ["a"]}, "fans is .*; give the number"),
        ({"fans": {"a": "many"}}, "fans.'a'. is 'many'; give a number"),
    ],
)
def test_settings_that_would_outweigh_relevance_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Cognitive.of(options)


def test_settings_come_as_true_as_mappings_and_as_themselves() -> None:
    assert Cognitive.of(None) is None
    assert Cognitive.of(False) is None
    assert Cognitive.of(True) == Cognitive()
    assert Cognitive.of({"recency": 1.0}) == Cognitive(recency=1.0)
    assert Cognitive.of(settings := Cognitive(bound=0.5)) is settings
    with pytest.raises(TypeError, match="cognitive is a str; give True"):
        Cognitive.of("yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: half_life(1, days=0), "half-life is 0 days"),
        (lambda: posterior(-1, 0), "counts of 0 or more"),
        (lambda: confidence_evidence(1.5), "confidence is 1.5"),
        (lambda: importance_evidence(-0.1), "importance is -0.1"),
        (lambda: base_level_approximated(1, 9, recent_ages_s=[1, 2]), "count is 1, but 2 recent"),
    ],
)
def test_figures_out_of_range_are_refused(call, said: str) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    with pytest.raises(ValueError, match=said):
        call()
