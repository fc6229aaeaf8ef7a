"""Search among the vectors of texts, exactly: every vector is compared with the query's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from secondpass.colbert.maxsim import unit
from secondpass.retrieval.bm25 import Found, best

CHUNK = 512  # texts that are read at a time, so that progress shows


class TextEmbedder(Protocol):
    """Anything that makes vectors of texts, as `secondpass.Embedder` does."""

    def encode(self, texts: Iterable[str], *, kind: str = "document") -> NDArray[np.float32]:
        """Vectors (N, C) of texts that are a "query" or a "document"."""
        ...


@runtime_checkable
class ScriptReader(Protocol):
    """An embedder or a reranker that knows which scripts it cannot read, as `Embedder` and `Reranker` do."""

    def unread(self, query: str) -> str | None:
        """The warning for a query that it cannot read; None otherwise."""
        ...


class VectorIndex:
    """Finds texts by the cosine of their vectors to the query's. Memory: 4 N C bytes."""

    def __init__(
        self, encoder: TextEmbedder, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._encoder = encoder
        parts = []
        for start in range(0, len(texts), CHUNK):
            parts.append(unit(encoder.encode(texts[start : start + CHUNK], kind="document")))
            if progress is not None:
                progress(min(start + CHUNK, len(texts)), len(texts))
        self._vectors = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    def __len__(self) -> int:
        return len(self._vectors)

    def scores(self, query: str) -> NDArray[np.float32]:
        """The cosine of every text (N,)."""
        if not len(self):
            return np.empty(0, np.float32)
        vector = unit(self._encoder.encode([query], kind="query"))[0]
        cosines: NDArray[np.float32] = self._vectors @ vector
        return cosines

    def search(self, query: str, top_k: int) -> Found:
        """The best top_k texts; equal scores in input order."""
        return best(self.scores(query), top_k)
