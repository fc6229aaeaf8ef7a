"""A ranker component for Haystack 3, here because Haystack loads pipelines only from its own name spaces."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from secondpass.integrations import best, open_reranker, parameters
from secondpass.reranker import Reranker


@component
class SecondpassRanker:
    """Documents by relevance to the query, best first, with `score` a probability (0 to 1).

    Read is the content, with meta_fields_to_embed before it. scale_score False gives raw logits; score_threshold is
    in the same units and applied before the cut at top_k. Documents without content are refused by their ids.
    """

    def __init__(
        self,
        *,
        model: str = "auto",
        device: str = "auto",
        top_k: int = 10,
        query_prefix: str = "",
        query_suffix: str = "",
        document_prefix: str = "",
        document_suffix: str = "",
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        scale_score: bool = True,
        score_threshold: float | None = None,
        max_length: int | None = None,
        long_documents: str = "truncate",
    ) -> None:
        if top_k <= 0:
            raise ValueError(f"top_k must be > 0, but got {top_k}")
        self.model, self.device, self.top_k = model, device, top_k
        self.query_prefix, self.query_suffix = query_prefix, query_suffix
        self.document_prefix, self.document_suffix = document_prefix, document_suffix
        self.meta_fields_to_embed, self.embedding_separator = meta_fields_to_embed or [], embedding_separator
        self.scale_score, self.score_threshold = scale_score, score_threshold
        self.max_length, self.long_documents = max_length, long_documents

    def warm_up(self) -> None:
        """Open the model; objects that name it alike share it."""
        self._opened().warm_up()

    def to_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = default_to_dict(self, **parameters(self))
        return state

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SecondpassRanker:
        made: SecondpassRanker = default_from_dict(cls, data)
        return made

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """{"documents": copies with new scores, best first}. Of documents with one id the best scored is read."""
        top_k = self.top_k if top_k is None else top_k
        if top_k <= 0:
            raise ValueError(f"top_k must be > 0, but got {top_k}")
        kept = _distinct(documents)
        found = best(
            self._opened(),
            self.query_prefix + query + self.query_suffix,
            [self._text(document) for document in kept],
            top_n=top_k,
            threshold=self.score_threshold if score_threshold is None else score_threshold,
            raw_scores=not (self.scale_score if scale_score is None else scale_score),
        )
        return {"documents": [replace(kept[hit.index], score=score) for hit, score in found]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        result: dict[str, list[Document]] = await asyncio.to_thread(
            self.run, query, documents, top_k, scale_score, score_threshold
        )
        return result

    def _opened(self) -> Reranker:
        return open_reranker(
            self.model, device=self.device, max_length=self.max_length, long_documents=self.long_documents
        )

    def _text(self, document: Document) -> str:
        if document.content is None:
            raise ValueError(f"document {document.id!r} has no content to rank by; leave it out, or give it text")
        meta = [str(document.meta[name]) for name in self.meta_fields_to_embed if document.meta.get(name) is not None]
        text = self.embedding_separator.join([*meta, document.content])
        return self.document_prefix + text + self.document_suffix


def _distinct(documents: list[Document]) -> list[Document]:
    """One document for each id, the best scored, in the order of the ids."""
    found: dict[str, Document] = {}
    for document in documents:
        if document.id not in found or _score(document) > _score(found[document.id]):
            found[document.id] = document
    return list(found.values())


def _score(document: Document) -> float:
    return -math.inf if document.score is None else document.score
