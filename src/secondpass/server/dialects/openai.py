"""OpenAI's `/v1/embeddings` and `/v1/models`, which NIM's, vLLM's and infinity's clients ask too."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import WithJsonSchema

from secondpass.server.dialects import refusals
from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route
from secondpass.server.dialects.documents import read_texts
from secondpass.server.dialects.fields import Positive, RequestBody, Response, read
from secondpass.server.dialects.rerank import usage
from secondpass.wire.calls import EmbedCall, Fault, ModelCard, Refusal, ServerCard, Vectors

QUERIES = ("query", "search_query")  # what input_type says of a text that is searched with
Input = Annotated[
    Any,
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


class EmbeddingsRequest(RequestBody):
    """input_type is not OpenAI's own: "query" embeds as queries, anything else as documents."""

    input: Input
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    input_type: str | None = None


class EmbeddingsUsage(Response):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embedding(Response):
    """One vector, as numbers or as base64 of little-endian float32."""

    object: str
    index: int
    embedding: list[float] | str


class EmbeddingsResponse(Response):
    """Vectors in input order."""

    object: str
    model: str
    data: list[Embedding]
    usage: EmbeddingsUsage


class Model(Response):
    """A model that is served."""

    id: str
    object: str
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int
    capabilities: list[str]


class OneModel(Model):
    """A model that is served, with what Xinference's clients look for."""

    model_type: str
    model_name: str
    model_ability: list[str]


class ModelsResponse(Response):
    """Models by name, the first of which serves a call that names none."""

    object: str
    data: list[Model]


def parse(body: Any, headers: Headers) -> EmbedCall:
    asked = read(EmbeddingsRequest, body)
    given = [asked.input] if isinstance(asked.input, str) else asked.input
    if isinstance(given, list) and given and isinstance(given[0], int | list):
        message = "input has token ids, which mean different texts to different models; give strings"
        raise Refusal(Fault.unsupported, message, parameter="input")
    is_query = asked.input_type in QUERIES
    return EmbedCall(texts=read_texts(given, "input"), model=asked.model, is_query=is_query)


def write(answer: Vectors, call: EmbedCall, body: Body) -> Reply:
    width = body.get("dimensions")
    vectors = answer.vectors if width is None else [shortened(vector, int(width)) for vector in answer.vectors]
    is_packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": packed(vector) if is_packed else list(vector)}
        for i, vector in enumerate(vectors)
    ]
    return Reply(body={"object": "list", "model": answer.model, "data": data, "usage": usage(answer.cost)})


def write_models(card: ServerCard, call: None, body: Body) -> Reply:
    return Reply(
        body=ModelsResponse(object="list", data=[Model(**_model(model)) for model in card.models]).model_dump()
    )


def write_model(card: ServerCard, call: None, body: Body) -> Reply:
    """The model that the address names. Raises Refusal where none is called so."""
    name = body.get("model", "default")
    found = next((model for model in card.models if name in (model.name, *model.aliases)), None)
    if found is None:
        there = ", ".join(model.name for model in card.models) or "none"
        raise Refusal(Fault.unknown_model, f"no model is named {name[:100]!r}; there are {there}", parameter="model")
    kind = "rerank" if found.is_reranker else "embedding"
    model = _model(found)
    one = OneModel(**model, model_type=kind, model_name=found.name, model_ability=model["capabilities"])
    return Reply(body=one.model_dump())


def _model(model: ModelCard) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "secondpass",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_length,
        "capabilities": ["rerank"] * model.is_reranker + ["embed"] * model.is_embedder,
    }


def packed(vector: Sequence[float]) -> str:
    """Base64 of little-endian float32, as OpenAI's client unpacks it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def shortened(vector: Sequence[float], width: int) -> list[float]:
    """The first numbers, at unit length again; good for models that were trained for it. Raises Refusal for more."""
    if width > len(vector):
        message = f"dimensions is {width}; vectors of this model have {len(vector)}"
        raise Refusal(Fault.invalid, message, parameter="dimensions")
    norm = math.sqrt(sum(x * x for x in vector[:width])) or 1.0
    return [x / norm for x in vector[:width]]


def refuse(refusal: Refusal, request_id: str) -> Reply:
    return refusals.openai(refusal, request_id, {Fault.unsupported: 400})


OPENAI = Dialect(
    name="openai",
    title="OpenAI",
    routes=(
        Route(
            path="/embeddings",
            documented="/v1/embeddings",
            kind="embed",
            parse=parse,
            write=write,
            request_model=EmbeddingsRequest,
            response_model=EmbeddingsResponse,
        ),
        Route(
            path="/models",
            documented="/v1/models",
            kind="models",
            write=write_models,
            response_model=ModelsResponse,
        ),
        Route(
            path="/models/{model}",
            documented="/v1/models/{model}",
            kind="models",
            write=write_model,
            response_model=OneModel,
        ),
    ),
    refuse=refuse,
)
