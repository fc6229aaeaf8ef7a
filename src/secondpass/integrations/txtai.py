"""txtai 9.14: the similarity of its `Reranker` pipeline, also by name in YAML.

>>> Reranker(embeddings, Similarity())("question", limit=3, factor=10)
"""

from __future__ import annotations

from typing import Any, overload

from secondpass.integrations import best, open_reranker


class Similarity:
    """Called as `similarity(query, texts)`: [(index, probability)], best first; a list a query for several."""

    def __init__(self, path: str = "auto", *, device: str = "auto", max_length: int | None = None) -> None:
        self.path, self.device, self.max_length = path, device, max_length

    @overload
    def __call__(self, query: str, texts: list[str], **options: Any) -> list[tuple[int, float]]: ...
    @overload
    def __call__(self, query: list[str], texts: list[str], **options: Any) -> list[list[tuple[int, float]]]: ...
    def __call__(
        self, query: str | list[str], texts: list[str], multilabel: bool | None = True, **options: Any
    ) -> list[tuple[int, float]] | list[list[tuple[int, float]]]:
        if not isinstance(query, str):
            return [self._similar(each, texts) for each in query]
        return self._similar(query, texts)

    def _similar(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        reranker = open_reranker(self.path, device=self.device, max_length=self.max_length)
        return [(hit.index, score or 0.0) for hit, score in best(reranker, query, texts)]  # txtai sorts numbers
