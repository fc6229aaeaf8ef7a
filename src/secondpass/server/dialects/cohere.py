"""Cohere's rerank, v1 and v2, and what is posted to the same addresses by LiteLLM, Azure, Open WebUI and others.

Long documents are read in windows and the best one counts: v2 reads max_tokens_per_doc tokens of each (4096 unless
given), v1 max_chunks_per_doc windows (10). Answers carry what Jina's, vLLM's and infinity's clients look for as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from secondpass.server.dialects.answers import Result, Usage, results, usage
from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route
from secondpass.server.dialects.documents import read_documents
from secondpass.server.dialects.fields import Count, Documents, Positive, Request, Response, Whole, read
from secondpass.server.dialects.refusals import failure
from secondpass.wire.calls import Budgets, Fault, Ranked, Refusal, RerankCall

MAX_DOCUMENTS = 10_000  # of one request, windows counted in v1
DEFAULT_CHUNKS = 10
DEFAULT_TOKENS = 4096
UNIT = 100  # documents, or windows of long ones, that are one search unit


class CohereRequest(Request):
    """v1 and v2 together. top_n 0 or null is all of them."""

    query: str
    documents: Documents
    model: str | None = None
    top_n: Count | None = None
    rank_fields: list[str] | None = None
    return_documents: bool | None = None
    max_chunks_per_doc: Positive | None = None
    max_tokens_per_doc: Positive | None = None
    priority: Whole | None = None
    instruction: str | None = None


class CohereResponse(Response):
    """results, and beside Cohere's own fields those that other clients of these addresses need."""

    id: str
    results: list[Result]
    meta: dict[str, Any]
    object: str
    model: str
    created: int
    usage: Usage


def parse(body: Any, headers: Headers, *, budgets: Callable[[CohereRequest], Budgets]) -> RerankCall:
    asked = read(CohereRequest, body)
    if len(asked.documents) > MAX_DOCUMENTS:
        raise _too_many(f"documents has {len(asked.documents)}; at most {MAX_DOCUMENTS} are read in one request")
    return RerankCall(
        query=asked.query,
        documents=read_documents(asked.documents, rank_fields=asked.rank_fields),
        model=asked.model,
        top_n=asked.top_n or None,
        budgets=budgets(asked),
        instruction=asked.instruction,
        priority=asked.priority or 0,
    )


def budgets_v1(asked: CohereRequest) -> Budgets:
    """At most max_chunks_per_doc windows of each document. Raises Refusal for more than 10,000 in all."""
    chunks = asked.max_chunks_per_doc
    if chunks is not None and chunks * len(asked.documents) > MAX_DOCUMENTS:
        seen = f"max_chunks_per_doc {chunks} of {len(asked.documents)} documents is {chunks * len(asked.documents)}"
        raise _too_many(f"{seen}; at most {MAX_DOCUMENTS} are read in one request")
    most = chunks or max(1, min(DEFAULT_CHUNKS, MAX_DOCUMENTS // max(1, len(asked.documents))))
    return Budgets(max_document_tokens=asked.max_tokens_per_doc, in_windows=most > 1, max_windows=most)


def budgets_v2(asked: CohereRequest) -> Budgets:
    """The first max_tokens_per_doc tokens of each document, in as many windows as they need."""
    return Budgets(max_document_tokens=asked.max_tokens_per_doc or DEFAULT_TOKENS, in_windows=True)


def write(ranked: Ranked, call: RerankCall, body: Body, *, version: str, raw: bool) -> Reply:
    documents = body["documents"] if body.get("return_documents") else None
    units = math.ceil(max(ranked.cost.rows, len(call.documents)) / UNIT)
    meta: dict[str, Any] = {
        "api_version": {"version": version},
        "billed_units": {"search_units": units},
        "tokens": {"input_tokens": ranked.cost.tokens, "output_tokens": 0},
    }
    if ranked.cost.truncated:
        meta["warnings"] = [f"{ranked.cost.truncated} texts were too long and were cut"]
    return Reply(
        body={
            "id": ranked.id,
            "results": results(ranked, documents, raw=raw),
            "meta": meta,
            "object": "rerank",
            "model": ranked.model,
            "created": int(time.time()),
            "usage": usage(ranked.cost),
        }
    )


def _too_many(message: str) -> Refusal:
    return Refusal(Fault.too_large, message, parameter="documents")


def _route(path: str, version: str, budgets: Callable[[CohereRequest], Budgets], *, raw: bool) -> Route:
    return Route(
        path=path,
        documented=f"{'/logits' if raw else ''}/v{version}/rerank",
        kind="rerank",
        parse=partial(parse, budgets=budgets),
        write=partial(write, version=version, raw=raw),
        request_model=CohereRequest,
        response_model=CohereResponse,
    )


def _dialect(name: str, title: str, *, raw: bool) -> Dialect:
    return Dialect(
        name=name,
        title=title,
        routes=(
            _route("/v2/rerank", "2", budgets_v2, raw=raw),
            _route("/rerank", "1", budgets_v1, raw=raw),
        ),
        claims=lambda body, headers: False,  # it answers whatever no other dialect claims
        refuse=failure,
    )


COHERE = _dialect("cohere", "Cohere", raw=False)
# For applications that apply the sigmoid themselves: Dify's OpenAI-compatible provider does
LOGITS = _dialect("logits", "Cohere, with logits", raw=True)
