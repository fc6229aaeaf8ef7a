"""Cognitive scoring: recency, frequency, confidence, entities and importance as bounded evidence beside relevance.

Pure functions over numbers; no clock is read but the one that is given. A candidate's relevance is its calibrated
logit z. What is known of it makes evidence r in [-1, 1] for each term, 0 where nothing is known, and

    z' = z + gate(z) * clip(sum of weight * r, -bound, bound)

so that what is near in relevance is ordered by it, and what is irrelevant is not lifted. Adding in log-odds
multiplies the odds by at most e^bound. The formulas are those of ACT-R (Anderson and Schooler 1991) and of the Beta
distribution; docs/cognitive.md says how they are joined, with figures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, datetime, timezone
from numbers import Real
from typing import Any, TypeGuard

from secondpass.calibration import sigmoid

DAY_S = 86400.0
_SECONDS = re.compile(r"-?\d{9,12}(\.\d+)?", re.ASCII)  # of a command line; shorter ones are years and days
_UNSPACED = "[\u0e00-\u1dff\u2e80-\uffff\U00020000-\U0003ffff]"  # scripts without blanks, and Korean, among others
_SEAM = re.compile(f"(?<=[a-z0-9])(?={_UNSPACED})|(?<={_UNSPACED})(?=[a-z0-9])")
MIN_AGE_S = 1.0  # what was accessed just now, or by a clock that runs ahead, has this age
FULL_GAIN = math.log(4)  # the rise of the base level that counts as evidence 1: three uses as old as the text
SURE = 0.95  # the confidence that counts as evidence 1
MAX_BOUND = 1.5  # with more, the gate could put the less relevant of two equally old texts first
MAX_SECONDS = 3e11  # about the year 9999; clocks in milliseconds are beyond it
TERMS = ("recency", "frequency", "confidence", "entities", "importance")
PARTS = ("relevance", *TERMS, "evidence", "gate", "superseded", "final")  # of a hit: every figure that made its place


def base_level(ages_s: Iterable[float], *, decay: float = 0.5) -> float:
    """ACT-R's base level ln sum_k age_k^-decay of accesses, the creation among them; -inf without any.

    Ages are in seconds; those under one second count as one. Anderson and Schooler 1991, equation 2.
    """
    total = sum(max(age, MIN_AGE_S) ** -decay for age in ages_s)
    return math.log(total) if total > 0 else -math.inf


def base_level_approximated(
    count: int, lifetime_s: float, *, recent_ages_s: Sequence[float] = (), decay: float = 0.5
) -> float:
    """The base level of `count` accesses of which only the recent ones have known ages.

    The recent ages, newest first, are summed exactly; the others are taken as spread evenly between the oldest of
    these and the lifetime. Without recent ages it is ln(count / (1 - decay)) - decay ln(lifetime).
    Petrov 2006, "Computationally efficient approximation of the base-level learning equation", equation 6.
    """
    _check_decay(decay)
    if count < len(recent_ages_s):
        raise ValueError(f"count is {count}, but {len(recent_ages_s)} recent ages are given; count includes them")
    total = sum(max(age, MIN_AGE_S) ** -decay for age in recent_ages_s)
    lifetime = max(lifetime_s, MIN_AGE_S)
    oldest = max(recent_ages_s[-1], MIN_AGE_S) if recent_ages_s else 0.0
    rest, rise = count - len(recent_ages_s), 1 - decay
    if rest and lifetime > oldest:
        total += rest * (lifetime**rise - oldest**rise) / (rise * (lifetime - oldest))
    elif rest:
        total += rest * lifetime**-decay
    return math.log(total) if total > 0 else -math.inf


def half_life(age_s: float, *, days: float) -> float:
    """What is left after an age of a quantity that halves every so many days: 1 when new, towards 0."""
    if days <= 0:
        raise ValueError(f"the half-life is {days} days; give more than 0")
    return float(0.5 ** (max(age_s, 0.0) / (days * DAY_S)))


def posterior(supports: float, contradictions: float, *, prior: tuple[float, float] = (1.0, 1.0)) -> float:
    """The mean of the Beta posterior: how sure a statement is, in 0..1, after what speaks for and against it.

    prior counts as many imagined supports and contradictions: (1, 1) knows nothing, (4, 1) trusts a source.
    """
    if supports < 0 or contradictions < 0 or min(prior) <= 0:
        raise ValueError(
            f"counts ({supports}, {contradictions}) and prior {prior}: counts of 0 or more, prior above 0"
        )
    return (prior[0] + supports) / (sum(prior) + supports + contradictions)


def association(fan: int, *, strength: float = 3.0) -> float:
    """ACT-R's strength of association max(0, strength - ln fan): an entity in many documents says little."""
    return max(0.0, strength - math.log(max(fan, 1)))


def spread(
    sources: Mapping[str, float], links: Mapping[str, Mapping[str, float]], *, share: float = 0.5
) -> dict[str, float]:
    """Activation of entities one hop around the sources: each passes `share` of its own on, divided by the links.

    links gives each entity's neighbours with the weights of the links. Of the ways to an entity the strongest
    counts, so that a dense part of the graph does not outweigh what was asked. Collins and Loftus 1975.
    """
    found = dict(sources)
    for source, activation in sources.items():
        neighbours = links.get(source, {})
        total = sum(neighbours.values())
        for name, weight in neighbours.items():
            found[name] = max(found.get(name, 0.0), share * activation * weight / total)
    return found


def spreading(
    sources: Mapping[str, float], entities: Iterable[str], fans: Mapping[str, int], *, strength: float = 3.0
) -> float:
    """The share in 0..1 of what the query's entities can activate that reaches a document with these entities.

    ACT-R's sum_j W_j S_j over the entities that they share, over that of all sources. 0 without sources.
    """
    weights = {name: part * association(fans.get(name, 1), strength=strength) for name, part in sources.items()}
    total = sum(weights.values())
    return sum(weights.get(name, 0.0) for name in set(entities)) / total if total > 0 else 0.0


def recency_evidence(age_s: float, *, days: float) -> float:
    """2 * 0.5^(age / half-life) - 1: 1 when new, 0 at the half-life, towards -1."""
    return 2 * half_life(age_s, days=days) - 1


def frequency_evidence(accesses_s: Sequence[float], created_s: float | None, *, decay: float = 0.5) -> float:
    """How far uses of these ages raise the base level over that of the creation alone: 0 without any, at most 1.

    As many uses n as old as the text make ln(1 + n) / ln 4; recent uses of an old text make more. Where its age is
    unknown, the text is as old as its first use.
    """
    if not accesses_s:
        return 0.0
    created = max(accesses_s) if created_s is None else created_s
    gain = base_level([*accesses_s, created], decay=decay) - base_level([created], decay=decay)
    return min(1.0, gain / FULL_GAIN)


def confidence_evidence(confidence: float) -> float:
    """The logit of a confidence in 0..1, so scaled that 0.95 makes 1 and 0.05 makes -1, clipped there."""
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence is {confidence}; give 0..1, 0.5 for unknown")
    return _logit(min(max(confidence, 1 - SURE), SURE)) / _logit(SURE)


def importance_evidence(importance: float) -> float:
    """An importance in 0..1 as evidence: 0.5 is neutral."""
    if not 0 <= importance <= 1:
        raise ValueError(f"importance is {importance}; give 0..1, 0.5 for the usual")
    return 2 * importance - 1


def gate(logit: float, *, least: float = 0.05, full: float = 0.5) -> float:
    """How much evidence counts: nothing below the probability `least`, all from `full` on, between them linear."""
    return min(1.0, max(0.0, (sigmoid(logit) - least) / (full - least)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Signals:
    """What is known of a candidate beside its text; times in seconds since 1970.

    entities is None where nobody looked for any. subject names what a record states something about, as the path and
    heading of a section or the key of a fact: of candidates with one subject the newest stands for all.
    """

    created: float | None = None
    accessed: tuple[float, ...] = ()
    confidence: float | None = None
    entities: frozenset[str] | None = None
    importance: float | None = None
    is_superseded: bool = False
    subject: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("confidence", self.confidence), ("importance", self.importance)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; give 0..1, 0.5 where nothing is known")


@dataclass(frozen=True, kw_only=True)
class Cognitive:
    """How much each term counts, in logits, and the clock.

    now: the moment of asking, in seconds since 1970, as a datetime or in ISO 8601; None is that of the call. The same
    clock gives the same ranking. evergreen texts are told by having no `created`. fans: in how many documents of the
    whole collection an entity is; without it those among the candidates count. has_subjects turns off that of
    candidates with one subject the newest stands first.
    Raises ValueError for figures that would let evidence outweigh relevance.
    """

    now: float | date | str | None = None
    recency: float = 0.5
    frequency: float = 0.25
    confidence: float = 0.5
    entities: float = 0.3
    importance: float = 0.25
    half_life_days: float = 365.0
    decay: float = 0.5
    strength: float = 3.0
    bound: float = 1.0
    min_probability: float = 0.05
    has_subjects: bool = True
    fans: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*TERMS, "half_life_days", "decay", "strength", "bound", "min_probability"):
            _number(getattr(self, name), name)
        if self.now is not None:
            seconds_of(self.now, "now")
        if not isinstance(self.fans, Mapping):
            raise ValueError(f"fans is {self.fans!r}; give the number of documents by entity")
        for name, fan in self.fans.items():
            _number(fan, f"fans[{name!r}]")
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"the weight of {name} is {weight}; give 0 or more")
        if not 0 <= self.bound <= MAX_BOUND:
            raise ValueError(f"bound is {self.bound}; give 0 to {MAX_BOUND}, in logits")
        if not 0 <= self.min_probability <= 0.1:
            raise ValueError(f"min_probability is {self.min_probability}; give 0 to 0.1")
        if not self.half_life_days > 0:
            raise ValueError(f"half_life_days is {self.half_life_days}; give more than 0")
        _check_decay(self.decay)
        _is_true({"has_subjects": self.has_subjects}, "has_subjects")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term, in logits."""
        values = (self.recency, self.frequency, self.confidence, self.entities, self.importance)
        return dict(zip(TERMS, values, strict=True))

    @classmethod
    def of(cls, options: Cognitive | Mapping[str, Any] | bool | None) -> Cognitive | None:
        """Settings from what a caller or a request gives: True is the defaults, a mapping changes some of them."""
        if options is None or options is False:
            return None
        if isinstance(options, Cognitive):
            return options
        if options is True:
            return cls()
        if not isinstance(options, Mapping):
            raise TypeError(f"cognitive is a {type(options).__name__}; give True, or settings as a mapping")
        known = [each.name for each in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"cognitive has no {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
        return cls(**options)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighed:
    """A candidate after all terms: the logit that orders it, and every figure that made it."""

    logit: float
    is_superseded: bool
    parts: Mapping[str, float | int | str]


def weigh(
    settings: Cognitive, logits: Sequence[float], signals: Sequence[Signals], *, query: str, now: float
) -> list[Weighed]:
    """The candidates of one query with their evidence, in input order; logits are calibrated, now is in seconds.

    The entities of the query are those of the candidates that it names.
    """
    sources = named_entities(query, signals)
    fans = settings.fans or _fans(signals, sources)
    shares = [_share(each, sources, fans, settings.strength) for each in signals]
    known = [share for share in shares if share is not None]
    mean = sum(known) / len(known) if known else 0.0
    centred = [0.0 if share is None else share - mean for share in shares]
    weighed = [
        _weighed(settings, logit, evidence(settings, each, share, now), each)
        for logit, each, share in zip(logits, signals, centred, strict=True)
    ]
    return _newest_first(weighed, signals) if settings.has_subjects else weighed


def evidence(settings: Cognitive, signals: Signals, share: float, now: float) -> dict[str, float]:
    """Each term's evidence in [-1, 1] of one candidate; share is that of the entities, centred."""
    age = None if signals.created is None else now - signals.created
    uses = [now - access for access in signals.accessed if access <= now]
    return {
        "recency": 0.0 if age is None else recency_evidence(age, days=settings.half_life_days),
        "frequency": frequency_evidence(uses, age, decay=settings.decay),
        "confidence": 0.0 if signals.confidence is None else confidence_evidence(signals.confidence),
        "entities": share,
        "importance": 0.0 if signals.importance is None else importance_evidence(signals.importance),
    }


def order(weighed: Sequence[Weighed]) -> list[int]:
    """Indices, best first: those that are superseded after all others; equals keep their order."""
    return sorted(range(len(weighed)), key=lambda i: (weighed[i].is_superseded, -weighed[i].logit))


def named_entities(query: str, signals: Iterable[Signals]) -> dict[str, float]:
    """The candidates' entities that the query names, each with an equal part of activation 1."""
    text = f" {_spaced(query)} "
    found = sorted({name for each in signals for name in each.entities or () if _is_named(name, text)})
    return {name: 1 / len(found) for name in found}


def signals_of(record: Mapping[str, Any]) -> Signals:
    """The signals among a document's fields. Raises ValueError that names the field which cannot be read.

    created and accessed (one or a list): seconds since 1970, a datetime or ISO 8601; confidence: 0..1, or supports
    and contradictions as counts; entities: names; importance: 0..1; superseded: true or false; subject: a name.
    """
    accessed, created = record.get("accessed"), record.get("created")
    accesses = accessed if _is_listed(accessed) else [] if accessed is None else [accessed]
    entities = record.get("entities")
    if entities is not None and not _are_names(entities):
        raise ValueError(f"entities is {_shown(entities)}; give a list of names")
    return Signals(
        created=None if created is None else seconds_of(created, "created"),
        accessed=tuple(seconds_of(access, "accessed") for access in accesses),
        confidence=_confidence_in(record),
        entities=None if entities is None else frozenset(entities),
        importance=_number_in(record, "importance"),
        is_superseded=_is_true(record, "superseded"),
        subject=_subject_in(record),
    )


def seconds_of(moment: float | date | str, name: str) -> float:
    """A moment in seconds since 1970; one without a zone is in UTC, a day its beginning.

    Raises ValueError that says `name`.
    """
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = str(moment)
    if isinstance(moment, str):
        if _SECONDS.fullmatch(moment.strip()):
            return float(moment)
        try:
            moment = datetime.fromisoformat(moment.strip().replace("Z", "+00:00"))
        except ValueError as error:
            message = f"{name} is {_shown(moment)}; give seconds since 1970 or ISO 8601, as 2026-11-28"
            raise ValueError(message) from error
    given = moment
    if isinstance(moment, datetime) and moment == moment:  # pandas' NaT is a datetime that equals nothing
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    seconds = _real(moment)
    if not abs(seconds) <= MAX_SECONDS:
        raise ValueError(f"{name} is {_shown(given)}; give seconds since 1970 or ISO 8601, as 2026-11-28")
    return seconds


def end_of(moment: float | date | str, name: str) -> float:
    """As `seconds_of`; a day without a time means the end of it."""
    return seconds_of(moment, name) + (DAY_S - 0.001 if _is_day(moment) else 0.0)


def _is_day(moment: float | date | str) -> bool:
    """Whether it is a day alone: 2026-11-28, 20261128, 2026-W48-6."""
    try:
        return isinstance(moment, date | str) and bool(date.fromisoformat(str(moment).strip()))
    except ValueError:  # a datetime is written with its time
        return False


def _weighed(settings: Cognitive, logit: float, terms: Mapping[str, float], signals: Signals) -> Weighed:
    total = sum(weight * terms[name] for name, weight in settings.weights.items())
    bounded = min(max(total, -settings.bound), settings.bound)
    open_by = gate(logit, least=settings.min_probability)
    final = logit + open_by * bounded
    shown: dict[str, float | int | str] = {"relevance": logit, **terms, "evidence": bounded, "gate": open_by}
    return Weighed(
        logit=final,
        is_superseded=signals.is_superseded,
        parts=shown | {"superseded": int(signals.is_superseded), "final": final},
    )


def by_subject(signals: Sequence[Signals]) -> list[list[int]]:
    """The candidates of each subject that have a date and are not superseded, in their order."""
    groups: dict[str, list[int]] = {}
    for index, each in enumerate(signals):
        if each.subject is not None and each.created is not None and not each.is_superseded:
            groups.setdefault(each.subject, []).append(index)
    return list(groups.values())


def _newest_first(weighed: list[Weighed], signals: Sequence[Signals]) -> list[Weighed]:
    """Of candidates with one subject the newest has the best logit among them, so that it stands before the others.

    The others keep theirs, but where they would tie they are put behind, and are marked as superseded in parts.
    """
    found = list(weighed)
    for members in by_subject(signals):
        newest = max(members, key=lambda i: (signals[i].created, weighed[i].logit))
        best = max(weighed[i].logit for i in members)
        for i in members:
            logit = best if i == newest else min(weighed[i].logit, math.nextafter(best, -math.inf))
            is_older = signals[i].created != signals[newest].created
            marks = {"superseded": int(is_older), "final": logit}
            found[i] = Weighed(logit=logit, is_superseded=False, parts={**weighed[i].parts, **marks})
    return found


def _share(signals: Signals, sources: Mapping[str, float], fans: Mapping[str, int], strength: float) -> float | None:
    if signals.entities is None or not sources:
        return None
    return spreading(sources, signals.entities, fans, strength=strength)


def _fans(signals: Sequence[Signals], names: Iterable[str]) -> dict[str, int]:
    return {name: sum(name in (each.entities or ()) for each in signals) for name in names}


def _is_named(name: str, text: str) -> bool:
    """Whether the text, in words between blanks, has the name: as whole words, or anywhere where it is not ASCII."""
    words = _spaced(name)
    return bool(words) and (f" {words} " if words.isascii() else words) in text


def _spaced(text: str) -> str:
    """Its letters and digits in lower case, with one blank between words; names in ASCII are words in any script."""
    bare = "".join(c if c.isalnum() else " " for c in text.casefold())
    return " ".join(_SEAM.sub(" ", bare).split())


def _is_listed(value: object) -> TypeGuard[Collection[Any]]:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


def _are_names(value: Any) -> bool:
    return _is_listed(value) and all(isinstance(name, str) for name in value)


def _confidence_in(record: Mapping[str, Any]) -> float | None:
    given = _number_in(record, "confidence")
    supports, contradictions = _number_in(record, "supports"), _number_in(record, "contradictions")
    if given is not None or (supports is None and contradictions is None):
        return given
    return posterior(supports or 0.0, contradictions or 0.0)


def _number_in(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    return None if value is None else _number(value, name)


def _subject_in(record: Mapping[str, Any]) -> str | None:
    """None where it is blank: a table has such for what is not known."""
    value = record.get("subject")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"subject is {value}; give a name")
    return None if value is None else str(value).strip() or None


def _is_true(record: Mapping[str, Any], name: str) -> bool:
    """Databases have 0 and 1; a text, as "false", is none of both."""
    value = record.get(name)
    if isinstance(value, str) or value not in (None, False, True):
        raise ValueError(f"{name} is {_shown(value)}; give true or false")
    return bool(value)


def _number(value: object, name: str) -> float:
    number = _real(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {_shown(value)}; give a number")
    return number


def _real(value: object) -> float:
    """A number, numpy's too; NaN for what is none, or beyond all floats."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _check_decay(decay: float) -> None:
    if not 0 < decay < 1:
        raise ValueError(f"decay is {decay}; give more than 0 and less than 1")


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
