"""mteb 2.26: cross-encoders and embedders for `mteb.evaluate`, by its own protocols.

>>> mteb.evaluate(SecondpassCrossEncoder("BAAI/bge-reranker-v2-m3"), tasks, cache=None)
>>> mteb.evaluate(SecondpassEncoder("BAAI/bge-m3"), tasks, cache=None)
>>> mteb.evaluate(SecondpassColBERT("colbert-ir/colbertv2.0"), reranking_tasks, cache=None)

A retrieval task is reranked as `task.convert_to_reranking(predictions, top_k=100)`. Without `cache=None` mteb looks
results up by the model's name. What is read of a document is the title, a space, and the text, as mteb joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType
from numpy.typing import NDArray

from secondpass.colbert.colbert import ColBERT
from secondpass.integrations import open_embedder, open_reranker

Batches = Iterable[Mapping[str, Any]]


def _meta(model_name: str, revision: str | None, kind: str, loader: type) -> Any:
    name = model_name if "/" in model_name else f"secondpass/{model_name}"
    return ModelMeta.create_empty(
        overwrites={"name": name, "revision": revision or "1", "loader": loader, "model_type": [kind]}
    )


def _texts(batches: Batches) -> list[str]:
    return [text for batch in batches for text in batch["text"]]


class _PairModel:
    """A CrossEncoderProtocol: `predict` over what `score` says of (query, passage) pairs."""

    def __init__(self, meta: Any, score: Callable[[list[tuple[str, str]]], list[float]]) -> None:
        self.mteb_model_meta = meta
        self._score = score

    def predict(
        self,
        inputs1: Batches,
        inputs2: Batches,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        **encode_kwargs: Any,
    ) -> NDArray[np.float32]:
        return np.array(self._score(list(zip(_texts(inputs1), _texts(inputs2), strict=True))), np.float32)


class SecondpassCrossEncoder(_PairModel):
    """Raw logits of pairs, all queries in one packed run."""

    def __init__(
        self,
        model_name: str = "default",
        revision: str | None = None,
        device: str | None = None,
        *,
        max_length: int | None = None,
    ) -> None:
        reranker = open_reranker(model_name, revision=revision, device=device or "auto", max_length=max_length)
        super().__init__(_meta(model_name, revision, "cross-encoder", type(self)), reranker.score_pairs)


class SecondpassColBERT(_PairModel):
    """Late interaction: MaxSim of pairs, each query encoded once."""

    def __init__(self, model_name: str, revision: str | None = None, device: str | None = None) -> None:
        self._colbert = ColBERT(model_name, revision=revision, device=device or "auto")
        super().__init__(_meta(model_name, revision, "late-interaction", type(self)), self._by_query)

    def _by_query(self, pairs: list[tuple[str, str]]) -> list[float]:
        scores: list[float] = []
        for query, group in groupby(pairs, key=lambda pair: pair[0]):  # mteb lists a query's pairs side by side
            scores += self._colbert.score(query, [passage for _, passage in group])
        return scores


class SecondpassEncoder(AbsEncoder):
    """An EncoderProtocol: dense vectors, with the model's own prompts for queries and documents."""

    def __init__(
        self,
        model_name: str = "default",
        revision: str | None = None,
        device: str | None = None,
        *,
        max_length: int | None = None,
    ) -> None:
        self._embedder = open_embedder(model_name, revision=revision, device=device or "auto", max_length=max_length)
        self.mteb_model_meta = _meta(model_name, revision, "dense", type(self))

    def encode(
        self,
        inputs: Batches,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **encode_kwargs: Any,
    ) -> NDArray[np.float32]:
        kind = "query" if prompt_type == PromptType.query else "document"
        return self._embedder.encode(_texts(inputs), kind=kind)
