"""What `rank` is asked for, of whatever public class, and the last step of each: cognitive evidence, top_n, ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, TypeAlias

from secondpass.calibration import sigmoid
from secondpass.cognitive import Cognitive, Signals, order, seconds_of, signals_of, weigh
from secondpass.public import check_kind
from secondpass.types import Document, EarlyExit, Hit, Progress

CognitiveLike: TypeAlias = "Cognitive | Mapping[str, Any] | bool | None"
EarlyExitLike: TypeAlias = "EarlyExit | float | Mapping[int, float] | None"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankOptions:
    """The keywords of `rank`, checked. Raises TypeError and ValueError for what is none."""

    top_n: int | None = None
    rank_fields: Sequence[str] | None = None
    explain: bool = False
    budget_ms: float | None = None
    first_scores: Sequence[float] | None = None
    early_exit: EarlyExitLike = None
    cognitive: CognitiveLike = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        check_kind("top_n", self.top_n, Integral, "a whole number, or None for all")
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"top_n is {self.top_n}; give 1 or more, or None for all")
        if isinstance(self.rank_fields, str):
            raise TypeError(f"rank_fields is a str; give a list of names, [{self.rank_fields!r}] for one")
        for name in ("rank_fields", "first_scores"):  # each is read more than once, which an iterator is not
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(given))
        check_budget(self.budget_ms)
        if self.first_scores is not None and self.budget_ms is None:
            raise ValueError(
                "first_scores say what is scored first within budget_ms; without a budget all documents are scored"
            )
        if self.early_exit is not None and self.budget_ms is not None:
            raise ValueError("early_exit compares all documents, budget_ms may not score them all; give one of them")
        if self.early_exit is not None and Cognitive.of(self.cognitive) is not None:
            raise ValueError("early_exit settles the first by relevance alone, cognitive may change them; give one")

    def refuse(self, owner: str, **reasons: str) -> None:
        """Raises ValueError where an option is given that `owner` cannot do, for the reason that is said here."""
        for name, reason in reasons.items():
            if getattr(self, name) not in (None, False):
                raise ValueError(f"{name} is given, but {owner} {reason}; leave it out")

    def first_order(self, num_documents: int) -> list[int]:
        """Indices of the documents by the first stage's scores, best first, NaN last; in their order without any."""
        if self.first_scores is None:
            return list(range(num_documents))
        scores = list(self.first_scores)  # by place: the column of a table that was sorted has other labels
        if len(scores) != num_documents:
            seen = f"{len(scores)} scores for {num_documents} documents"
            raise ValueError(f"first_scores has {seen}; give one for each")
        try:
            return sorted(range(num_documents), key=lambda i: math.inf if math.isnan(scores[i]) else -scores[i])
        except TypeError as error:
            raise TypeError(f"first_scores has what is no number ({error}); give one for each document") from error


def check_budget(budget_ms: float | None) -> None:
    """Raises TypeError and ValueError for what is no time."""
    check_kind("budget_ms", budget_ms, Real, "milliseconds")
    if budget_ms is not None and not budget_ms > 0:
        raise ValueError(f"budget_ms is {budget_ms}; give the milliseconds that ranking may take, more than 0")


def ranked(query: str, hits: Sequence[Hit], options: RankOptions, logit: Callable[[Hit], float]) -> tuple[Hit, ...]:
    """The hits, which are best first, with ranks from 1; by cognitive evidence too where that is asked for.

    logit is a hit's calibrated one. Raises ValueError for a document's field that cannot be read.
    """
    settings = Cognitive.of(options.cognitive)
    if settings is not None:
        hits = _weighed(query, hits, settings, logit)
    return tuple(replace(hit, rank=rank) for rank, hit in enumerate(hits[: options.top_n], start=1))


def _weighed(query: str, hits: Sequence[Hit], settings: Cognitive, logit: Callable[[Hit], float]) -> list[Hit]:
    """The scored hits with cognitive evidence, then the unscored.

    `score` stays the raw logit, `probability` is that of the final one, and every term is in `parts`.
    """
    scored = [hit for hit in hits if hit.is_scored]
    now = time.time() if settings.now is None else seconds_of(settings.now, "now")
    signals = [_signals(hit) for hit in scored]
    weighed = weigh(settings, [logit(hit) for hit in scored], signals, query=query, now=now)
    found = [
        replace(
            scored[i], probability=sigmoid(weighed[i].logit), parts={**(scored[i].parts or {}), **weighed[i].parts}
        )
        for i in order(weighed)
    ]
    return found + [hit for hit in hits if not hit.is_scored]


def _signals(hit: Hit) -> Signals:
    try:
        return signals_of(hit.document.fields)
    except ValueError as error:
        raise ValueError(f"documents[{hit.index}]: {error}") from error


def unscored_hit(index: int, document: Document, read_text: str | None = None) -> Hit:
    return Hit(
        index=index,
        document=document,
        score=math.nan,
        probability=math.nan,
        rank=0,
        is_scored=False,
        read_text=read_text,
    )


def log_odds(hit: Hit) -> float:
    """The logit of a hit's probability, for those whose probability is all that is known."""
    bounded = min(max(hit.probability, 1e-12), 1 - 1e-12)
    return math.log(bounded) - math.log1p(-bounded)


def one_score(score: float) -> float:
    """What `probability` is given, as it is. Raises TypeError for lists and whatever else is no number."""
    if not isinstance(score, Real):
        needed = "a number; [model.probability(score) for score in scores] for a list"
        raise TypeError(f"score is a {type(score).__name__}; give {needed}")
    return float(score)
