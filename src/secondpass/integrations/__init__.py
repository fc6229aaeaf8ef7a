"""Secondpass inside of other people's pipelines: one short file a framework, without logic of its own.

What they share is here: one opened model for all objects of a process that name it alike, opened on first use, and
hits with the score that a framework shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from secondpass.embedder import Embedder
from secondpass.public import one_at_a_time
from secondpass.reranker import Reranker
from secondpass.types import DocumentLike, Hit, Ranking


class Ranker(Protocol):
    """What ranks: Reranker, Cascade, ColBERT, Embedder, RemoteReranker, or what has their `rank`."""

    def rank(self, query: str, documents: Sequence[DocumentLike], *, top_n: int | None = None) -> Ranking: ...


@one_at_a_time
@lru_cache(maxsize=8)
def open_reranker(
    model: str = "auto",
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    max_length: int | None = None,
    long_documents: str = "truncate",
    instruction: str | None = None,
) -> Reranker:
    """The reranker, opened once in a process for the same words; it is safe to use from several threads."""
    return Reranker(
        model,
        revision=revision,
        device=device,
        dtype=dtype,
        max_length=max_length,
        long_documents=long_documents,
        instruction=instruction,
    )


@one_at_a_time
@lru_cache(maxsize=8)
def open_embedder(
    model: str = "default",
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    max_length: int | None = None,
) -> Embedder:
    """The embedder, opened once in a process for the same words."""
    return Embedder(model, revision=revision, device=device, dtype=dtype, max_length=max_length)


def best(
    ranker: Ranker,
    query: str,
    texts: Sequence[str],
    *,
    top_n: int | None = None,
    threshold: float | None = None,
    raw_scores: bool = False,
) -> list[tuple[Hit, float | None]]:
    """Hits with what a framework calls their score: the probability (0 to 1), or the raw logit. Best first.

    The score is None, not NaN, which frameworks sort anywhere, where a hit was not scored: what has nothing to read
    or a failed server left, which comes last. threshold is in the units of that score and applied before the cut at
    top_n; it leaves out what has none, but where the server failed, or failing open would give nothing.
    """
    if top_n is not None and top_n < 1:
        raise ValueError(f"top_n is {top_n}; give 1 or more, or None for all")
    if not texts:
        return []
    ranking = ranker.rank(query, texts)
    scored = [(hit, _score_of(hit, raw_scores=raw_scores)) for hit in ranking]
    if threshold is not None:
        has_failed = ranking.failure is not None
        scored = [(hit, score) for hit, score in scored if (has_failed if score is None else score >= threshold)]
    return scored[:top_n]


def _score_of(hit: Hit, *, raw_scores: bool) -> float | None:
    if not hit.is_scored:
        return None
    return hit.score if raw_scores else hit.probability


def vectors_of(embedder: Embedder, texts: Sequence[str], kind: str) -> list[list[float]]:
    """Vectors as lists of numbers, which frameworks pass around."""
    vectors: list[list[float]] = embedder.encode(texts, kind=kind).tolist()
    return vectors


def parameters(made: object) -> dict[str, Any]:
    """What an object was made with, which it keeps under the same names; a framework's own notes begin with _."""
    return {name: value for name, value in vars(made).items() if not name.startswith("_")}
