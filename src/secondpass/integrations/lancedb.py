"""LanceDB 0.40: a Reranker for vector, full-text and hybrid queries, and an embedding function.

>>> table.search(query_type="hybrid").text(q).vector(v).limit(50).rerank(SecondpassReranker()).to_list()[:5]

LanceDB's `limit` is also the number of candidates: ask for 50 and keep 5. A vector query needs
`.rerank(reranker, query_string=q)`.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from lancedb.embeddings import TextEmbeddingFunction, register
from lancedb.rerankers import Reranker as LanceReranker

from secondpass.integrations import Ranker, best, open_embedder, open_reranker, vectors_of


class SecondpassReranker(LanceReranker):
    """`_relevance_score` is a probability (0 to 1), or the raw logit with raw_scores; best first.

    return_score "relevance" drops the first stage's columns, "all" keeps them.
    """

    def __init__(
        self,
        model: str = "auto",
        column: str = "text",
        return_score: str = "relevance",
        *,
        device: str = "auto",
        max_length: int | None = None,
        raw_scores: bool = False,
        scorer: Ranker | None = None,
    ) -> None:
        super().__init__(return_score)
        self.model, self.column, self.raw_scores = model, column, raw_scores
        self._options: dict[str, Any] = {"device": device, "max_length": max_length}
        self._scorer = scorer

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        return self._ranked(vector_results, query, "_distance")

    def rerank_fts(self, query: str, fts_results: pa.Table) -> pa.Table:
        return self._ranked(fts_results, query, "_score")

    def rerank_hybrid(self, query: str, vector_results: pa.Table, fts_results: pa.Table) -> pa.Table:
        if self.score == "all":
            return self._ranked(self._merge_and_keep_scores(vector_results, fts_results), query, None)
        ranked = self._ranked(self.merge_results(vector_results, fts_results), query, None)
        return self._keep_relevance_score(ranked)

    def _ranked(self, table: pa.Table, query: str, first_stage: str | None) -> pa.Table:
        table = self._handle_empty_results(table)
        if len(table) == 0:
            return table
        if self.column not in table.column_names:
            raise ValueError(f"the results have no column {self.column!r} (they have {table.column_names})")
        scores: list[float | None] = [None] * len(table)  # of what has nothing to read, which comes last
        ranker = self._scorer or open_reranker(self.model, **self._options)
        for hit, score in best(
            ranker, query, [text or "" for text in table[self.column].to_pylist()], raw_scores=self.raw_scores
        ):
            scores[hit.index] = score
        table = table.append_column("_relevance_score", pa.array(scores, pa.float32()))
        if self.score == "relevance" and first_stage in table.column_names:
            table = table.drop_columns([first_stage])
        return table.sort_by([("_relevance_score", "descending")])


@register("secondpass")
class SecondpassEmbeddings(TextEmbeddingFunction):
    """Vectors by `Embedder`: `get_registry().get("secondpass").create(name="default")`."""

    name: str = "default"
    device: str = "auto"

    def ndims(self) -> int:
        return len(self.generate_embeddings(["dimensions"])[0])

    def generate_embeddings(self, texts: Any) -> list[list[float]]:
        return vectors_of(open_embedder(self.name, device=self.device), list(texts), "document")

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> list[list[float]]:
        return vectors_of(open_embedder(self.name, device=self.device), [query], "query")
