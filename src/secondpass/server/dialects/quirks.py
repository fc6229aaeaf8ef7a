"""What some servers say besides their rerank answers: whether they are ready, what they serve, a second form."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from secondpass.server.dialects import rerank
from secondpass.server.dialects.dialect import Body, Headers, Reply, Route
from secondpass.server.dialects.fields import Response
from secondpass.wire.apis import APIS, Returned
from secondpass.wire.calls import Fault, Ranked, Refusal, RerankCall, ServerCard, Timing


class Unix(Response):
    """Seconds since the epoch."""

    unix: float


class Meta(Response):
    """What is served."""

    model: str
    version: str


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


def first_reranker(card: ServerCard) -> Any:
    """The model that serves calls which name none. Raises Refusal."""
    model = next((model for model in card.models if model.is_reranker), None)
    if model is None:
        raise Refusal(Fault.unsupported, "no reranker is loaded")
    return model


def write_health(card: ServerCard, call: None, body: Body) -> Reply:
    return Reply(body=None, status=200 if card.is_ready else 503)


def write_unix(card: ServerCard, call: None, body: Body) -> Reply:
    return Reply(body={"unix": time.time()}, status=200 if card.is_ready else 503)


def write_meta(card: ServerCard, call: None, body: Body) -> Reply:
    return Reply(body={"model": first_reranker(card).name, "version": card.version})


def write_info(card: ServerCard, call: None, body: Body) -> Reply:
    model = first_reranker(card)
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


def write_tei(ranked: Ranked, call: RerankCall, body: Body) -> Reply:
    """The list, and TEI's headers of what it cost."""
    cost = {"x-compute-characters": str(ranked.cost.characters), "x-compute-tokens": str(ranked.cost.tokens)}
    return replace(rerank.write(ranked, call, body, api=APIS["tei"]), headers={**cost, **_times(ranked.timing)})


def _times(timing: Timing) -> dict[str, str]:
    """Whole milliseconds."""
    seconds = {
        "x-compute-time": timing.total,
        "x-total-time": timing.total,
        "x-tokenization-time": timing.tokenize,
        "x-queue-time": timing.queue,
        "x-inference-time": timing.compute,
    }
    return {name: str(round(value * 1000)) for name, value in seconds.items()}


# llama.cpp's server answers `texts` in place of `documents` as TEI does, with logits.
_TEXTS = replace(APIS["tei"], gives="logit", returned=Returned(asked_by="return_text", name="text", form="text"))


def parse_llamacpp(body: Any, headers: Headers) -> RerankCall:
    has_texts = isinstance(body, dict) and body.get("texts") is not None
    return rerank.parse(body, headers, api=_TEXTS if has_texts else APIS["llamacpp"])


def write_llamacpp(ranked: Ranked, call: RerankCall, body: Body) -> Reply:
    return rerank.write(ranked, call, body, api=APIS["llamacpp"] if body.get("texts") is None else _TEXTS)


def _get(path: str, documented: str, kind: Any, write: Any, model: type[BaseModel] | None) -> Route:
    return Route(path=path, documented=documented, kind=kind, write=write, response_model=model, is_usual=True)


TEI = rerank.dialect(
    "tei",
    _get("/info", "/info", "info", write_info, TeiInfo),
    _get("/health", "/tei/health", "health", write_health, None),
    write=write_tei,
)
INFINITY = rerank.dialect(
    "infinity", replace(_get("/health", "/infinity/health", "health", write_unix, Unix), is_usual=False)
)
LLAMACPP = rerank.dialect("llamacpp", parse=parse_llamacpp, write=write_llamacpp)
WEAVIATE = rerank.dialect(
    "weaviate",
    _get("/.well-known/ready", "/.well-known/ready", "health", write_health, None),
    _get("/.well-known/live", "/.well-known/live", "health", write_health, None),
    _get("/meta", "/meta", "info", write_meta, Meta),
)
