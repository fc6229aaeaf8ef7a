"""The SDKs of Mixedbread, Pinecone, Together, Isaacus, DashScope and Xinference, and LangChain's init_reranker."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.clients.conftest import Live
from tests.server.clients.question import KEY, PASSAGES, QUERY, RIGHT, Truth

pytestmark = [pytest.mark.clients, pytest.mark.usefixtures("record")]


@pytest.mark.dialect("mixedbread", "mixedbread")
def test_mixedbread(live: Live, right: Truth) -> None:
    mixedbread = pytest.importorskip("mixedbread")
    client = mixedbread.Mixedbread(api_key=KEY, base_url=live.url)
    found = client.rerank(model="default", query=QUERY, input=list(PASSAGES), top_k=3, return_input=True)
    right.check([row.index for row in found.data], [row.score for row in found.data], top_n=3)
    assert found.data[0].input == {"text": PASSAGES[RIGHT]}


@pytest.mark.dialect("pinecone", "pinecone")
def test_pinecone(live: Live, right: Truth) -> None:
    pinecone = pytest.importorskip("pinecone")
    client = pinecone.Pinecone(api_key=KEY, host=live.url)
    found = client.inference.rerank(model="default", query=QUERY, documents=list(PASSAGES), top_n=3)
    right.check([row.index for row in found.data], [row.score for row in found.data], top_n=3)
    assert found.data[0].document["text"] == PASSAGES[RIGHT]
    assert found.usage.rerank_units == 1


@pytest.mark.dialect("together", "cohere")
def test_together(live: Live, right: Truth) -> None:
    together = pytest.importorskip("together")
    client = together.Together(api_key=KEY, base_url=f"{live.url}/v1")
    found = client.rerank.create(model="default", query=QUERY, documents=list(PASSAGES), return_documents=True)
    right.check([row.index for row in found.results], [row.relevance_score for row in found.results])
    assert found.results[0].document.text == PASSAGES[RIGHT]
    assert found.usage.completion_tokens == 0


@pytest.mark.dialect("isaacus", "isaacus")
def test_isaacus(live: Live, right: Truth) -> None:
    isaacus = pytest.importorskip("isaacus")
    client = isaacus.Isaacus(api_key=KEY, base_url=f"{live.url}/v1")
    found = client.rerankings.create(model="kanon-2-reranker", query=QUERY, texts=list(PASSAGES), top_n=2)
    right.check([row.index for row in found.results], [row.score for row in found.results], top_n=2)
    assert found.usage.input_tokens > 0


@pytest.mark.dialect("dashscope", "dashscope")
def test_dashscope(live: Live, right: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    dashscope = pytest.importorskip("dashscope")
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{live.url}/api/v1")
    found = dashscope.TextReRank.call(
        model="gte-rerank", query=QUERY, documents=list(PASSAGES), top_n=3, return_documents=True, api_key=KEY
    )
    rows: list[Any] = found.output.results
    right.check([row.index for row in rows], [row.relevance_score for row in rows], top_n=3)
    assert rows[0]["document"]["text"] == PASSAGES[RIGHT]


@pytest.mark.dialect("xinference-client", "cohere")
def test_xinference(live: Live, right: Truth) -> None:
    restful = pytest.importorskip("xinference_client.client.restful.restful_client")
    model = restful.RESTfulRerankModelHandle("default", live.url, {"Authorization": f"Bearer {KEY}"})
    found = model.rerank(list(PASSAGES), QUERY, top_n=3, return_documents=True)["results"]
    right.check([row["index"] for row in found], [row["relevance_score"] for row in found], top_n=3)
    assert found[0]["document"]["text"] == PASSAGES[RIGHT]


@pytest.mark.dialect("langchain-reranker", "cohere")
def test_langchains_init_reranker(live: Live, right: Truth) -> None:
    base = pytest.importorskip("langchain_reranker.rerankers.base")
    reranker = base.init_reranker("custom:bge", base_url=f"{live.url}/v1", api_key=KEY, top_n=2)
    documents = pytest.importorskip("langchain_core.documents")
    found = reranker.compress_documents([documents.Document(page_content=text) for text in PASSAGES], QUERY)
    right.check_texts(
        [one.page_content for one in found], [one.metadata["relevance_score"] for one in found], top_n=2
    )


@pytest.mark.dialect("openai", "openai")
def test_openai_retrieves_a_model(live: Live) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(api_key=KEY, base_url=f"{live.url}/v1", max_retries=0)
    assert client.models.retrieve("default").id == "default"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("absent")
