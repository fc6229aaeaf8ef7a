"""DeepInfra's `/v1/inference/{model}` for rerankers: as many queries as documents, or one for all; bare scores."""

from __future__ import annotations

from typing import Any

from secondpass.server.dialects import refusals
from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route, Signs
from secondpass.server.dialects.documents import read_texts
from secondpass.server.dialects.fields import RequestBody, Response, Texts, read
from secondpass.wire.calls import Fault, Ranked, Refusal, ScoreCall


class DeepInfraRequest(RequestBody):
    """The i-th query is scored with the i-th document."""

    queries: Texts
    documents: Texts
    model: str | None = None
    instruction: str | None = None


class DeepInfraResponse(Response):
    """Probabilities in input order."""

    scores: list[float]
    input_tokens: int
    request_id: str
    inference_status: dict[str, Any]


def parse(body: Any, headers: Headers) -> ScoreCall:
    asked = read(DeepInfraRequest, body)
    queries, documents = read_texts(asked.queries, "queries"), read_texts(asked.documents, "documents")
    if len(queries) not in (1, len(documents)):
        seen = f"queries has {len(queries)} and documents {len(documents)}"
        raise Refusal(Fault.invalid, f"{seen}; give one query, or as many of both", parameter="queries")
    each = queries * len(documents) if len(queries) == 1 else queries
    return ScoreCall(pairs=tuple(zip(each, documents, strict=True)), model=asked.model, instruction=asked.instruction)


def write(ranked: Ranked, call: ScoreCall, body: Body) -> Reply:
    status = {
        "status": "succeeded",
        "runtime_ms": round(ranked.timing.total * 1000),
        "cost": 0.0,
        "tokens_generated": 0,
        "tokens_input": ranked.cost.tokens,
    }
    scores = [item.probability for item in ranked.items]
    head = {"scores": scores, "input_tokens": ranked.cost.tokens, "request_id": ranked.id}
    return Reply(body={**head, "inference_status": status})


DEEPINFRA = Dialect(
    name="deepinfra",
    title="DeepInfra",
    routes=(
        Route(
            path="/inference/{model}",
            documented="/v1/inference/{model}",
            kind="score",
            parse=parse,
            write=write,
            request_model=DeepInfraRequest,
            response_model=DeepInfraResponse,
        ),
    ),
    signs=Signs(documents="queries"),
    refuse=refusals.cohere,
)
