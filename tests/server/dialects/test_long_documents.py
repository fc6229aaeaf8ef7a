"""A document that is longer than the model reads, its answer at the end, on a live server: what each dialect does."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.live import serving

pytestmark = pytest.mark.slow  # texts beyond what the model reads

QUERY = "Why is the sky blue during the day?"
FILLER = "The committee met on Tuesday to discuss the budget of the city library. " * 42
ANSWER = "Air molecules scatter short blue waves of sunlight more than long red ones, so the daytime sky looks blue."
OTHER = "The new reading room on the first floor has large windows, and people say that they like it very much."
LONG = FILLER + ANSWER
PLAIN = {"query": QUERY, "documents": [LONG]}
TEI = {"query": QUERY, "texts": [LONG]}
NIM = {"query": {"text": QUERY}, "passages": [{"text": LONG}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as url:
        yield url


def post(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def with_another_end(body: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(body).replace(ANSWER, OTHER))  # type: ignore[no-any-return]


def score(url: str, path: str, body: dict[str, Any]) -> float:
    status, answer = post(url + path, body)
    assert status == 200, answer
    first = answer[0] if isinstance(answer, list) else answer.get("results", answer.get("data"))[0]
    return float(first.get("relevance_score", first.get("score")))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/rerank", PLAIN),
        ("/v2/rerank", {**PLAIN, "max_tokens_per_doc": 2000}),
        ("/v1/rerank", PLAIN),
        ("/v1/rerank", {**PLAIN, "max_chunks_per_doc": 10}),
        ("/rerank", {**TEI, "truncation_direction": "Left"}),
        ("/vllm/rerank", {**PLAIN, "truncate_prompt_tokens": -1, "truncation_side": "left"}),
        ("/score", {"text_1": QUERY, "text_2": LONG, "truncate_prompt_tokens": 128, "truncation_side": "left"}),
    ],
)
def test_the_end_is_read(url: str, path: str, body: dict[str, Any]) -> None:
    assert score(url, path, body) > score(url, path, with_another_end(body)) * 10


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/rerank", {**PLAIN, "max_tokens_per_doc": 100}),
        ("/v1/rerank", {**PLAIN, "max_chunks_per_doc": 1}),
        ("/rerank", TEI),
        ("/jina/v1/rerank", PLAIN),
        ("/v1/rerank", {**PLAIN, "top_k": 1}),
        ("/vllm/rerank", {**PLAIN, "truncate_prompt_tokens": -1}),
        ("/vllm/rerank", {**PLAIN, "max_tokens_per_doc": 100}),
        ("/infinity/rerank", PLAIN),
    ],
)
def test_the_end_is_cut(url: str, path: str, body: dict[str, Any]) -> None:
    assert score(url, path, body) == pytest.approx(score(url, path, with_another_end(body)), abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/rerank", {**TEI, "truncate": False}, 422, "error"),
        ("/v1/rerank", {**PLAIN, "top_k": 1, "truncation": False}, 400, "detail"),
        ("/vllm/v1/rerank", PLAIN, 400, "error"),
        ("/v1/score", {"text_1": QUERY, "text_2": LONG}, 400, "error"),
        ("/v1/ranking", NIM, 400, "message"),
    ],
)
def test_what_may_not_be_cut_is_refused(url: str, path: str, body: dict[str, Any], status: int, field: str) -> None:
    found, answer = post(url + path, body)
    assert found == status
    assert "longer than 512 tokens" in str(answer[field])
    short = json.loads(json.dumps(body).replace(FILLER, ""))
    assert post(url + path, short)[0] == 200


def test_nim_cuts_when_it_may(url: str) -> None:
    status, answer = post(f"{url}/v1/ranking", {**NIM, "truncate": "END"})
    assert (status, len(answer["rankings"])) == (200, 1)


def test_a_cut_document_is_told(url: str) -> None:
    _, answer = post(f"{url}/v1/rerank", {**PLAIN, "max_chunks_per_doc": 1})
    assert answer["meta"]["warnings"] == ["1 texts were too long and were cut"]
    _, answer = post(f"{url}/v2/rerank", PLAIN)
    assert "warnings" not in answer["meta"]
