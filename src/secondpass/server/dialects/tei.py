"""Text Embeddings Inference: `/rerank` with `texts`, `/info`, `/health`; statuses as its code has them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import RootModel

from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route
from secondpass.server.dialects.documents import read_texts
from secondpass.server.dialects.fields import Count, Request, Response, Texts, read
from secondpass.server.dialects.refusals import headers_of
from secondpass.wire.calls import Budgets, Fault, Ranked, Refusal, RerankCall, ServerCard, Timing

# (status, error_type). Its OpenAPI description says 413 for too many texts; its code answers 422
KINDS = {
    Fault.malformed: (422, "Validation"),
    Fault.invalid: (422, "Validation"),
    Fault.too_large: (422, "Validation"),
    Fault.unknown_model: (422, "Validation"),
    Fault.unauthorized: (401, "Unauthorized"),
    Fault.forbidden: (403, "Unauthorized"),
    Fault.not_found: (404, "Validation"),
    Fault.unsupported: (424, "Backend"),
    Fault.internal: (424, "Backend"),
    Fault.deadline: (504, "Overloaded"),
    Fault.cancelled: (499, "Backend"),
    Fault.overloaded: (429, "Overloaded"),
    Fault.unavailable: (503, "Unhealthy"),
}


class TeiRequest(Request):
    """truncate false refuses what is too long; raw_scores asks for logits."""

    query: str
    texts: Texts
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    model: str | None = None
    top_n: Count | None = None  # not TEI's own; LiteLLM and llama.cpp's clients send it


class TeiRank(Response):
    """One ranked text."""

    index: int
    score: float
    text: str | None = None


class TeiResponse(RootModel[list[TeiRank]]):
    """A bare list, best first."""


class TeiInfo(Response):
    """What is served."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, Any]
    max_concurrent_requests: int | None
    max_input_length: int
    max_batch_tokens: int | None
    max_batch_requests: int | None
    max_client_batch_size: int | None
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


def parse(body: Any, headers: Headers) -> RerankCall:
    asked = read(TeiRequest, body)
    return RerankCall(
        query=asked.query,
        documents=read_texts(asked.texts, "texts"),
        model=asked.model,
        top_n=asked.top_n or None,
        budgets=Budgets(
            may_truncate=asked.truncate is not False,
            keep_end=(asked.truncation_direction or "").lower() == "left",
        ),
    )


def write(ranked: Ranked, call: RerankCall, body: Body) -> Reply:
    rows: list[dict[str, Any]] = []
    for item in ranked.items:
        score = item.logit if body.get("raw_scores") else item.probability
        row: dict[str, Any] = {"index": item.index, "score": score}
        rows.append({**row, "text": call.documents[item.index]} if body.get("return_text") else row)
    cost = {"x-compute-characters": str(ranked.cost.characters), "x-compute-tokens": str(ranked.cost.tokens)}
    return Reply(body=rows, headers={**cost, **_times(ranked.timing)})


def write_info(card: ServerCard, call: None, body: Body) -> Reply:
    """Facts of the model that serves TEI's calls, which name none: the first reranker."""
    model = next((model for model in card.models if model.is_reranker), None)
    if model is None:
        raise Refusal(Fault.unsupported, "no reranker is loaded")
    label = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    info = TeiInfo(
        model_id=model.name,
        model_sha=model.revision,
        model_dtype=model.dtype,
        served_model_name=model.name,
        model_type={"reranker": label},
        max_concurrent_requests=card.max_concurrent_requests,
        max_input_length=model.max_length,
        max_batch_tokens=card.max_batch_tokens,
        max_batch_requests=None,
        max_client_batch_size=card.max_documents,
        auto_truncate=True,
        tokenization_workers=1,
        version=card.version,
        sha=None,
        docker_label=None,
    )
    return Reply(body=info.model_dump())


def write_health(card: ServerCard, call: None, body: Body) -> Reply:
    return Reply(body=None, status=200 if card.is_ready else 503)


def refuse(refusal: Refusal, request_id: str) -> Reply:
    """A string under `error` and its type; a refused key has an empty body, no texts are an error of their own."""
    status, error_type = KINDS[refusal.fault]
    if refusal.fault is Fault.too_large and refusal.parameter is None:
        status = 413
    if refusal.fault is Fault.invalid and refusal.parameter == "texts":
        status, error_type = 400, "Empty"
    body = None if refusal.fault is Fault.unauthorized else {"error": refusal.message, "error_type": error_type}
    return Reply(status=status, body=body, headers=headers_of(refusal))


def _times(timing: Timing) -> dict[str, str]:
    """TEI's headers: whole milliseconds."""
    seconds = {
        "x-compute-time": timing.total,
        "x-total-time": timing.total,
        "x-tokenization-time": timing.tokenize,
        "x-queue-time": timing.queue,
        "x-inference-time": timing.compute,
    }
    return {name: str(round(value * 1000)) for name, value in seconds.items()}


TEI = Dialect(
    name="tei",
    title="Text Embeddings Inference",
    routes=(
        Route(
            path="/rerank",
            documented="/rerank",
            kind="rerank",
            parse=parse,
            write=write,
            request_model=TeiRequest,
            response_model=TeiResponse,
        ),
        Route(path="/info", documented="/info", kind="info", write=write_info, response_model=TeiInfo),
        Route(path="/health", documented="/health", kind="health", write=write_health, response_model=None),
    ),
    claims=lambda body, headers: "texts" in body,
    refuse=refuse,
)
