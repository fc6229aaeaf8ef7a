"""LlamaIndex: a node postprocessor, an embedding class and a retriever (llama-index-core 0.14).

>>> index.as_query_engine(similarity_top_k=50, node_postprocessors=[SecondpassRerank(top_n=5)])

The constructors take the words of SentenceTransformerRerank and FlagEmbeddingReranker, so a switch is one import.
"""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from secondpass.embedder import Embedder
from secondpass.integrations import Ranker, best, open_embedder, open_reranker, vectors_of
from secondpass.search.index import Index

dispatcher = get_dispatcher(__name__)
# Fields of a chunk that tell a program where it stands, and a language model nothing.
BOOKKEEPING = ("id", "line", "last_line", "characters", "created", "superseded_by", "copies", "language")


class SecondpassRerank(BaseNodePostprocessor):
    """Reranks nodes and keeps the best top_n; a node's score is then a probability (0 to 1), or the raw logit.

    metadata_mode says what is read of a node: EMBED (text with its metadata, as LlamaIndex's own rerankers read),
    NONE (the text alone). threshold drops nodes below it. keep_retrieval_score writes the retriever's score to
    metadata["retrieval_score"], of copies: the nodes that came in are left as they were. scorer: an opened Reranker,
    ColBERT, Cascade, Embedder or RemoteReranker, in place of a model's name; it is not serialised.
    use_fp16 and trust_remote_code are taken for those who come from other rerankers: the first means dtype "auto"
    (half precision where it is fast), the second nothing, since no code of a checkpoint is ever run.
    """

    model: str = Field(default="auto", description="auto (embedded, by script), default, hub name or folder.")
    top_n: int = Field(default=5, gt=0, description="Number of nodes to keep.")
    device: str = Field(default="auto", description="auto, cpu, cuda or mps.")
    threshold: float | None = Field(default=None, description="Nodes with a lower score are dropped.")
    metadata_mode: MetadataMode = Field(default=MetadataMode.EMBED, description="What is read of a node.")
    raw_scores: bool = Field(default=False, description="Raw logits in place of probabilities.")
    keep_retrieval_score: bool = Field(default=False, description="Keep the retriever's score in metadata.")
    max_length: int | None = Field(default=None, description="Tokens that are read of a pair.")
    long_documents: str = Field(default="truncate", description="truncate, or chunk: read in windows.")
    instruction: str | None = Field(default=None, description="For models that take one.")
    _scorer: Any = PrivateAttr(default=None)

    def __init__(
        self,
        top_n: int = 5,
        model: str = "auto",
        device: str | None = None,
        keep_retrieval_score: bool = False,
        trust_remote_code: bool = False,
        *,
        use_fp16: bool | None = None,
        threshold: float | None = None,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
        raw_scores: bool = False,
        max_length: int | None = None,
        long_documents: str = "truncate",
        instruction: str | None = None,
        scorer: Ranker | None = None,
    ) -> None:
        super().__init__(
            model=model,
            top_n=top_n,
            device=device or "auto",
            threshold=threshold,
            metadata_mode=metadata_mode,
            raw_scores=raw_scores,
            keep_retrieval_score=keep_retrieval_score,
            max_length=max_length,
            long_documents=long_documents,
            instruction=instruction,
        )
        if use_fp16 or trust_remote_code:
            warnings.warn(
                "use_fp16 and trust_remote_code change nothing here: the precision is the fastest that is right, "
                "and no code of a checkpoint is run",
                stacklevel=2,
            )
        self._scorer = scorer

    @classmethod
    def class_name(cls) -> str:
        return "SecondpassRerank"

    def _ranker(self) -> Ranker:
        scorer: Ranker | None = self._scorer
        return scorer or open_reranker(
            self.model,
            device=self.device,
            max_length=self.max_length,
            long_documents=self.long_documents,
            instruction=self.instruction,
        )

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("the query is missing: give query_bundle or query_str")
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model))
        payload = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            kept = self._best(nodes, query_bundle.query_str)
            event.on_end(payload={EventPayload.NODES: kept})
        dispatcher.event(ReRankEndEvent(nodes=kept))
        return kept

    def _best(self, nodes: list[NodeWithScore], query: str) -> list[NodeWithScore]:
        texts = [node.node.get_content(metadata_mode=self.metadata_mode) for node in nodes]
        found = best(
            self._ranker(),
            query,
            texts,
            top_n=self.top_n,
            threshold=self.threshold,
            raw_scores=self.raw_scores,
        )
        return [self._scored(nodes[hit.index], score) for hit, score in found]

    def _scored(self, given: NodeWithScore, score: float | None) -> NodeWithScore:
        node = given.node
        if self.keep_retrieval_score:
            node = node.model_copy(update={"metadata": {**node.metadata, "retrieval_score": given.score}})
        return NodeWithScore(node=node, score=score)


class SecondpassEmbedding(BaseEmbedding):
    """Vectors of texts and queries by `Embedder`, each with its model's own prompt."""

    model_name: str = Field(default="default", description="Embedded model, hub name or folder.")
    device: str = Field(default="auto", description="auto, cpu, cuda or mps.")
    max_length: int | None = Field(default=None, description="Tokens that are read of a text.")
    embed_batch_size: int = Field(default=512, gt=0, description="Texts in one call; tokens are batched below.")

    @classmethod
    def class_name(cls) -> str:
        return "SecondpassEmbedding"

    def _embedder(self) -> Embedder:
        return open_embedder(self.model_name, device=self.device, max_length=self.max_length)

    def _get_query_embedding(self, query: str) -> list[float]:
        return vectors_of(self._embedder(), [query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return vectors_of(self._embedder(), texts, "document")

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class SecondpassRetriever(BaseRetriever):
    """The best top_n chunks of an index that `secondpass add` made: retrieved by words and vectors, and reranked.

    A node's metadata are the chunk's fields (path, lines, headings); its score is a probability (0 to 1). Models read
    of them the path, the heading and what the file says of itself, as its tags.
    """

    def __init__(self, index: Index | str = "default", top_n: int = 5) -> None:
        if top_n < 1:
            raise ValueError(f"top_n is {top_n}; give 1 or more")
        self._index = Index(index) if isinstance(index, str) else index
        self._top_n = top_n
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        ranking = self._index.search(query_bundle.query_str, self._top_n)
        return [
            NodeWithScore(
                node=TextNode(
                    id_=str(hit.index),
                    text=hit.document.text,
                    metadata=dict(hit.document.fields),
                    excluded_embed_metadata_keys=list(BOOKKEEPING),
                    excluded_llm_metadata_keys=list(BOOKKEEPING),
                ),
                score=hit.probability if hit.is_scored else None,
            )
            for hit in ranking
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
