"""vLLM: `/rerank`, `/v2/rerank` and `/score` (one to one, one to many, many to many), with its ways to cut.

Without truncate_prompt_tokens a pair that is too long is refused, as there. Scores are probabilities;
`use_activation: false` asks for logits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from secondpass.server.dialects.answers import Usage, usage
from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route
from secondpass.server.dialects.documents import read_document, read_documents
from secondpass.server.dialects.fields import AnyTexts, Count, Request, Response, TextOrObject, Whole, read
from secondpass.server.dialects.refusals import STATUS, openai_failure
from secondpass.wire.calls import Budgets, Fault, Ranked, Refusal, RerankCall, ScoreCall

STATUSES = {**STATUS, Fault.unsupported: 400}
# Names under which the two sides of /score arrive
SIDES = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
# Fields that only vLLM's clients send to an address that others share
OWN = {
    "truncate_prompt_tokens",
    "truncation_side",
    "max_tokens_per_query",
    "use_activation",
    "activation",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "cache_salt",
}


class VllmRequest(Request):
    """What both requests have. max_tokens 0 is no limit; truncate_prompt_tokens -1 is the model's own length."""

    model: str | None = None
    truncate_prompt_tokens: Annotated[Whole, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    max_tokens_per_query: Count | None = None
    max_tokens_per_doc: Count | None = None
    instruction: str | None = None
    use_activation: bool | None = None
    activation: bool | None = None  # the older name of use_activation
    priority: Whole | None = None


class VllmRerankRequest(VllmRequest):
    """top_n 0 or null is all of them."""

    query: TextOrObject
    documents: AnyTexts
    top_n: Count | None = None


class VllmScoreRequest(VllmRequest):
    """Two sides: queries and documents (or items), data_1 and data_2, or text_1 and text_2."""

    queries: AnyTexts | None = None
    documents: AnyTexts | None = None
    items: AnyTexts | None = None
    data_1: AnyTexts | None = None
    data_2: AnyTexts | None = None
    text_1: AnyTexts | None = None
    text_2: AnyTexts | None = None


class VllmDocument(Response):
    """The text that was read; multi_modal is always null here."""

    text: str
    multi_modal: None


class VllmResult(Response):
    """One ranked document."""

    index: int
    document: VllmDocument
    relevance_score: float


class VllmRerankResponse(Response):
    """Results, best first."""

    id: str
    model: str
    usage: Usage
    results: list[VllmResult]


class VllmScore(Response):
    """The score of one pair."""

    index: int
    object: str
    score: float


class VllmScoreResponse(Response):
    """Scores in input order."""

    id: str
    object: str
    created: int
    model: str
    data: list[VllmScore]
    usage: Usage


def parse_rerank(body: Any, headers: Headers) -> RerankCall:
    asked = read(VllmRerankRequest, body)
    return RerankCall(
        query=read_document(asked.query, "query"),
        documents=read_documents(_as_list(asked.documents)),
        model=asked.model,
        top_n=asked.top_n or None,
        budgets=_budgets(asked),
        instruction=asked.instruction,
        priority=asked.priority or 0,
    )


def parse_score(body: Any, headers: Headers) -> ScoreCall:
    asked = read(VllmScoreRequest, body)
    left, right = _sides(asked)
    one, other = (read_documents(_as_list(getattr(asked, name)), name=name) for name in (left, right))
    if len(one) not in (1, len(other)):
        seen = f"{left} has {len(one)} and {right} {len(other)}"
        raise Refusal(Fault.invalid, f"{seen}; give one of the first, or as many of both", parameter=left)
    return ScoreCall(
        pairs=tuple(zip(one * len(other) if len(one) == 1 else one, other, strict=True)),
        model=asked.model,
        budgets=_budgets(asked),
        instruction=asked.instruction,
        priority=asked.priority or 0,
    )


def write_rerank(ranked: Ranked, call: RerankCall, body: Body) -> Reply:
    is_raw = _is_raw(body)
    rows = [
        {
            "index": item.index,
            "document": {"text": call.documents[item.index], "multi_modal": None},
            "relevance_score": item.logit if is_raw else item.probability,
        }
        for item in ranked.items
    ]
    return Reply(body={"id": ranked.id, "model": ranked.model, "usage": usage(ranked.cost), "results": rows})


def write_score(ranked: Ranked, call: ScoreCall, body: Body) -> Reply:
    is_raw = _is_raw(body)
    rows = [
        {"index": item.index, "object": "score", "score": item.logit if is_raw else item.probability}
        for item in ranked.items
    ]
    head = {"id": ranked.id, "object": "list", "created": int(time.time()), "model": ranked.model}
    return Reply(body={**head, "data": rows, "usage": usage(ranked.cost)})


def refuse(refusal: Refusal, request_id: str) -> Reply:
    return openai_failure(refusal, request_id, STATUSES)


def _budgets(asked: VllmRequest) -> Budgets:
    length = asked.truncate_prompt_tokens
    return Budgets(
        max_length=length if length is not None and length > 0 else None,
        max_query_tokens=asked.max_tokens_per_query or None,
        max_document_tokens=asked.max_tokens_per_doc or None,
        may_truncate=length is not None or bool(asked.max_tokens_per_doc or asked.max_tokens_per_query),
        keep_end=asked.truncation_side == "left",
    )


def _sides(asked: VllmScoreRequest) -> tuple[str, str]:
    for left, right in SIDES:
        if getattr(asked, left) is not None and getattr(asked, right) is not None:
            return left, right
    there = [name for sides in SIDES for name in sides if getattr(asked, name) is not None]
    seen = f"only {there[0]} is given" if there else "none is given"
    message = f"{seen}; two are needed: " + ", or ".join(" and ".join(sides) for sides in SIDES)
    raise Refusal(Fault.malformed, message, parameter=there[0] if there else "queries")


def _as_list(value: Any) -> Any:
    """A single text or object as a list of one."""
    return [value] if isinstance(value, str | Mapping) else value


def _is_raw(body: Body) -> bool:
    return body.get("use_activation") is False or body.get("activation") is False


def _rerank(path: str, documented: str) -> Route:
    return Route(
        path=path,
        documented=documented,
        kind="rerank",
        parse=parse_rerank,
        write=write_rerank,
        request_model=VllmRerankRequest,
        response_model=VllmRerankResponse,
    )


VLLM = Dialect(
    name="vllm",
    title="vLLM",
    routes=(
        _rerank("/rerank", "/v1/rerank"),
        _rerank("/v2/rerank", "/v2/rerank"),
        Route(
            path="/score",
            documented="/v1/score",
            kind="score",
            parse=parse_score,
            write=write_score,
            request_model=VllmScoreRequest,
            response_model=VllmScoreResponse,
        ),
    ),
    claims=lambda body, headers: not OWN.isdisjoint(body),
    refuse=refuse,
)
