"""Voyage's rerank: `top_k`, results under `data`, errors under `detail`."""

from __future__ import annotations

import re
from typing import Any

from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route
from secondpass.server.dialects.documents import read_texts
from secondpass.server.dialects.fields import Count, Request, Response, Texts, read
from secondpass.server.dialects.refusals import STATUS, failure
from secondpass.wire.calls import Budgets, Fault, Ranked, Refusal, RerankCall

# Its client makes a MalformedRequestError of 422, an InvalidRequestError of 400
STATUSES = {**STATUS, Fault.malformed: 422, Fault.unsupported: 400, Fault.unknown_model: 400}
MODELS = re.compile(r"rerank-(lite-)?\d")  # rerank-2.5, rerank-lite-1; Cohere's have a letter there


class VoyageRequest(Request):
    """truncation false refuses what is too long."""

    query: str
    documents: Texts
    model: str | None = None
    top_k: Count | None = None
    return_documents: bool | None = None
    truncation: bool | None = None


class VoyageResult(Response):
    """One ranked document; the text as a string, when asked for."""

    index: int
    relevance_score: float
    document: str | None = None


class VoyageUsage(Response):
    """Tokens read."""

    total_tokens: int


class VoyageResponse(Response):
    """Results, best first."""

    object: str
    data: list[VoyageResult]
    model: str
    usage: VoyageUsage


def parse(body: Any, headers: Headers) -> RerankCall:
    asked = read(VoyageRequest, body)
    return RerankCall(
        query=asked.query,
        documents=read_texts(asked.documents, "documents"),
        model=asked.model,
        top_n=asked.top_k or None,
        budgets=Budgets(may_truncate=asked.truncation is not False),
    )


def write(ranked: Ranked, call: RerankCall, body: Body) -> Reply:
    rows: list[dict[str, Any]] = []
    for item in ranked.items:
        row: dict[str, Any] = {"index": item.index, "relevance_score": item.probability}
        rows.append({**row, "document": call.documents[item.index]} if body.get("return_documents") else row)
    total = {"total_tokens": ranked.cost.tokens}
    return Reply(body={"object": "list", "data": rows, "model": ranked.model, "usage": total})


def claims(body: Body, headers: Headers) -> bool:
    model = body.get("model")
    return "top_k" in body or (isinstance(model, str) and MODELS.match(model) is not None)


def refuse(refusal: Refusal, request_id: str) -> Reply:
    return failure(refusal, request_id, STATUSES)


VOYAGE = Dialect(
    name="voyage",
    title="Voyage AI",
    routes=(
        Route(
            path="/rerank",
            documented="/v1/rerank",
            kind="rerank",
            parse=parse,
            write=write,
            request_model=VoyageRequest,
            response_model=VoyageResponse,
        ),
    ),
    claims=claims,
    refuse=refuse,
)
