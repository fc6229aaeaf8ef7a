"""LiteLLM's rerank over its providers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.server.clients.conftest import Live
from tests.server.clients.question import KEY, PASSAGES, QUERY, Truth

pytestmark = pytest.mark.clients

# LiteLLM's model, what comes after the server's address, the dialect that arrives
PROVIDERS = [
    ("cohere/rerank-v3.5", "", "cohere"),
    ("azure_ai/cohere-rerank-v3-english", "", "cohere"),
    ("jina_ai/jina-reranker-v2-base-multilingual", "", "jina"),
    ("hosted_vllm/default", "", "cohere"),
    ("hosted_vllm/default", "/vllm", "vllm"),
    ("infinity/default", "/infinity", "infinity"),
    ("huggingface/default", "", "tei"),
    ("voyage/rerank-2.5", "/v1", "voyage"),
]


def ask(live: Live, model: str, tail: str, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "query": QUERY,
        "documents": list(PASSAGES),
        "top_n": 3,
        "api_base": live.url + tail,
        "api_key": KEY,
        **more,
    }


def pick(answer: Any) -> tuple[list[int], list[float]]:
    return [hit["index"] for hit in answer.results], [hit["relevance_score"] for hit in answer.results]


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize(
    ("model", "tail"),
    [
        pytest.param(m, t, marks=pytest.mark.dialect("litellm", d), id=f"{m.split('/')[0]}{t}")
        for m, t, d in PROVIDERS
    ],
)
def test_litellm(live: Live, right: Truth, model: str, tail: str) -> None:
    import litellm

    answer = litellm.rerank(**ask(live, model, tail))
    right.check(*pick(answer), top_n=3)
    for hit in answer.results:
        if hit.get("document"):
            assert hit["document"]["text"] == PASSAGES[hit["index"]]


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize(
    "model",
    [pytest.param("nvidia_nim/nvidia/default", id="hosted"), pytest.param("nvidia_nim/ranking/default", id="own")],
)
@pytest.mark.dialect("litellm", "nim")
def test_litellm_nvidia_nim(live: Live, right: Truth, model: str) -> None:
    import litellm

    right.check_logits(*pick(litellm.rerank(**ask(live, model, ""))), top_n=3)


@pytest.mark.usefixtures("record")
@pytest.mark.dialect("litellm", "deepinfra")
def test_litellm_deepinfra(live: Live, right: Truth) -> None:
    import litellm

    answer = litellm.rerank(**ask(live, "deepinfra/Qwen/Some-Reranker", "", top_n=None))
    scores = {hit["index"]: hit["relevance_score"] for hit in answer.results}
    order = sorted(scores, key=lambda index: -scores[index])
    right.check(order, [scores[index] for index in order])


@pytest.mark.usefixtures("record")
@pytest.mark.dialect("litellm", "cohere")
def test_litellm_async_of_objects(live: Live, right: Truth) -> None:
    import litellm

    documents = [{"text": passage, "id": i} for i, passage in enumerate(PASSAGES)]
    answer = asyncio.run(litellm.arerank(**ask(live, "cohere/rerank-v3.5", "", documents=documents)))
    right.check(*pick(answer), top_n=3)


def test_a_wrong_key_is_an_error_with_the_words_of_the_server(live: Live) -> None:
    import litellm

    with pytest.raises(Exception, match="key"):
        litellm.rerank(**ask(live, "cohere/rerank-v3.5", "", api_key="another"))
