"""A ranking in the order of relevance and of what is known of its documents beside their text (see cognitive)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from secondpass.calibration import sigmoid
from secondpass.cognitive import Cognitive, order, seconds_of, signals_of, weigh
from secondpass.types import Hit, Ranking


def weighed_ranking(
    ranking: Ranking, settings: Cognitive, top_n: int | None, logit: Callable[[float], float]
) -> Ranking:
    """The scored hits with cognitive evidence, then the unscored; logit makes a raw score a calibrated one.

    `score` stays the raw logit, `probability` is that of the final one, and every term is in `parts`.
    Raises ValueError for a document's field that cannot be read, with the document's index.
    """
    scored = [hit for hit in ranking if hit.is_scored]
    now = time.time() if settings.now is None else seconds_of(settings.now, "now")
    signals = []
    for hit in scored:
        try:
            signals.append(signals_of(hit.document.fields))
        except ValueError as error:
            raise ValueError(f"documents[{hit.index}]: {error}") from error
    weighed = weigh(settings, [logit(hit.score) for hit in scored], signals, query=ranking.query, now=now)
    hits: list[Hit] = [
        replace(
            scored[at],
            probability=sigmoid(weighed[at].logit),
            parts={**(scored[at].parts or {}), **weighed[at].parts},
        )
        for at in order(weighed)
    ]
    hits += [hit for hit in ranking if not hit.is_scored]
    return replace(ranking, hits=tuple(replace(hit, rank=rank) for rank, hit in enumerate(hits[:top_n])))
