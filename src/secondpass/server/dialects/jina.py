"""Jina's rerank: documents are given back unless that is switched off, errors have coded names."""

from __future__ import annotations

import time
from typing import Any

from secondpass.server.dialects.answers import Result, Usage, results, usage
from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route
from secondpass.server.dialects.documents import read_document, read_documents
from secondpass.server.dialects.fields import Count, Documents, Request, Response, TextOrObject, read
from secondpass.server.dialects.refusals import STATUS, Failure, headers_of, status_of
from secondpass.wire.calls import Budgets, Fault, Ranked, Refusal, RerankCall

STATUSES = {**STATUS, Fault.unknown_model: 400}
CODES = {
    Fault.unknown_model: "INPUT_MODEL_NOT_FOUND",
    Fault.unauthorized: "AUTH_INVALID_API_KEY",
    Fault.overloaded: "RATE_REQUEST_LIMIT_EXCEEDED",
}
# Jina's models are also served by others, and asked for by Cohere's client
COHERES = {"rank_fields", "max_chunks_per_doc", "max_tokens_per_doc", "priority"}


class JinaRequest(Request):
    """query and documents may be objects with `text`; truncation false refuses what is too long."""

    query: TextOrObject
    documents: Documents
    model: str | None = None
    top_n: Count | None = None
    return_documents: bool | None = None
    max_doc_length: Count | None = None
    max_query_length: Count | None = None
    truncation: bool | None = None


class JinaResponse(Response):
    """Results, best first; id, object and created are for other clients that ask for a model of Jina's."""

    id: str
    object: str
    created: int
    model: str
    usage: Usage
    results: list[Result]


class JinaFailure(Failure):
    """The union of error bodies, with Jina's name of the error."""

    code: str


def parse(body: Any, headers: Headers) -> RerankCall:
    asked = read(JinaRequest, body)
    return RerankCall(
        query=read_document(asked.query, "query"),
        documents=read_documents(asked.documents),
        model=asked.model,
        top_n=asked.top_n or None,
        budgets=Budgets(
            max_query_tokens=asked.max_query_length or None,
            max_document_tokens=asked.max_doc_length or None,
            may_truncate=asked.truncation is not False,
        ),
    )


def write(ranked: Ranked, call: RerankCall, body: Body) -> Reply:
    documents = None if body.get("return_documents") is False else body["documents"]
    return Reply(
        body={
            "id": ranked.id,
            "object": "rerank",
            "created": int(time.time()),
            "model": ranked.model,
            "usage": usage(ranked.cost),
            "results": results(ranked, documents),
        }
    )


def claims(body: Body, headers: Headers) -> bool:
    """A model that is called as Jina's are, and no field of Cohere's."""
    model = body.get("model")
    is_named = isinstance(model, str) and model.removeprefix("jinaai/").startswith("jina-")
    return is_named and COHERES.isdisjoint(body)


def refuse(refusal: Refusal, request_id: str) -> Reply:
    words = refusal.message
    code = CODES.get(refusal.fault, refusal.fault.value.upper())
    body = JinaFailure(
        id=request_id, message=words, detail=words, error=words, error_type=refusal.fault.value, code=code
    )
    return Reply(status=status_of(refusal, STATUSES), body=body.model_dump(), headers=headers_of(refusal))


JINA = Dialect(
    name="jina",
    title="Jina",
    routes=(
        Route(
            path="/rerank",
            documented="/v1/rerank",
            kind="rerank",
            parse=parse,
            write=write,
            request_model=JinaRequest,
            response_model=JinaResponse,
        ),
    ),
    claims=claims,
    refuse=refuse,
)
