"""Embedder components for Haystack 3: one for queries, one for documents."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from secondpass.integrations import open_embedder, parameters, vectors_of


@component
class SecondpassTextEmbedder:
    """A query's vector, with the model's prompt for queries."""

    def __init__(self, *, model: str = "default", device: str = "auto", max_length: int | None = None) -> None:
        self.model, self.device, self.max_length = model, device, max_length

    def warm_up(self) -> None:
        open_embedder(self.model, device=self.device, max_length=self.max_length)

    def to_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = default_to_dict(self, **parameters(self))
        return state

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SecondpassTextEmbedder:
        made: SecondpassTextEmbedder = default_from_dict(cls, data)
        return made

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """{"embedding": the vector}."""
        if not isinstance(text, str):
            raise TypeError(f"text is a {type(text).__name__}; for documents there is SecondpassDocumentEmbedder")
        embedder = open_embedder(self.model, device=self.device, max_length=self.max_length)
        return {"embedding": vectors_of(embedder, [text], "query")[0]}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, list[float]]:
        result: dict[str, list[float]] = await asyncio.to_thread(self.run, text)
        return result


@component
class SecondpassDocumentEmbedder:
    """Documents with vectors of their contents, meta_fields_to_embed before them."""

    def __init__(
        self,
        *,
        model: str = "default",
        device: str = "auto",
        max_length: int | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        self.model, self.device, self.max_length = model, device, max_length
        self.meta_fields_to_embed, self.embedding_separator = meta_fields_to_embed or [], embedding_separator

    def warm_up(self) -> None:
        open_embedder(self.model, device=self.device, max_length=self.max_length)

    def to_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = default_to_dict(self, **parameters(self))
        return state

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SecondpassDocumentEmbedder:
        made: SecondpassDocumentEmbedder = default_from_dict(cls, data)
        return made

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """{"documents": copies with `embedding`}, in their order."""
        if not isinstance(documents, list) or any(not isinstance(document, Document) for document in documents):
            raise TypeError("documents is no list of Document; for a query there is SecondpassTextEmbedder")
        texts = []
        for document in documents:
            meta = [str(document.meta[n]) for n in self.meta_fields_to_embed if document.meta.get(n) is not None]
            texts.append(self.embedding_separator.join([*meta, document.content or ""]))
        embedder = open_embedder(self.model, device=self.device, max_length=self.max_length)
        vectors = vectors_of(embedder, texts, "document")
        return {"documents": [replace(d, embedding=v) for d, v in zip(documents, vectors, strict=True)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        result: dict[str, list[Document]] = await asyncio.to_thread(self.run, documents)
        return result
