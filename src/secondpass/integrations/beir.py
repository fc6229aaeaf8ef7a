"""BEIR 2.2: the model of its `Rerank`, as in `Rerank(SecondpassModel("BAAI/bge-reranker-base")).rank...`.

>>> Rerank(SecondpassModel()).rerank(corpus, queries, results, top_k=100)
"""

from __future__ import annotations

from collections.abc import Sequence

from secondpass.integrations import open_reranker


class SecondpassModel:
    """Raw logits of [query, passage] pairs; BEIR's passage is the title, a space, and the text."""

    def __init__(self, model: str = "default", *, device: str = "auto", max_length: int | None = None) -> None:
        self.model, self.device, self.max_length = model, device, max_length

    def predict(
        self, sentences: Sequence[Sequence[str]], batch_size: int = 128, show_progress_bar: bool = False
    ) -> list[float]:
        """In the order of the pairs. Batches are cut by tokens, so batch_size changes nothing."""
        pairs = [(query, passage) for query, passage in sentences]
        return open_reranker(self.model, device=self.device, max_length=self.max_length).score_pairs(pairs)
