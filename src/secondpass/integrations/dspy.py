"""DSPy 3: a module that reranks passages, and one that over-fetches, reranks and keeps the best few.

>>> search = Retrieve(dspy.Embeddings(corpus=texts, embedder=dspy.Embedder(encode, caching=False), k=50), k=5)
>>> search(query="...").passages

`caching=False` matters: DSPy's cache knows a callable by its source text, so that two models share its entries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import dspy

from secondpass.integrations import Ranker, best, open_reranker


class Rerank(dspy.Module):
    """The best k of some passages, with `indices` into them and `scores` (probabilities, or logits by raw_scores)."""

    def __init__(
        self,
        model: str = "auto",
        *,
        k: int = 5,
        threshold: float | None = None,
        raw_scores: bool = False,
        scorer: Ranker | None = None,
    ) -> None:
        super().__init__()
        self.model, self.k, self.threshold, self.raw_scores = model, k, threshold, raw_scores
        self.scorer = scorer

    def forward(self, query: str, passages: Sequence[str], k: int | None = None) -> dspy.Prediction:
        if isinstance(passages, str):
            raise TypeError("passages is one str; give a list of them")
        passages = list(passages)
        found = best(
            self.scorer or open_reranker(self.model),
            query,
            passages,
            top_n=self.k if k is None else k,
            threshold=self.threshold,
            raw_scores=self.raw_scores,
        )
        indices = [hit.index for hit, _ in found]
        return dspy.Prediction(
            passages=[passages[index] for index in indices], indices=indices, scores=[score for _, score in found]
        )

    async def aforward(self, query: str, passages: Sequence[str], k: int | None = None) -> dspy.Prediction:
        return await asyncio.to_thread(type(self).forward, self, query, passages, k)


class Retrieve(dspy.Module):
    """What `search(query)` finds (dspy.Embeddings or any callable whose result has `passages`), reranked.

    search should fetch many more than k: 20 to 50 for 5. `indices` are into what search found, or, where search
    says indices of its own (as dspy.Embeddings does), into its corpus.
    """

    def __init__(self, search: Callable[[str], Any], model: str = "auto", *, k: int = 5) -> None:
        super().__init__()
        self.search = search
        self.rerank = Rerank(model, k=k)

    def forward(self, query: str, k: int | None = None) -> dspy.Prediction:
        found = self.search(query)
        ranked = self.rerank(query=query, passages=list(found.passages), k=k)
        own = found.get("indices") if isinstance(found, dspy.Prediction) else None
        indices = ranked.indices if own is None else [own[index] for index in ranked.indices]
        return dspy.Prediction(passages=ranked.passages, indices=indices, scores=ranked.scores)

    async def aforward(self, query: str, k: int | None = None) -> dspy.Prediction:
        return await asyncio.to_thread(type(self).forward, self, query, k)
