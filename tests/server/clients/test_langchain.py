"""LangChain's rerankers: Cohere, NVIDIA, Jina."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.clients.conftest import Live
from tests.server.clients.question import FAKE_MODEL, KEY, PASSAGES, QUERY, Truth

pytestmark = [pytest.mark.clients, pytest.mark.usefixtures("record")]


@pytest.fixture
def documents() -> list[Any]:
    from langchain_core.documents import Document

    return [Document(passage, metadata={"place": i}) for i, passage in enumerate(PASSAGES)]


@pytest.mark.dialect("langchain-cohere", "cohere")
def test_langchain_cohere(live: Live, documents: list[Any], right: Truth) -> None:
    from langchain_cohere import CohereRerank

    reranker = CohereRerank(model=FAKE_MODEL, base_url=live.url, cohere_api_key=KEY, top_n=3)
    kept = reranker.compress_documents(documents, QUERY)
    scores = [hit.metadata["relevance_score"] for hit in kept]
    right.check([hit.metadata["place"] for hit in kept], scores, top_n=3)
    right.check_texts([hit.page_content for hit in kept], scores, top_n=3)


@pytest.mark.dialect("langchain-cohere", "cohere")
def test_langchain_cohere_of_dicts(live: Live, right: Truth) -> None:
    from langchain_cohere import CohereRerank

    reranker = CohereRerank(model=FAKE_MODEL, base_url=live.url, cohere_api_key=KEY)
    hits = reranker.rerank(list(PASSAGES), QUERY, top_n=None)
    right.check([hit["index"] for hit in hits], [hit["relevance_score"] for hit in hits])


@pytest.mark.dialect("langchain-nvidia-ai-endpoints", "nim")
def test_langchain_nvidia(live: Live, documents: list[Any], right: Truth) -> None:
    from langchain_nvidia_ai_endpoints import NVIDIARerank

    reranker = NVIDIARerank(base_url=f"{live.url}/v1", model="default", api_key=KEY, top_n=4, truncate="END")
    kept = reranker.compress_documents(documents, QUERY)
    scores = [hit.metadata["relevance_score"] for hit in kept]
    right.check_logits([hit.metadata["place"] for hit in kept], scores, top_n=4)


@pytest.mark.dialect("langchain-community", "cohere")
def test_langchain_community_jina(
    live: Live, documents: list[Any], right: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    from langchain_community.document_compressors import jina_rerank

    monkeypatch.setattr(jina_rerank, "JINA_API_URL", f"{live.url}/v1/rerank")
    reranker = jina_rerank.JinaRerank(jina_api_key=KEY, top_n=3, model="default")
    kept = reranker.compress_documents(documents, QUERY)
    right.check([h.metadata["place"] for h in kept], [h.metadata["relevance_score"] for h in kept], top_n=3)
