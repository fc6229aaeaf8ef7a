"""llama.cpp's server: `/reranking`, and `/rerank` below `/llamacpp`; scores are logits, as its rank pooling gives."""

from __future__ import annotations

from typing import Any

from pydantic import RootModel

from secondpass.server.dialects.answers import Usage, results, usage
from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route
from secondpass.server.dialects.documents import read_texts
from secondpass.server.dialects.fields import Count, Request, Response, Texts, read
from secondpass.server.dialects.refusals import STATUS, headers_of, status_of
from secondpass.wire.calls import Fault, Ranked, Refusal, RerankCall

STATUSES = {**STATUS, Fault.unsupported: 501, Fault.unknown_model: 400}
KINDS = {
    Fault.unauthorized: "authentication_error",
    Fault.forbidden: "permission_error",
    Fault.not_found: "not_found_error",
    Fault.unsupported: "not_supported_error",
    Fault.overloaded: "unavailable_error",
    Fault.unavailable: "unavailable_error",
    Fault.internal: "server_error",
    Fault.deadline: "server_error",
}


class LlamaRequest(Request):
    """`texts` in place of `documents` asks for TEI's answer: a bare list."""

    query: str
    documents: Texts | None = None
    texts: Texts | None = None
    model: str | None = None
    top_n: Count | None = None
    return_text: bool | None = None


class LlamaResult(Response):
    """One ranked document."""

    index: int
    relevance_score: float


class LlamaRank(Response):
    """One ranked text, in TEI's form."""

    index: int
    score: float
    text: str | None = None


class LlamaResults(Response):
    """Results, best first."""

    model: str
    object: str
    usage: Usage
    results: list[LlamaResult]


class LlamaResponse(RootModel[LlamaResults | list[LlamaRank]]):
    """For `documents` an object, for `texts` a bare list."""


def parse(body: Any, headers: Headers) -> RerankCall:
    asked = read(LlamaRequest, body)
    name = "documents" if asked.texts is None else "texts"
    return RerankCall(
        query=asked.query,
        documents=read_texts(getattr(asked, name), name),
        model=asked.model,
        top_n=asked.top_n or None,
    )


def write(ranked: Ranked, call: RerankCall, body: Body) -> Reply:
    if body.get("texts") is None:
        rows = results(ranked, None, raw=True)
        head = {"model": ranked.model, "object": "list", "usage": usage(ranked.cost)}
        return Reply(body={**head, "results": rows})
    bare: list[dict[str, Any]] = [{"index": item.index, "score": item.logit} for item in ranked.items]
    if body.get("return_text"):
        bare = [{**row, "text": call.documents[row["index"]]} for row in bare]
    return Reply(body=bare)


def refuse(refusal: Refusal, request_id: str) -> Reply:
    status = status_of(refusal, STATUSES)
    error = {"code": status, "message": refusal.message, "type": KINDS.get(refusal.fault, "invalid_request_error")}
    return Reply(status=status, body={"error": error}, headers=headers_of(refusal))


def _route(path: str, documented: str) -> Route:
    return Route(
        path=path,
        documented=documented,
        kind="rerank",
        parse=parse,
        write=write,
        request_model=LlamaRequest,
        response_model=LlamaResponse,
    )


LLAMACPP = Dialect(
    name="llamacpp",
    title="llama.cpp",
    routes=(_route("/reranking", "/v1/reranking"), _route("/rerank", "/llamacpp/rerank")),
    claims=lambda body, headers: False,  # nothing in a body is its own
    refuse=refuse,
)
