"""This project's own form, for the page and RemoteReranker: logit and probability, and what was read and cut."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import WithJsonSchema

from secondpass.cognitive import Cognitive, signals_of
from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route
from secondpass.server.dialects.documents import read_documents
from secondpass.server.dialects.fields import Above, Count, Documents, Positive, RequestBody, Response, kind, read
from secondpass.server.dialects.refusals import refuses
from secondpass.wire.apis import APIS
from secondpass.wire.calls import Budgets, Effort, Fault, Ranked, Refusal, RerankCall, ServerCard


class NativeRequest(RequestBody):
    """documents are strings or objects with `text`. top_n 0 or null is all. "chunk" reads long ones in windows.

    cognitive is true, or settings such as {"now": "2026-11-28"}: documents' fields `created`, `accessed`,
    `confidence`, `entities` and so on are then evidence beside their text, and results have `parts`. The others are
    what `Reranker.rank` has by these names.
    """

    query: str
    documents: Documents
    model: str | None = None
    top_n: Count | None = None
    instruction: str | None = None
    long_documents: Literal["truncate", "chunk"] | None = None
    budget_ms: Above | None = None
    first_scores: list[float] | None = None
    early_exit: float | None = None
    cutoff_layer: Positive | None = None
    compress_ratio: Positive | None = None
    compress_layers: list[Positive] | None = None
    cognitive: Annotated[Any, WithJsonSchema({"type": ["boolean", "object", "null"]})] = None


class NativeResult(Response):
    """One ranked document: score is the raw logit; tokens of what was read, with the query's.

    span is the range of characters of the window that won, where long documents are read in windows. What a budget
    left unscored comes last, with is_scored false. Only with cognitive scoring there are parts, null for what is
    unscored, and the probability is that of the final logit.
    """

    index: int
    score: float
    probability: float
    tokens: int
    truncated: bool
    span: list[int] | None = None
    is_scored: bool = True
    parts: dict[str, float] | None = None


class NativeUsage(Response):
    """Tokens and rows that were read, how many rows were cut, and how many documents a budget left unscored."""

    tokens: int
    rows: int
    truncated: int
    unscored: int


class NativeTiming(Response):
    """Seconds: in all, in tokenisation, waiting for a batch, in the model."""

    total: float
    tokenize: float
    queue: float
    compute: float


class NativeResponse(Response):
    """Results, best first; equal scores keep their input order. warnings are for the person who reads them."""

    id: str
    model: str
    results: list[NativeResult]
    usage: NativeUsage
    timing: NativeTiming
    warnings: list[str]


class NativeModel(Response):
    """A model that is served."""

    name: str
    revision: str | None
    family: str
    engine: str
    device: str
    dtype: str
    max_length: int
    is_reranker: bool
    is_embedder: bool
    is_calibrated: bool


class NativeModels(Response):
    """Models, that of calls without a name first; the most documents of one call; the index that is served."""

    version: str
    models: list[NativeModel]
    max_documents: int | None
    index: str | None


def parse(body: Any, headers: Headers) -> RerankCall:
    asked = read(NativeRequest, body)
    cognitive = _cognitive(asked.cognitive)
    return RerankCall(
        query=asked.query,
        documents=read_documents(asked.documents),
        fields=None if cognitive is None else tuple(map(_fields, asked.documents, count())),
        cognitive=cognitive,
        model=asked.model,
        top_n=asked.top_n or None,
        budgets=Budgets(in_windows=None if asked.long_documents is None else asked.long_documents == "chunk"),
        instruction=asked.instruction,
        effort=Effort(
            budget_ms=asked.budget_ms,
            first_scores=None if asked.first_scores is None else tuple(asked.first_scores),
            early_exit=asked.early_exit,
            cutoff_layer=asked.cutoff_layer,
            compress_ratio=asked.compress_ratio,
            compress_layers=None if asked.compress_layers is None else tuple(asked.compress_layers),
        ),
    )


def _cognitive(asked: object) -> Cognitive | None:
    if not isinstance(asked, bool | dict | None):
        message = f"cognitive is {kind(asked)}; true or an object of settings is needed"
        raise Refusal(Fault.malformed, message, parameter="cognitive")
    try:
        return Cognitive.of(asked)
    except ValueError as error:
        raise Refusal(Fault.invalid, str(error), parameter="cognitive") from None


def _fields(document: object, index: int) -> Mapping[str, Any]:
    """What a document says of itself. Raises Refusal where cognitive scoring could not read it."""
    fields = document if isinstance(document, Mapping) else {}
    try:
        signals_of(fields)
    except ValueError as error:
        raise Refusal(Fault.invalid, f"documents[{index}]: {error}", parameter=f"documents[{index}]") from None
    return fields


def write(ranked: Ranked, call: RerankCall, body: Body) -> Reply:
    cost, timing = ranked.cost, ranked.timing
    answer = NativeResponse(
        id=ranked.id,
        model=ranked.model,
        results=[
            NativeResult(
                index=item.index,
                score=item.logit,
                probability=item.probability,
                tokens=item.tokens,
                truncated=item.is_cut,
                span=None if item.span is None else list(item.span),
                is_scored=item.is_scored,
                parts=None if item.parts is None else dict(item.parts),
            )
            for item in ranked.items
        ],
        usage=NativeUsage(tokens=cost.tokens, rows=cost.rows, truncated=cost.truncated, unscored=cost.unscored),
        timing=NativeTiming(total=timing.total, tokenize=timing.tokenize, queue=timing.queue, compute=timing.compute),
        warnings=list(ranked.warnings),
    )
    unasked = {"results": {"__all__": {"parts"}}} if call.cognitive is None else None
    return Reply(body=answer.model_dump(exclude=unasked))


def write_models(card: ServerCard, call: None, body: Body) -> Reply:
    models = [
        NativeModel(
            name=model.name,
            revision=model.revision,
            family=model.family,
            engine=model.engine,
            device=model.device,
            dtype=model.dtype,
            max_length=model.max_length,
            is_reranker=model.is_reranker,
            is_embedder=model.is_embedder,
            is_calibrated=model.is_calibrated,
        )
        for model in card.models
    ]
    answer = NativeModels(version=card.version, models=models, max_documents=card.max_documents, index=card.index)
    return Reply(body=answer.model_dump())


NATIVE = Dialect(
    name="secondpass",
    title="secondpass",
    routes=(
        Route(
            path="/api/rank",
            documented="/api/rank",
            kind="rerank",
            parse=parse,
            write=write,
            request_model=NativeRequest,
            response_model=NativeResponse,
        ),
        Route(
            path="/api/models",
            documented="/api/models",
            kind="models",
            write=write_models,
            response_model=NativeModels,
        ),
    ),
    refuse=refuses(APIS["secondpass"]),
)
