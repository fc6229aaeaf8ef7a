"""Parts that answers of several dialects share: the list of results, documents given back, usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secondpass.server.dialects.fields import Response
from secondpass.wire.calls import Cost, Ranked


class Usage(Response):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Result(Response):
    """One ranked document; relevance_score is what the dialect says, a probability or a logit."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


def usage(cost: Cost) -> dict[str, int]:
    return {"prompt_tokens": cost.tokens, "total_tokens": cost.tokens}


def results(ranked: Ranked, documents: Sequence[Any] | None, *, raw: bool = False) -> list[dict[str, Any]]:
    """The results, with their documents as objects when those are given; raw: logits in place of probabilities."""
    rows = []
    for item in ranked.items:
        row: dict[str, Any] = {"index": item.index, "relevance_score": item.logit if raw else item.probability}
        if documents is not None:
            document = documents[item.index]
            row["document"] = dict(document) if isinstance(document, Mapping) else {"text": document}
        rows.append(row)
    return rows
