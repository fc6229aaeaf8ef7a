"""LlamaIndex's postprocessors: Cohere, Jina, NVIDIA, TEI, Voyage."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.clients.conftest import Live
from tests.server.clients.question import FAKE_MODEL, KEY, PASSAGES, QUERY, Truth

pytestmark = [pytest.mark.clients, pytest.mark.usefixtures("record")]


def ranked(reranker: Any) -> tuple[list[str], list[float]]:
    """Texts and scores, best first."""
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=passage), score=0.1) for passage in PASSAGES]
    kept = reranker.postprocess_nodes(nodes, query_str=QUERY)
    return [node.text for node in kept], [node.score for node in kept]


@pytest.mark.dialect("llama-index-postprocessor-cohere-rerank", "cohere")
def test_llama_index_cohere(live: Live, right: Truth) -> None:
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    right.check_texts(*ranked(CohereRerank(model=FAKE_MODEL, api_key=KEY, base_url=live.url, top_n=3)), top_n=3)


@pytest.mark.dialect("llama-index-postprocessor-jinaai-rerank", "jina")
def test_llama_index_jinaai(live: Live, right: Truth) -> None:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    right.check_texts(*ranked(JinaRerank(api_key=KEY, base_url=f"{live.url}/v1", top_n=2)), top_n=2)


@pytest.mark.dialect("llama-index-postprocessor-nvidia-rerank", "nim")
def test_llama_index_nvidia(live: Live, right: Truth) -> None:
    from llama_index.postprocessor.nvidia_rerank import NVIDIARerank

    texts, scores = ranked(NVIDIARerank(base_url=f"{live.url}/v1", api_key=KEY, top_n=4))
    right.check_logits([PASSAGES.index(text) for text in texts], scores, top_n=4)


@pytest.mark.dialect("llama-index-postprocessor-tei-rerank", "tei")
def test_llama_index_tei(live: Live, right: Truth) -> None:
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    reranker = TextEmbeddingInference(base_url=live.url, top_n=3, auth_token=f"Bearer {KEY}")
    right.check_texts(*ranked(reranker), top_n=3)


@pytest.mark.dialect("llama-index-postprocessor-voyageai-rerank", "voyage")
def test_llama_index_voyageai(live: Live, right: Truth) -> None:
    import voyageai
    from llama_index.postprocessor.voyageai_rerank import VoyageAIRerank

    reranker = VoyageAIRerank(model="rerank-2.5", api_key=KEY, top_n=3)
    reranker._client = voyageai.Client(KEY, base_url=f"{live.url}/v1")
    right.check_texts(*ranked(reranker), top_n=3)
