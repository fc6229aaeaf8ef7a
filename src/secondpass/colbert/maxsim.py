"""Late interaction in numpy: each query token's best document token, summed. Khattab and Zaharia 2020."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
# Document tokens in one matrix product: the similarities of a block (8 MB for 32 query vectors) stay in the cache,
# and a mapped or half-precision file is widened a block at a time.
BLOCK_TOKENS = 1 << 16


def maxsim(query: Vectors, vectors: NDArray[Any], lengths: NDArray[np.int64]) -> Vectors:
    """Late-interaction scores (N,): each query token's best document token, summed.

    query (L, D) and vectors (T, D) are unit vectors, `lengths` (N,) cuts T. An empty document scores -inf. One
    matrix product over the tokens of all documents, in blocks, then the maximum over each document's part.
    Raises ValueError when lengths does not sum to T. Khattab and Zaharia 2020, equation 3.
    """
    if int(lengths.sum()) != len(vectors):
        raise ValueError(f"lengths sum to {int(lengths.sum())}, there are {len(vectors)} vectors")
    stops = np.cumsum(lengths)
    starts = stops - lengths
    scores = np.full(len(lengths), -np.inf, np.float32)
    for first, last in _blocks(stops):
        filled = np.arange(first, last)[lengths[first:last] > 0]
        if not len(filled):
            continue
        tokens = vectors[starts[first] : stops[last - 1]].astype(np.float32, copy=False)
        similarities = query @ tokens.T  # (L, T): a maximum over neighbours in memory, twice as fast as (T, L)
        scores[filled] = np.maximum.reduceat(similarities, starts[filled] - starts[first], axis=1).sum(axis=0)
    return scores


def _blocks(stops: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of documents, each of at most BLOCK_TOKENS tokens or of one document."""
    first = 0
    while first < len(stops):
        before = int(stops[first - 1]) if first else 0
        last = max(int(np.searchsorted(stops, before + BLOCK_TOKENS, side="right")), first + 1)
        yield first, last
        first = last


def unit(vectors: Vectors) -> Vectors:
    """The vectors at length 1; a zero vector stays as it is."""
    lengths: Vectors = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Vectors = vectors / np.maximum(lengths, np.float32(1e-12))
    return scaled
