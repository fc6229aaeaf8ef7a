"""infinity's rerank: documents are given back as strings, so it has a prefix of its own: `/infinity/rerank`."""

from __future__ import annotations

import time
from typing import Any

from secondpass.server.dialects.answers import Usage, usage
from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route
from secondpass.server.dialects.documents import read_texts
from secondpass.server.dialects.fields import Count, Request, Response, Texts, read
from secondpass.server.dialects.refusals import STATUS, headers_of, openai_failure
from secondpass.wire.calls import Fault, Ranked, Refusal, RerankCall, ServerCard

STATUSES = {**STATUS, Fault.malformed: 422, Fault.invalid: 422, Fault.unsupported: 400, Fault.unknown_model: 400}
UNNAMED = "default/not-specified"  # what its client sends as the model when none is named


class InfinityRequest(Request):
    """raw_scores asks for logits."""

    query: str
    documents: Texts
    model: str | None = None
    top_n: Count | None = None
    return_documents: bool | None = None
    raw_scores: bool | None = None


class InfinityResult(Response):
    """One ranked document; the text as a string, when asked for."""

    relevance_score: float
    index: int
    document: str | None = None


class InfinityResponse(Response):
    """Results, best first."""

    object: str
    results: list[InfinityResult]
    model: str
    usage: Usage
    id: str
    created: int


class InfinityHealth(Response):
    """Seconds since the epoch."""

    unix: float


def parse(body: Any, headers: Headers) -> RerankCall:
    asked = read(InfinityRequest, body)
    return RerankCall(
        query=asked.query,
        documents=read_texts(asked.documents, "documents"),
        model=None if asked.model == UNNAMED else asked.model,
        top_n=asked.top_n or None,
    )


def write(ranked: Ranked, call: RerankCall, body: Body) -> Reply:
    rows: list[dict[str, Any]] = []
    for item in ranked.items:
        score = item.logit if body.get("raw_scores") else item.probability
        row: dict[str, Any] = {"relevance_score": score, "index": item.index}
        rows.append({**row, "document": call.documents[item.index]} if body.get("return_documents") else row)
    head = {"object": "rerank", "results": rows, "model": ranked.model, "usage": usage(ranked.cost)}
    return Reply(body={**head, "id": ranked.id, "created": int(time.time())})


def write_health(card: ServerCard, call: None, body: Body) -> Reply:
    return Reply(body={"unix": time.time()}, status=200 if card.is_ready else 503)


def refuse(refusal: Refusal, request_id: str) -> Reply:
    """OpenAI's body, but for a refused key and for fields: there it has FastAPI's."""
    reply = openai_failure(refusal, request_id, STATUSES)
    if refusal.fault is Fault.unauthorized:
        return Reply(status=reply.status, body={"detail": "Unauthorized"}, headers=headers_of(refusal))
    if reply.status == 422:
        place = ["body", refusal.parameter] if refusal.parameter else ["body"]
        detail = [{"loc": place, "msg": refusal.message, "type": refusal.fault.value}]
        return Reply(status=422, body={"detail": detail}, headers=reply.headers)
    return reply


INFINITY = Dialect(
    name="infinity",
    title="infinity",
    routes=(
        Route(
            path="/rerank",
            documented="/infinity/rerank",
            kind="rerank",
            parse=parse,
            write=write,
            request_model=InfinityRequest,
            response_model=InfinityResponse,
        ),
        Route(
            path="/health",
            documented="/infinity/health",
            kind="health",
            write=write_health,
            response_model=InfinityHealth,
        ),
    ),
    claims=lambda body, headers: "raw_scores" in body and "documents" in body,
    refuse=refuse,
)
