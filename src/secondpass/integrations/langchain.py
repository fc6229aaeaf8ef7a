"""LangChain 1.x: a document compressor, a cross-encoder, embeddings, and a retriever that over-fetches.

>>> ContextualCompressionRetriever(base_retriever=retriever, base_compressor=SecondpassRerank(top_n=5))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
    Callbacks,
)
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from secondpass.integrations import Ranker, best, open_embedder, open_reranker, vectors_of


class SecondpassRerank(BaseDocumentCompressor):
    """Reranks documents by their page_content and keeps the best top_n (None: all).

    metadata["relevance_score"] of the copies that come out is a probability (0 to 1), or the raw logit with
    raw_scores; None where there is nothing to read. scorer: an opened Reranker, ColBERT, Cascade, Embedder or
    RemoteReranker, in place of a model's name.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    model: str = "auto"
    top_n: int | None = Field(default=5, gt=0)
    threshold: float | None = None
    raw_scores: bool = False
    device: str = "auto"
    max_length: int | None = None
    long_documents: str = "truncate"
    instruction: str | None = None
    scorer: Any = Field(default=None, exclude=True)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        found = best(
            self._ranker(),
            query,
            [document.page_content for document in documents],
            top_n=self.top_n,
            threshold=self.threshold,
            raw_scores=self.raw_scores,
        )
        return [_scored(documents[hit.index], score) for hit, score in found]

    def _ranker(self) -> Ranker:
        if self.scorer is not None:
            scorer: Ranker = self.scorer
            return scorer
        return open_reranker(
            self.model,
            device=self.device,
            max_length=self.max_length,
            long_documents=self.long_documents,
            instruction=self.instruction,
        )


def _scored(document: Document, score: float | None) -> Document:
    copy: Document = document.model_copy(update={"metadata": {**document.metadata, "relevance_score": score}})
    return copy


class SecondpassCrossEncoder(BaseCrossEncoder):
    """Raw logits of (query, passage) pairs, for CrossEncoderReranker and what else takes a cross-encoder."""

    def __init__(self, model: str = "default", *, device: str = "auto", max_length: int | None = None) -> None:
        self.model, self.device, self.max_length = model, device, max_length

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        return open_reranker(self.model, device=self.device, max_length=self.max_length).score_pairs(text_pairs)


class SecondpassEmbeddings(Embeddings):
    """Vectors of documents and queries by `Embedder`, each with its model's own prompt."""

    def __init__(self, model: str = "default", *, device: str = "auto", max_length: int | None = None) -> None:
        self.model, self.device, self.max_length = model, device, max_length

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._vectors(texts, "document")

    def embed_query(self, text: str) -> list[float]:
        return self._vectors([text], "query")[0]

    def _vectors(self, texts: list[str], kind: str) -> list[list[float]]:
        return vectors_of(open_embedder(self.model, device=self.device, max_length=self.max_length), texts, kind)


class SecondpassRetriever(BaseRetriever):
    """The best k of what `base` finds. Let base fetch many more: 50 for 5, say."""

    base: BaseRetriever
    k: int = Field(default=5, gt=0)
    compressor: SecondpassRerank = Field(default_factory=SecondpassRerank)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        found = self.base.invoke(query, config={"callbacks": run_manager.get_child()})
        return self._of(k).compress_documents(found, query)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        found = await self.base.ainvoke(query, config={"callbacks": run_manager.get_child()})
        return list(await self._of(k).acompress_documents(found, query))

    def _of(self, k: int | None) -> SecondpassRerank:
        top_n = self.k if k is None else k
        if top_n < 1:
            raise ValueError(f"k is {top_n}; give 1 or more")
        compressor: SecondpassRerank = self.compressor.model_copy(update={"top_n": top_n})
        return compressor
