"""Voyage's own client, and LangChain's around it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from secondpass.wire.calls import Fault, Refusal
from tests.server.clients.conftest import Live
from tests.server.clients.question import KEY, PASSAGES, QUERY, Truth

pytestmark = pytest.mark.clients


@pytest.fixture
def voyage(live: Live) -> Any:
    import voyageai

    return voyageai.Client(KEY, base_url=f"{live.url}/v1")


@pytest.mark.dialect("voyageai", "voyage")
@pytest.mark.usefixtures("record")
def test_voyageai(voyage: Any, right: Truth) -> None:
    answer = voyage.rerank(QUERY, list(PASSAGES), model="rerank-2.5", top_k=3)
    right.check([hit.index for hit in answer.results], [hit.relevance_score for hit in answer.results], top_n=3)
    assert [hit.document for hit in answer.results] == [PASSAGES[hit.index] for hit in answer.results]
    assert answer.total_tokens > 5 * len(PASSAGES)


@pytest.mark.dialect("voyageai", "voyage")
@pytest.mark.usefixtures("record")
def test_voyageai_async_without_top_k(live: Live, right: Truth) -> None:
    import voyageai

    client = voyageai.AsyncClient(KEY, base_url=f"{live.url}/v1")
    answer = asyncio.run(client.rerank(QUERY, list(PASSAGES), model="rerank-2.5-lite"))
    right.check([hit.index for hit in answer.results], [hit.relevance_score for hit in answer.results])


@pytest.mark.dialect("langchain-voyageai", "voyage")
@pytest.mark.usefixtures("record")
def test_langchain_voyageai(live: Live, voyage: Any, right: Truth) -> None:
    from langchain_core.documents import Document
    from langchain_voyageai import VoyageAIRerank

    if "base_url" in VoyageAIRerank.model_fields:  # from 0.4 on
        reranker = VoyageAIRerank(model="rerank-2.5", voyage_api_key=KEY, top_k=2, base_url=f"{live.url}/v1")
    else:
        reranker = VoyageAIRerank(model="rerank-2.5", voyage_api_key=KEY, top_k=2)
        reranker.client = voyage
    kept = reranker.compress_documents([Document(passage) for passage in PASSAGES], QUERY)
    right.check_texts([hit.page_content for hit in kept], [hit.metadata["relevance_score"] for hit in kept], top_n=2)


@pytest.mark.dialect("voyageai", "voyage")
@pytest.mark.usefixtures("record")
def test_voyageai_wrong_value_is_an_invalid_request_error(voyage: Any) -> None:
    from voyageai import error

    with pytest.raises(error.InvalidRequestError, match="top_k is -1"):
        voyage.rerank(QUERY, list(PASSAGES), model="rerank-2.5", top_k=-1)


@pytest.mark.dialect("voyageai", "voyage")
@pytest.mark.usefixtures("record")
def test_voyageai_wrong_type_is_a_malformed_request_error(voyage: Any) -> None:
    from voyageai import error

    with pytest.raises(error.MalformedRequestError, match="top_k is a string"):
        voyage.rerank(QUERY, list(PASSAGES), model="rerank-2.5", top_k="three")


def test_errors_have_the_words_of_the_server(live: Live, voyage: Any) -> None:
    from voyageai import error

    live.refuse(Refusal(Fault.overloaded, "the queue is full", retry_after=0.1))
    with pytest.raises(error.RateLimitError, match="the queue is full"):
        voyage.rerank(QUERY, list(PASSAGES), model="rerank-2.5")
    live.refuse(Refusal(Fault.unavailable, "starting"))
    with pytest.raises(error.ServiceUnavailableError):
        voyage.rerank(QUERY, list(PASSAGES), model="rerank-2.5")
    live.refuse(Refusal(Fault.internal, "a bug"))
    with pytest.raises(error.ServerError):
        voyage.rerank(QUERY, list(PASSAGES), model="rerank-2.5")


def test_a_wrong_key_is_an_authentication_error(live: Live) -> None:
    import voyageai

    with pytest.raises(voyageai.error.AuthenticationError):
        voyageai.Client("another", base_url=f"{live.url}/v1").rerank(QUERY, list(PASSAGES), model="rerank-2.5")


def test_a_busy_server_is_tried_again(live: Live, right: Truth) -> None:
    import voyageai

    live.refuse(Refusal(Fault.overloaded, "the queue is full", retry_after=0.1))
    client = voyageai.Client(KEY, base_url=f"{live.url}/v1", max_retries=2)  # tries in all
    answer = client.rerank(QUERY, list(PASSAGES), model="rerank-2.5")
    right.check([hit.index for hit in answer.results], [hit.relevance_score for hit in answer.results])
