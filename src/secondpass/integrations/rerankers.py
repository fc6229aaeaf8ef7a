"""rerankers (AnswerDotAI) 0.10: `register()`, then `Reranker("auto", model_type="SecondpassRanker")`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rerankers.documents import Document
from rerankers.models import AVAILABLE_RANKERS
from rerankers.models.ranker import BaseRanker
from rerankers.results import RankedResults, Result
from rerankers.utils import prep_docs

from secondpass.integrations import best, open_reranker


class SecondpassRanker(BaseRanker):
    """Ranks by secondpass; scores are probabilities (0 to 1), or raw logits with raw_scores."""

    def __init__(
        self,
        model_name_or_path: str = "auto",
        verbose: int = 1,
        device: str | None = None,
        dtype: str | None = None,
        raw_scores: bool = False,
        max_length: int | None = None,
    ) -> None:
        self.model_name_or_path, self.verbose, self.raw_scores = model_name_or_path, verbose, raw_scores
        self._reranker = open_reranker(
            model_name_or_path, device=device or "auto", dtype=dtype or "auto", max_length=max_length
        )

    def tokenize(self, inputs: Sequence[str]) -> Any:
        raise TypeError("secondpass tokenises pairs itself; call rank() or score()")

    def score(self, query: str, doc: str) -> float:
        [score] = self._reranker.score(query, [doc])
        return score if self.raw_scores else self._reranker.probability(score)

    def rank(
        self,
        query: str,
        docs: str | list[str] | Document | list[Document],
        doc_ids: list[str] | list[int] | None = None,
        metadata: list[dict[str, Any]] | None = None,
    ) -> RankedResults:
        documents = prep_docs(docs, doc_ids, metadata) if docs else []  # it looks at the first
        found = best(self._reranker, query, [document.text for document in documents], raw_scores=self.raw_scores)
        results = [
            Result(document=documents[hit.index], score=score, rank=rank)
            for rank, (hit, score) in enumerate(found, 1)
        ]
        return RankedResults(results=results, query=query, has_scores=True)


def register() -> None:
    """Make the class known to `rerankers.Reranker`, which has no other place for it."""
    AVAILABLE_RANKERS["SecondpassRanker"] = SecondpassRanker
