"""What travels between the layers: documents in, rows of tokens inside, a ranking out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeAlias, overload

Progress: TypeAlias = Callable[[int, int], None]  # of long work: how many are done, of how many
Advance: TypeAlias = Callable[[int, float], None]  # how many more are done, in how many seconds of computing


@dataclass(frozen=True, slots=True)
class Document:
    """A candidate: the text that is read, and any other fields, which are kept and returned untouched."""

    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.text if name == "text" and name not in self.fields else self.fields[name]


DocumentLike: TypeAlias = "str | Document | Mapping[str, Any]"


@dataclass(frozen=True, slots=True)
class Row:
    """One (query, passage) pair as the token ids that a model reads.

    `passage` is the half-open range of the passage's tokens in `ids`; from `passage[0]` on, token types are 1
    where a family has them. `cut` counts the tokens that truncation took from (query, passage).
    """

    ids: list[int]
    passage: tuple[int, int]
    cut: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class EarlyExit:
    """When candidates leave a layer-wise model before its last layer.

    bounds say how much a candidate's score may still change between a layer and the last one that is run: one figure
    for every layer that has a head, or one for each layer where candidates may leave. At such a layer those go
    whose score lies more than twice the bound below the n-th best, since they can no longer be among the first n;
    all go when these n are alone and each two neighbours lie more than twice the bound apart. So where the bounds
    hold, the first n are those of a full run, in its order. A candidate keeps the score of the layer where it left,
    which is that of `cutoff_layer` there.
    top_n is n; None: as many as `rank` is asked for. Raises ValueError for bounds that are none.

    Cambazoglu et al. 2010, "Early Exit Optimizations for Additive Machine Learned Ranking Systems"; Xin et al. 2020,
    "Early Exiting BERT for Efficient Document Ranking".
    """

    bounds: float | Mapping[int, float]
    top_n: int | None = None

    def __post_init__(self) -> None:
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"top_n of the early exit is {self.top_n}; give 1 or more")
        if isinstance(self.bounds, Mapping) and not self.bounds:
            raise ValueError("the early exit has no layers; give bounds as {layer: bound}, or one number for all")
        for bound in self.bounds.values() if isinstance(self.bounds, Mapping) else (self.bounds,):
            if not bound >= 0:
                raise ValueError(f"a bound of the early exit is {bound}; give 0 or more, in units of the raw score")


@dataclass(frozen=True, kw_only=True, slots=True)
class RankOptions:
    """How a call ranks: the keywords of `rank`, checked. Raises ValueError for a value that is none."""

    top_n: int | None = None
    rank_fields: Sequence[str] | None = None
    explain: bool = False
    budget_ms: float | None = None
    first_scores: Sequence[float] | None = None
    early_exit: EarlyExit | float | Mapping[int, float] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"top_n is {self.top_n}; give 1 or more, or None for all")
        if self.budget_ms is not None and not self.budget_ms > 0:
            raise ValueError(
                f"budget_ms is {self.budget_ms}; give the milliseconds that ranking may take, more than 0"
            )
        if self.early_exit is not None and self.budget_ms is not None:
            raise ValueError("early_exit compares all documents, budget_ms may not score them all; give one of them")

    def first_order(self, num_documents: int) -> list[int]:
        """Indices of the documents by the first stage's scores, best first; in their order without scores."""
        scores = self.first_scores
        if scores is None:
            return list(range(num_documents))
        if len(scores) != num_documents:
            raise ValueError(
                f"first_scores has {len(scores)} scores for {num_documents} documents; give one for each"
            )
        return sorted(range(num_documents), key=lambda i: -scores[i])


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """How a model with several outputs or a token compression is run; the default is the model's own.

    With early_exit the rows of one run are the candidates of one query, and there are two outputs: the score, and the
    layer that it is from.
    """

    cutoff_layers: tuple[int, ...] | None = None
    compress_ratio: int | None = None
    compress_layers: tuple[int, ...] | None = None
    early_exit: EarlyExit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one call cost: rows scored, tokens read, rows truncated, seconds taken, documents left unscored."""

    rows: int
    tokens: int
    truncated: int
    seconds: float
    tokenize_seconds: float = 0.0
    unscored: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One document in a ranking.

    score is the raw logit, probability its activation in 0..1. index is the place in the input, rank the place
    in the ranking, from 0. span is the (start, end) range of characters that won, when the document was read in
    windows. parts explains the figures, when asked for. A document that a deadline or a failed server left
    unscored has is_scored False, and NaN as score and probability.
    """

    index: int
    document: Document
    score: float
    probability: float
    rank: int
    span: tuple[int, int] | None = None
    parts: Mapping[str, float | int | str] | None = None
    is_scored: bool = True


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[Hit]):
    """Hits, best first; equal scores keep their input order.

    failure is None, or why a server that was asked to fail open scored nothing: the hits then keep the input order.
    """

    query: str
    hits: tuple[Hit, ...]
    usage: Usage
    failure: str | None = None

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @property
    def texts(self) -> list[str]:
        return [hit.document.text for hit in self.hits]


@dataclass(frozen=True, kw_only=True)
class Info:
    """What a model runs on; readable as attributes or as a mapping."""

    model: str
    revision: str | None
    family: str
    engine: str
    device: str
    dtype: str
    reason: str
    max_length: int
    truncation: str

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> list[str]:
        return [field.name for field in fields(self)]


class Scorer(Protocol):
    """Anything that scores documents for a query: a local reranker, ColBERT, a remote server."""

    def score(self, query: str, documents: Sequence[DocumentLike]) -> list[float]:
        """Raw scores in input order; higher is better."""
        ...
