from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("langchain_tests")
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

from secondpass import RemoteReranker, Reranker
from secondpass.integrations.langchain import (
    SecondpassCrossEncoder,
    SecondpassEmbeddings,
    SecondpassRerank,
    SecondpassRetriever,
)
from tests.integrations.question import ANSWER, PASSAGES, QUERY, assert_best_first
from tests.server.live import serving

pytestmark = pytest.mark.clients
DOCUMENTS = [Document(page_content=text, metadata={"source": "house"}, id=str(i)) for i, text in enumerate(PASSAGES)]


class Everything(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return list(DOCUMENTS)


def test_compresses_sync_async_and_in_batches_without_touching_what_came_in() -> None:
    rerank = SecondpassRerank(top_n=3)
    kept = rerank.compress_documents(DOCUMENTS, QUERY)
    assert_best_first([d.page_content for d in kept], [d.metadata["relevance_score"] for d in kept], 3)
    assert kept[0].id == "2" and kept[0].metadata["source"] == "house"
    assert "relevance_score" not in DOCUMENTS[2].metadata
    assert asyncio.run(rerank.acompress_documents(DOCUMENTS, QUERY)) == kept
    chain = Everything() | RunnableLambda(lambda documents: rerank.compress_documents(documents, QUERY))
    assert chain.batch([QUERY, QUERY], config={"tags": ["t"]}) == [kept, kept]
    assert rerank.compress_documents([], QUERY) == []


def test_what_has_nothing_to_read_comes_last_without_a_score() -> None:
    kept = SecondpassRerank().compress_documents([Document(page_content=" "), *DOCUMENTS[:2]], QUERY)
    assert kept[-1].page_content == " " and kept[-1].metadata["relevance_score"] is None
    assert len(SecondpassRerank(threshold=0.0).compress_documents([Document(page_content="")], QUERY)) == 0


def test_a_threshold_does_not_empty_what_a_failed_server_leaves_in_its_order() -> None:
    away = RemoteReranker("http://127.0.0.1:9", retries=0, fail_open=True)
    kept = SecondpassRerank(scorer=away, threshold=0.5, top_n=2).compress_documents(DOCUMENTS, QUERY)
    assert [document.page_content for document in kept] == PASSAGES[:2]
    assert [document.metadata["relevance_score"] for document in kept] == [None, None]


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="top_k"):
        SecondpassRerank(top_k=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="greater than 0"):
        SecondpassRerank(top_n=0)


def test_threshold_and_raw_scores() -> None:
    raw = SecondpassRerank(top_n=None, raw_scores=True).compress_documents(DOCUMENTS, QUERY)
    expected = {hit.document.text: hit.score for hit in Reranker().rank(QUERY, PASSAGES)}
    assert {d.page_content: d.metadata["relevance_score"] for d in raw} == expected
    assert SecondpassRerank(threshold=1.01).compress_documents(DOCUMENTS, QUERY) == []


def test_in_langchains_own_retrievers() -> None:
    compressor = ContextualCompressionRetriever(
        base_retriever=Everything(), base_compressor=SecondpassRerank(top_n=2)
    )
    assert compressor.invoke(QUERY)[0].page_content == ANSWER
    assert asyncio.run(compressor.ainvoke(QUERY))[0].page_content == ANSWER
    reranker = CrossEncoderReranker(model=SecondpassCrossEncoder(), top_n=1)
    assert reranker.compress_documents(DOCUMENTS, QUERY)[0].page_content == ANSWER


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[SecondpassRetriever]:
        return SecondpassRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, object]:
        return {"base": Everything()}

    @property
    def retriever_query_example(self) -> str:
        return QUERY


class TestEmbeddings(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[SecondpassEmbeddings]:
        return SecondpassEmbeddings


class TestEmbeddingsLive(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[SecondpassEmbeddings]:
        return SecondpassEmbeddings


def test_init_reranker_reaches_the_server_without_code_of_ours() -> None:
    from langchain_reranker.rerankers import init_reranker

    with serving() as url:
        reranker = init_reranker("custom:default", base_url=f"{url}/v1", api_key="none", top_n=2)
        found = reranker.rerank(QUERY, DOCUMENTS, top_n=2)
    assert PASSAGES[found[0].index] == ANSWER
    assert len(found) == 2 and 0 <= found[1].relevance_score <= found[0].relevance_score <= 1
