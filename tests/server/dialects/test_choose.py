"""Which dialect a request is in: by its path, a prefix, its body."""

from __future__ import annotations

from typing import Any

import pytest

from secondpass.server.dialects import DIALECTS, choose, find
from secondpass.wire.calls import Fault, Refusal, RerankCall

PLAIN = {"query": "q", "documents": ["a"]}


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/rerank", PLAIN, "cohere"),
        ("/v2/rerank", PLAIN, "cohere"),
        ("/rerank", PLAIN, "cohere"),
        ("/rerank/", PLAIN, "cohere"),
        ("//v2/rerank", PLAIN, "cohere"),
        ("/v1/v2/rerank", PLAIN, "cohere"),
        ("/azure/x/v2/rerank", PLAIN, "cohere"),
        ("/azure/x/v1/rerank", PLAIN, "cohere"),
        ("/v1/rerank", {**PLAIN, "top_k": None}, "voyage"),
        ("/v1/rerank", {**PLAIN, "model": "rerank-2.5-lite"}, "voyage"),
        ("/v1/rerank", {**PLAIN, "model": "rerank-lite-1"}, "voyage"),
        ("/v1/rerank", {**PLAIN, "model": "rerank-v3.5"}, "cohere"),
        ("/v1/rerank", {**PLAIN, "model": "rerank-english-v3.0"}, "cohere"),
        ("/v1/rerank", {**PLAIN, "model": "jina-reranker-v2-base-multilingual"}, "jina"),
        ("/v1/rerank", {**PLAIN, "model": "jinaai/jina-reranker-v1-tiny-en"}, "jina"),
        ("/v1/rerank", {**PLAIN, "model": "jina-reranker-v2-base-multilingual", "rank_fields": ["text"]}, "cohere"),
        ("/v2/rerank", {**PLAIN, "model": "jina-reranker-v2-base-multilingual"}, "cohere"),
        ("/rerank", {"query": "q", "texts": ["a"]}, "tei"),
        ("/v1/rerank", {"query": "q", "texts": ["a"]}, "tei"),
        ("/rerank", {**PLAIN, "raw_scores": False}, "infinity"),
        ("/rerank", {**PLAIN, "truncate_prompt_tokens": -1}, "vllm"),
        ("/v2/rerank", {**PLAIN, "use_activation": False}, "vllm"),
        ("/score", {"text_1": "a", "text_2": "b"}, "vllm"),
        ("/v1/score", {}, "vllm"),
        ("/v1/ranking", {}, "nim"),
        ("/ranking", {}, "nim"),
        ("/v1/retrieval/nvidia/some-model/reranking", {}, "nim"),
        ("/rerank", {"query": {"text": "q"}, "passages": [{"text": "a"}], "top_k": 3}, "nim"),
        ("/reranking", PLAIN, "llamacpp"),
        ("/v1/reranking", PLAIN, "llamacpp"),
        ("/inference/Qwen/Some-Reranker", {"queries": ["q"], "documents": ["a"]}, "deepinfra"),
        ("/inference/v1/rerank", PLAIN, "cohere"),
        ("/v1/embeddings", {"input": "a"}, "openai"),
        ("/infinity/rerank", PLAIN, "infinity"),
        ("/some/infinity/v1/rerank", {**PLAIN, "top_k": 2}, "infinity"),
        ("/voyage/v1/rerank", PLAIN, "voyage"),
        ("/jina/v1/rerank", PLAIN, "jina"),
        ("/vllm/rerank", PLAIN, "vllm"),
        ("/llamacpp/v1/rerank", PLAIN, "llamacpp"),
        ("/cohere/v1/rerank", {**PLAIN, "top_k": 2}, "cohere"),
        ("/tei/rerank", PLAIN, "tei"),
        ("/logits/v1/rerank", PLAIN, "logits"),
        ("/nim/v1/ranking", {}, "nim"),
        ("/cohere/v1/embeddings", {}, "openai"),  # a prefix names a dialect only where that has the path
    ],
)
def test_path_and_body_choose_the_dialect(path: str, body: dict[str, Any], name: str) -> None:
    assert choose(path, body, {})[0].name == name


@pytest.mark.parametrize("body", [None, 3, "text", [], [PLAIN]])
def test_a_body_that_is_no_object_goes_to_the_usual_dialect(body: Any) -> None:
    dialect, route = choose("/v1/rerank", body, {})
    assert dialect.name == "cohere"
    assert route.parse is not None
    with pytest.raises(Refusal, match="the body is") as refused:
        route.parse(body, {})
    assert refused.value.fault is Fault.malformed


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/v1/models", "models"), ("/models", "models"), ("/nim/v1/models", "models"), ("/info", "info")],
)
def test_get_paths(path: str, kind: str) -> None:
    assert choose(path, None, {}, "GET")[1].kind == kind


def test_health_is_that_of_the_dialect_in_the_prefix() -> None:
    assert choose("/infinity/health", None, {}, "GET")[0].name == "infinity"
    assert choose("/tei/health", None, {}, "GET")[0].name == "tei"


@pytest.mark.parametrize(
    "path", ["/", "", "/v1", "/rerankers", "/x-rerank", "/v1/rerank/more", "/inference/", "rerank"]
)
def test_an_unknown_path_is_refused_with_the_known_ones(path: str) -> None:
    assert find(path) == ()
    with pytest.raises(Refusal, match=r"/v2/rerank") as refused:
        choose(path, PLAIN, {})
    assert refused.value.fault is Fault.not_found


def test_a_long_path_is_matched_quickly_and_quoted_in_part() -> None:
    with pytest.raises(Refusal) as refused:
        choose("/a" * 4000 + "/x", PLAIN, {})
    assert len(refused.value.message) < 1000


def test_the_path_gives_the_model_that_a_body_lacks() -> None:
    body = {"queries": ["q"], "documents": ["a"]}
    route = choose("/v1/inference/Qwen/Some-Reranker", body, {})[1]
    assert route.parse is not None
    assert route.parse(body, {}).model == "Qwen/Some-Reranker"
    assert route.parse({**body, "model": "mine"}, {}).model == "mine"


def test_the_body_has_the_model_before_the_path() -> None:
    body = {"query": {"text": "q"}, "passages": [{"text": "a"}], "model": "nvidia/a.b"}
    route = choose("/v1/retrieval/nvidia/a_b/reranking", body, {})[1]
    assert route.parse is not None
    call = route.parse(body, {})
    assert isinstance(call, RerankCall)
    assert call.model == "nvidia/a.b"


def test_names_are_different_and_every_documented_path_is_found() -> None:
    names = [dialect.name for dialect in DIALECTS]
    assert len(set(names)) == len(names)
    for dialect in DIALECTS:
        for route in dialect.routes:
            path = route.documented.replace("{model}", "some/model")
            assert dialect in [candidate.dialect for candidate in find(path, route.method)]
            assert dialect in [candidate.dialect for candidate in find(f"/any/prefix{path}", route.method)]
