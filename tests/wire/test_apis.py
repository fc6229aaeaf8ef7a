"""Requests and answers of each API: what is written, what is read, what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondpass.errors import RemoteError
from secondpass.wire.apis import APIS as FORMS
from secondpass.wire.apis import endpoint, logit, read, request, sigmoid


@pytest.mark.parametrize(
    ("url", "path", "address"),
    [
        ("http://h:1", "/v2/rerank", "http://h:1/v2/rerank"),
        ("http://h:1/", "/v2/rerank", "http://h:1/v2/rerank"),
        ("http://h/v1", "/v1/rerank", "http://h/v1/rerank"),
        ("http://h/v1/", "/rerank", "http://h/v1/rerank"),
        ("http://h/a/b", "/v1/ranking", "http://h/a/b/v1/ranking"),
        ("https://h/v1/retrieval/m/reranking", "/v1/ranking", "https://h/v1/retrieval/m/reranking"),
        ("https://h/score/rerank?api-version=1", "/v2/rerank", "https://h/score/rerank?api-version=1"),
        ("http://[::1]:8787", "/api/rank", "http://[::1]:8787/api/rank"),
    ],
)
def test_endpoint(url: str, path: str, address: str) -> None:
    assert endpoint(url, path) == address


@pytest.mark.parametrize("url", ["h:80", "localhost", "ftp://h", "http://", "http://[::1", "http://h:port", ""])
def test_endpoint_says_what_an_address_is(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        endpoint(url, "/rerank")


@pytest.mark.parametrize("url", ["https://user:hunter2@h", "gopher://user:hunter2@h"])
def test_endpoint_keeps_logins_out_and_unsaid(url: str) -> None:
    with pytest.raises(ValueError, match="url") as caught:
        endpoint(url, "/rerank")
    assert "hunter2" not in str(caught.value)


BODIES: dict[str, dict[str, Any]] = {
    "secondpass": {"model": "m", "query": "q", "documents": ["a", "b"]},
    "cohere": {"model": "m", "query": "q", "documents": ["a", "b"]},
    "cohere-v1": {"model": "m", "query": "q", "documents": ["a", "b"], "return_documents": False},
    "jina": {"model": "m", "query": "q", "documents": ["a", "b"], "return_documents": False},
    "voyage": {
        "model": "m",
        "query": "q",
        "documents": ["a", "b"],
        "top_k": 2,
        "return_documents": False,
        "truncation": True,
    },
    "tei": {
        "model": "m",
        "query": "q",
        "texts": ["a", "b"],
        "raw_scores": True,
        "truncate": True,
        "return_text": False,
    },
    "vllm": {"model": "m", "query": "q", "documents": ["a", "b"], "truncate_prompt_tokens": -1},
    "nim": {
        "model": "m",
        "query": {"text": "q"},
        "passages": [{"text": "a"}, {"text": "b"}],
        "truncate": "END",
    },
    "infinity": {
        "model": "m",
        "query": "q",
        "documents": ["a", "b"],
        "raw_scores": True,
        "return_documents": False,
    },
    "llamacpp": {"model": "m", "query": "q", "documents": ["a", "b"]},
    "mixedbread": {"model": "m", "query": "q", "input": ["a", "b"], "return_input": False},
    "pinecone": {"model": "m", "query": "q", "documents": ["a", "b"], "return_documents": False},
    "dashscope": {
        "model": "m",
        "input": {"query": "q", "documents": ["a", "b"]},
        "parameters": {"return_documents": False},
    },
    "dashscope-compatible": {"model": "m", "query": "q", "documents": ["a", "b"]},
    "isaacus": {"model": "m", "query": "q", "texts": ["a", "b"]},
    "weaviate": {"model": "m", "query": "q", "documents": ["a", "b"], "property": ""},
}


@pytest.mark.parametrize("dialect", FORMS)
def test_request(dialect: str) -> None:
    assert request(FORMS[dialect], "q", ["a", "b"], "m") == BODIES[dialect]
    assert "model" not in request(FORMS[dialect], "q", ["a"], None)


# As each API documents its answer: document 1 is the better one, by 0.75 or ln 3.
ANSWERS: dict[str, Any] = {
    "secondpass": {
        "id": "r",
        "model": "m",
        "results": [
            {"index": 1, "score": math.log(3), "probability": 0.75, "tokens": 5, "truncated": False},
            {"index": 0, "score": 0.0, "probability": 0.5, "tokens": 9, "truncated": True},
        ],
        "usage": {"tokens": 14, "truncated": 1, "rows": 2},
    },
    "cohere": {
        "id": "r",
        "results": [{"index": 1, "relevance_score": 0.75}, {"index": 0, "relevance_score": 0.5}],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    },
    "jina": {
        "model": "m",
        "usage": {"total_tokens": 14},
        "results": [{"index": 1, "relevance_score": 0.75}, {"index": 0, "relevance_score": 0.5}],
    },
    "voyage": {
        "object": "list",
        "data": [{"relevance_score": 0.75, "index": 1}, {"relevance_score": 0.5, "index": 0}],
        "model": "m",
        "usage": {"total_tokens": 14},
    },
    "tei": [{"index": 1, "score": math.log(3)}, {"index": 0, "score": 0.0}],
    "vllm": {
        "id": "r",
        "model": "m",
        "usage": {"total_tokens": 14},
        "results": [
            {"index": 1, "document": {"text": "b"}, "relevance_score": 0.75},
            {"index": 0, "document": {"text": "a"}, "relevance_score": 0.5},
        ],
    },
    "nim": {"rankings": [{"index": 1, "logit": math.log(3)}, {"index": 0, "logit": 0}]},
    "infinity": {
        "object": "rerank",
        "results": [{"relevance_score": math.log(3), "index": 1}, {"relevance_score": 0.0, "index": 0}],
        "model": "m",
        "usage": {"prompt_tokens": 14, "total_tokens": 14},
    },
}
ANSWERS |= {"cohere-v1": ANSWERS["cohere"], "llamacpp": ANSWERS["infinity"]}
SCORED = [{"index": 1, "score": 0.75}, {"index": 0, "score": 0.5}]
ANSWERS |= {
    "mixedbread": {"data": SCORED, "model": "m", "object": "list", "usage": {"total_tokens": 14}},
    "pinecone": {"data": SCORED, "model": "m", "usage": {"rerank_units": 1}},
    "dashscope": {"output": {"results": ANSWERS["jina"]["results"]}, "usage": {"total_tokens": 14}},
    "dashscope-compatible": ANSWERS["jina"],
    "isaacus": {"results": SCORED, "usage": {"input_tokens": 14}},
    "weaviate": {"query": "q", "scores": [{"document": "a", "score": 0.5}, {"document": "b", "score": 0.75}]},
}
SILENT = ("cohere", "cohere-v1", "tei", "nim", "pinecone", "weaviate")  # of tokens


@pytest.mark.parametrize("dialect", FORMS)
def test_answers_are_logits_and_probabilities_in_input_order(dialect: str) -> None:
    answer = read(FORMS[dialect], json.loads(json.dumps(ANSWERS[dialect])), 2)
    assert answer.scores == pytest.approx([0.0, math.log(3)])
    assert answer.probabilities == pytest.approx([0.5, 0.75])
    assert answer.tokens == (0 if dialect in SILENT else 14)
    assert answer.truncated == (dialect == "secondpass")


def item(index: object, score: object) -> dict[str, object]:
    return {"index": index, "relevance_score": score}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "null; a list under 'results'"),
        ([], "a list; a list under 'results'"),
        ({"data": []}, "an object with 'data'"),
        ({"results": {}}, "a list under 'results'"),
        ({"results": [item(0, 0.5)]}, "1 of 2 documents; the first without a score is 1"),
        ({"results": [item(0, 0.5), item(0, 0.5)]}, "index 0 twice"),
        ({"results": [item(0, 0.5), item(2, 0.5)]}, "index 2; 2 documents"),
        ({"results": [item(0, 0.5), item(-1, 0.5)]}, "index -1"),
        ({"results": [item(0, 0.5), item(1, 0.5), item(2, 0.5)]}, "index 2; 2 documents"),
        ({"results": [item(True, 0.5)]}, "whole number 'index'"),
        ({"results": [item("0", 0.5)]}, "whole number 'index'"),
        ({"results": ["a"]}, "whole number 'index': a str"),
        ({"results": [item(0, None)]}, "no number 'relevance_score'"),
        ({"results": [item(0, "0.5")]}, "no number 'relevance_score'"),
        ({"results": [item(0, math.nan)]}, "is nan"),
        ({"results": [item(0, math.inf)]}, "is inf"),
        ({"results": [item(0, 4.2)]}, "4.2, which is no probability.*scores='logit'"),
    ],
)
def test_answers_that_are_none(body: object, said: str) -> None:
    with pytest.raises(RemoteError, match=said):
        read(FORMS["cohere"], body, 2)


def test_errors_do_not_repeat_what_documents_say() -> None:
    body = {"results": [{"document": {"text": "a private letter"}, "score": 1}]}
    with pytest.raises(RemoteError) as caught:
        read(FORMS["cohere"], body, 1)
    assert "private" not in str(caught.value)


@given(st.floats(-36, 36))
def test_logit_is_the_inverse_of_sigmoid(x: float) -> None:
    # Next to 1 a double keeps few digits of the distance to 1.
    assert logit(sigmoid(x)) == pytest.approx(x, abs=1e-9 + 2.0**-51 * math.exp(max(x, 0.0)))


def test_certain_probabilities_have_a_finite_logit() -> None:
    assert logit(1.0) == pytest.approx(36.7, abs=0.1)
    assert logit(0.0) == -logit(1.0) == logit(1e-300)
