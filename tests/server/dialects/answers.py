"""Answers as a service would give them, from logits by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from secondpass.server.dialects import Dialect, Route, choose
from secondpass.server.dialects.dialect import Call, Reply
from secondpass.wire.calls import Cost, Item, ModelCard, Ranked, RerankCall, ScoreCall, ServerCard, Timing

TIMING = Timing(total=0.0123, tokenize=0.001, queue=0.002, compute=0.009)
CARD = ServerCard(
    models=(
        ModelCard(
            name="vectors", revision=None, family="bert", dtype="float32", device="cpu", engine="torch",
            max_length=512, is_reranker=False, is_embedder=True, created=1_700_000_000,
        ),
        ModelCard(
            name="default", revision="abc", family="bert", dtype="int8", device="cpu", engine="openvino",
            max_length=512, created=1_700_000_001,
        ),
    ),
    version="1.2.3",
    max_documents=10_000,
    max_batch_tokens=16_384,
    max_concurrent_requests=512,
)  # fmt: skip


def ranked(call: Call, *logits: float, rows: int | None = None, truncated: int = 0) -> Ranked:
    """The answer to a call whose i-th text scores logits[i]: best first for a ranking, in order for pairs."""
    items = [Item(index=i, logit=logit, probability=1 / (1 + math.exp(-logit))) for i, logit in enumerate(logits)]
    if isinstance(call, RerankCall):
        assert len(logits) == len(call.documents)
        items = sorted(items, key=lambda item: -item.logit)[: call.top_n]
    if isinstance(call, ScoreCall):
        assert len(logits) == len(call.pairs)
    cost = Cost(tokens=42, rows=len(logits) if rows is None else rows, characters=99, truncated=truncated)
    return Ranked(id="r-1", model="default", items=tuple(items), cost=cost, timing=TIMING)


def answer(path: str, body: Mapping[str, Any], *logits: float, rows: int | None = None) -> Reply:
    """What is written for a body at a path when the texts score these logits."""
    route = choose(path, body, {})[1]
    assert route.parse is not None
    call = route.parse(body, {})
    return route.write(ranked(call, *logits, rows=rows), call, body)


def parsed(path: str, body: Mapping[str, Any]) -> Call:
    route = choose(path, body, {})[1]
    assert route.parse is not None
    return route.parse(body, {})


def routes() -> list[tuple[Dialect, Route]]:
    from secondpass.server.dialects import DIALECTS

    return [(dialect, route) for dialect in DIALECTS for route in dialect.routes]
