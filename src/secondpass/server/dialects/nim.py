"""NVIDIA NIM's text reranking: `/v1/ranking`, and the addresses of its hosted API; scores are logits.

`truncate` is NONE unless given, as there: a passage that is too long is refused.
"""

from __future__ import annotations

from typing import Any, Literal

from secondpass.server.dialects.answers import Usage, usage
from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route
from secondpass.server.dialects.documents import read_document, read_documents, refuse_media
from secondpass.server.dialects.fields import Count, Documents, Request, Response, TextOrObject, read
from secondpass.server.dialects.refusals import failure
from secondpass.wire.calls import Budgets, Ranked, RerankCall


class NimRequest(Request):
    """query and passages are objects with `text`; plain strings are read too."""

    query: TextOrObject
    passages: Documents
    model: str | None = None
    truncate: Literal["NONE", "END"] | None = None
    top_k: Count | None = None  # not in NIM's description; LiteLLM sends it


class NimRanking(Response):
    """One passage and its raw score."""

    index: int
    logit: float


class NimResponse(Response):
    """Rankings, best first."""

    rankings: list[NimRanking]
    usage: Usage


def parse(body: Any, headers: Headers) -> RerankCall:
    asked = read(NimRequest, body)
    for i, passage in enumerate(asked.passages):
        if isinstance(passage, dict):
            refuse_media(passage, f"passages[{i}]")
    return RerankCall(
        query=read_document(asked.query, "query"),
        documents=read_documents(asked.passages, name="passages"),
        model=asked.model,
        top_n=asked.top_k or None,
        budgets=Budgets(may_truncate=asked.truncate == "END"),
    )


def write(ranked: Ranked, call: RerankCall, body: Body) -> Reply:
    rankings = [{"index": item.index, "logit": item.logit} for item in ranked.items]
    return Reply(body={"rankings": rankings, "usage": usage(ranked.cost)})


def _route(path: str, documented: str) -> Route:
    return Route(
        path=path,
        documented=documented,
        kind="rerank",
        parse=parse,
        write=write,
        request_model=NimRequest,
        response_model=NimResponse,
    )


NIM = Dialect(
    name="nim",
    title="NVIDIA NIM",
    routes=(
        _route("/ranking", "/v1/ranking"),
        _route("/retrieval/{model}/reranking", "/v1/retrieval/{model}/reranking"),
        _route("/rerank", "/nim/rerank"),
    ),
    claims=lambda body, headers: "passages" in body,
    refuse=failure,
)
