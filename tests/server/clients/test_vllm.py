"""Haystack's ranker for vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.clients.conftest import Live
from tests.server.clients.question import KEY, PASSAGES, QUERY, Truth

pytestmark = [pytest.mark.clients, pytest.mark.usefixtures("record")]


def ranked(url: str, **more: Any) -> tuple[list[str], list[float]]:
    """Texts and scores, best first."""
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.vllm import VLLMRanker

    ranker = VLLMRanker(model="default", api_key=Secret.from_token(KEY), api_base_url=url, top_k=3, **more)
    answer = ranker.run(query=QUERY, documents=[Document(content=passage) for passage in PASSAGES])
    return [hit.content for hit in answer["documents"]], [hit.score for hit in answer["documents"]]


@pytest.mark.dialect("vllm-haystack", "cohere")
def test_haystack_vllm(live: Live, right: Truth) -> None:
    right.check_texts(*ranked(f"{live.url}/v1"), top_n=3)


@pytest.mark.dialect("vllm-haystack", "vllm")
def test_haystack_vllm_with_fields_of_its_own(live: Live, right: Truth) -> None:
    fields = {"truncate_prompt_tokens": 256, "use_activation": False}
    texts, scores = ranked(f"{live.url}/v1", extra_parameters=fields)
    right.check_logits([PASSAGES.index(text) for text in texts], scores, top_n=3)
