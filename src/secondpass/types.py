"""What travels between the layers: documents in, rows of tokens inside, a ranking out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
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

    `passage` is the half-open range of the passage's tokens in `ids`; from `passage[0]` on, token types are 1 where
    the row `is_typed`. `cut` counts the tokens that truncation took from (query, passage).
    """

    ids: list[int]
    passage: tuple[int, int]
    cut: tuple[int, int] = (0, 0)
    is_typed: bool = True

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
    None: the bounds that were measured when the model was trained, which hold for its last layer, uncompressed.
    top_n is n; None: as many as `rank` is asked for. Raises ValueError for bounds that are none.

    Cambazoglu et al. 2010, "Early Exit Optimizations for Additive Machine Learned Ranking Systems"; Xin et al. 2020,
    "Early Exiting BERT for Efficient Document Ranking".
    """

    bounds: float | Mapping[int, float] | None = None
    top_n: int | None = None

    def __post_init__(self) -> None:
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"top_n of the early exit is {self.top_n}; give 1 or more")
        if isinstance(self.bounds, Mapping) and not self.bounds:
            raise ValueError("the early exit has no layers; give bounds as {layer: bound}, or one number for all")
        for bound in self.bounds.values() if isinstance(self.bounds, Mapping) else (self.bounds,):
            is_bound = isinstance(bound, Real) and not isinstance(bound, bool) and bound >= 0
            if bound is not None and not is_bound:
                raise ValueError(f"a bound of the early exit is {bound!r}; give 0 or more, in units of the raw score")


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

    score is the raw logit, probability its activation in 0..1. index is the position in the input, rank that in the
    ranking, from 1. span is the (start, end) range of characters of `text` that won, when the document was read in
    windows. parts explains the figures, when asked for. A document that a deadline or a failed server left
    unscored, or that has nothing to read, has is_scored False, and NaN as score and probability.
    read_text is what was read of the document where that is not its text: the named fields, one in a line.
    """

    index: int
    document: Document
    score: float
    probability: float
    rank: int
    span: tuple[int, int] | None = None
    parts: Mapping[str, float | int | str] | None = None
    is_scored: bool = True
    read_text: str | None = None

    @property
    def text(self) -> str:
        """What was read of the document."""
        return self.document.text if self.read_text is None else self.read_text

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them: None where there is no number."""
        return {
            "index": self.index,
            "rank": self.rank,
            "score": self.score if self.is_scored else None,
            "probability": self.probability if self.is_scored else None,
            "is_scored": self.is_scored,
            "text": self.text,
            "fields": dict(self.document.fields),
            "span": None if self.span is None else list(self.span),
            "parts": None if self.parts is None else dict(self.parts),
        }


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[Hit]):
    """Hits, best first; equal scores keep their input order.

    failure is None, or why a server that was asked to fail open scored nothing: the hits then keep the input order.
    warnings are what a person should know before reading the scores, such as that the model cannot read these texts.
    info is what a model on this machine scored with; None where another one did, or several.
    """

    query: str
    hits: tuple[Hit, ...]
    usage: Usage
    failure: str | None = None
    warnings: tuple[str, ...] = ()
    info: Info | None = field(default=None, repr=False, compare=False)

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {
            "query": self.query,
            "hits": [hit.to_dict() for hit in self.hits],
            "usage": asdict(self.usage),
            "failure": self.failure,
            "warnings": list(self.warnings),
            "model": None if self.info is None else self.info.model,
        }


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
