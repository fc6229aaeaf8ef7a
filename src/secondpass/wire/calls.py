"""What dialects and the service say to each other: calls in, answers or failures out; no HTTP, no dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from secondpass.cognitive import Cognitive


@dataclass(frozen=True, kw_only=True, slots=True)
class Budgets:
    """How texts are shortened for one call; None: as the model was loaded.

    max_query_tokens and max_document_tokens cut each text before the pair is written. may_truncate False refuses
    what does not fit in place of cutting it. in_windows True reads a long document in windows, of which the best
    wins; only the first max_windows of them, None for all. keep_end True cuts from the beginning.
    """

    max_length: int | None = None
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    may_truncate: bool = True
    in_windows: bool | None = None
    max_windows: int | None = None
    keep_end: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much work a call may be; None: as the model was loaded. They are what `Reranker.rank` has by these names.

    early_exit is the bound of scores, or bounds by layer.
    """

    budget_ms: float | None = None
    first_scores: tuple[float, ...] | None = None
    early_exit: float | Mapping[int, float] | None = None
    cutoff_layer: int | None = None
    compress_ratio: int | None = None
    compress_layers: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RerankCall:
    """Rank documents for a query. model is what the client wrote, None for the server's first; top_n None: all.

    is_lenient True leaves out an instruction that the model does not take, and says so, in place of a refusal.
    fields are what each document says of itself, for cognitive scoring; without that they are not kept.
    """

    query: str
    documents: tuple[str, ...]
    fields: tuple[Mapping[str, Any], ...] | None = None
    cognitive: Cognitive | None = None
    model: str | None = None
    top_n: int | None = None
    budgets: Budgets = Budgets()
    effort: Effort = Effort()
    instruction: str | None = None
    priority: int = 0  # lower is earlier
    is_lenient: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreCall:
    """Score (query, document) pairs, in order."""

    pairs: tuple[tuple[str, str], ...]
    model: str | None = None
    budgets: Budgets = Budgets()
    effort: Effort = Effort()
    instruction: str | None = None
    priority: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedCall:
    """Vectors of texts, as queries or as documents."""

    texts: tuple[str, ...]
    model: str | None = None
    is_query: bool = False
    budgets: Budgets = Budgets()


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds of one call: in all, in tokenisation, waiting for a batch, in the engine."""

    total: float = 0.0
    tokenize: float = 0.0
    queue: float = 0.0
    compute: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one call read: tokens, rows that were cut, rows (windows), characters; documents that were not scored."""

    tokens: int = 0
    truncated: int = 0
    rows: int = 0
    characters: int = 0
    unscored: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One document: its index in the call, raw logit, probability, tokens read, and whether some of it was cut.

    span is the range of characters of the window that won, where it was read in windows. What a budget left unscored
    has is_scored False, the lowest logit and probability 0. parts are the terms of cognitive scoring.
    """

    index: int
    logit: float
    probability: float
    tokens: int = 0
    is_cut: bool = False
    span: tuple[int, int] | None = None
    is_scored: bool = True
    parts: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """Items best first, cut to top_n; equal scores keep their input order. model is the name that served."""

    id: str
    model: str
    items: tuple[Item, ...]
    cost: Cost = Cost()
    timing: Timing = Timing()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Vectors:
    """One unit vector per text, in order."""

    id: str
    model: str
    vectors: tuple[tuple[float, ...], ...]
    cost: Cost = Cost()
    timing: Timing = Timing()


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What the server says of one loaded model."""

    name: str
    revision: str | None
    family: str
    dtype: str
    device: str
    engine: str
    max_length: int
    is_reranker: bool = True
    is_embedder: bool = False
    created: int = 0  # seconds since the epoch when it was loaded
    aliases: tuple[str, ...] = ()
    is_calibrated: bool = False  # its probabilities were fitted to data


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCard:
    """What the server says of itself: its models, the one that serves a call without a model first, and limits."""

    models: tuple[ModelCard, ...]
    version: str
    is_ready: bool = True
    max_documents: int | None = None  # of one call
    index: str | None = None  # the name of the index that is served
    max_batch_tokens: int | None = None
    max_concurrent_requests: int | None = None


Call: TypeAlias = "RerankCall | ScoreCall | EmbedCall"
Answer: TypeAlias = "Ranked | Vectors"


class Fault(str, Enum):
    """Why a call was refused or failed; each dialect has its own status and body for them."""

    malformed = "malformed"  # not JSON, not UTF-8, wrong types: the body cannot be read as this dialect
    invalid = "invalid"  # read, but a value is out of its range: no documents, top_n below 0, a NaN
    too_large = "too_large"  # body, number of documents or tokens over the server's limit
    unauthorized = "unauthorized"
    forbidden = "forbidden"  # Host or Origin not allowed
    unknown_model = "unknown_model"
    unsupported = "unsupported"  # the model cannot do this: embeddings from a reranker, images
    not_found = "not_found"  # no such route
    overloaded = "overloaded"  # the queue is full; retry_after is set
    deadline = "deadline"  # not done within the caller's or the server's deadline
    unavailable = "unavailable"  # starting, stopping, or the engine is being restarted
    internal = "internal"


MAX_WORDS = 2000  # characters of a refusal


class Refusal(Exception):
    """A call that was refused or failed, in words for the caller; never carries document text."""

    def __init__(
        self, fault: Fault, message: str, *, parameter: str | None = None, retry_after: float | None = None
    ) -> None:
        if len(message) > MAX_WORDS:  # of a wrong value that it quotes; some answers say it three times
            message = message[: MAX_WORDS - 3] + "..."
        super().__init__(message)
        self.fault, self.message, self.parameter, self.retry_after = fault, message, parameter, retry_after

    def __reduce__(self) -> tuple[object, ...]:
        """It travels between processes with all that it says."""
        return Refusal, (self.fault, self.message), {"parameter": self.parameter, "retry_after": self.retry_after}
