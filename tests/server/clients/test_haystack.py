"""Haystack's rankers: Cohere, Jina, NVIDIA."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.server.clients.conftest import Live
from tests.server.clients.question import FAKE_MODEL, KEY, PASSAGES, QUERY, Truth

pytestmark = [pytest.mark.clients, pytest.mark.usefixtures("record")]


@pytest.fixture
def ask() -> dict[str, Any]:
    from haystack import Document

    return {"query": QUERY, "documents": [Document(content=passage) for passage in PASSAGES]}


def found(answer: dict[str, Any]) -> tuple[list[str], list[float]]:
    """Texts and scores, best first."""
    return [hit.content for hit in answer["documents"]], [hit.score for hit in answer["documents"]]


def secret() -> Any:
    from haystack.utils import Secret

    return Secret.from_token(KEY)


@pytest.mark.dialect("cohere-haystack", "cohere")
def test_haystack_cohere(live: Live, ask: dict[str, Any], right: Truth) -> None:
    from haystack_integrations.components.rankers.cohere import CohereRanker

    ranker = CohereRanker(model=FAKE_MODEL, api_key=secret(), api_base_url=live.url, top_k=3)
    right.check_texts(*found(ranker.run(**ask)), top_n=3)


@pytest.mark.dialect("cohere-haystack", "cohere")
def test_haystack_cohere_async(live: Live, ask: dict[str, Any], right: Truth) -> None:
    from haystack_integrations.components.rankers.cohere import CohereRanker

    ranker = CohereRanker(model=FAKE_MODEL, api_key=secret(), api_base_url=live.url)
    right.check_texts(*found(asyncio.run(ranker.run_async(**ask))))


@pytest.mark.dialect("jina-haystack", "jina")
def test_haystack_jina(live: Live, ask: dict[str, Any], right: Truth) -> None:
    from haystack_integrations.components.rankers.jina import JinaRanker

    answer = JinaRanker(api_key=secret(), base_url=f"{live.url}/v1/rerank").run(**ask)
    right.check_texts(*found(answer))
    assert answer["meta"]["usage"]["total_tokens"] > 5 * len(PASSAGES)


@pytest.mark.dialect("nvidia-haystack", "nim")
def test_haystack_nvidia(live: Live, ask: dict[str, Any], right: Truth) -> None:
    from haystack_integrations.components.rankers.nvidia import NvidiaRanker

    ranker = NvidiaRanker(model="default", api_key=secret(), api_url=f"{live.url}/v1", top_k=3, truncate="END")
    texts, scores = found(ranker.run(**ask))
    right.check_logits([PASSAGES.index(text) for text in texts], scores, top_n=3)
