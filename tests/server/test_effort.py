"""What `Reranker.rank` can do, over HTTP: budgets, layers, windows with their spans, kept scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from secondpass import Reranker
from secondpass.server.settings import ModelSource
from tests.server.live import serving

QUERY = "Why is the sky blue during the day?"
FILLER = "The committee met on Tuesday to discuss the budget of the city library. " * 60
ANSWER = "Air molecules scatter short blue waves of sunlight more than long red ones, so the daytime sky looks blue."


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scores") / "scores.db"


@pytest.fixture(scope="module")
def url(cache: Path) -> Iterator[str]:
    with serving(models=(ModelSource(name="default", path="default", score_cache=str(cache)),)) as url:
        yield url


def post(url: str, path: str = "/api/rank", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return httpx.post(url + path, json={"query": QUERY, **body}, headers=headers or {}, timeout=60)


@pytest.mark.slow
def test_windows_say_which_characters_won_and_scores_are_the_librarys(url: str) -> None:
    documents = [FILLER + ANSWER, "Bread is baked."]
    results = post(url, documents=documents, long_documents="chunk").json()["results"]
    hits = Reranker("default", long_documents="chunk").rank(QUERY, documents)
    assert [one["index"] for one in results] == [hit.index for hit in hits]
    assert [one["score"] for one in results] == pytest.approx([hit.score for hit in hits], abs=0.02)
    assert [one["span"] for one in results] == [list(hit.span or ()) for hit in hits]
    start, end = results[0]["span"]
    assert ANSWER in documents[0][start:end]
    assert post(url, documents=documents).json()["results"][0]["span"] is None


@pytest.mark.slow
def test_a_budget_leaves_what_it_has_no_time_for_unscored_and_says_so(url: str) -> None:
    documents = [f"{place} {FILLER}" for place in range(60)] + [ANSWER]
    first = [0.0] * 60 + [1.0]
    body = post(url, documents=documents, budget_ms=1, first_scores=first).json()
    assert body["usage"]["unscored"] > 0
    assert body["results"][0]["index"] == 60
    assert body["results"][0]["is_scored"] is True
    last = body["results"][-1]
    assert (last["is_scored"], last["probability"]) == (False, 0.0)
    assert len(body["results"]) == 61

    cohere = post(url, "/v2/rerank", {"X-Budget-Ms": "1"}, documents=documents).json()
    assert len(cohere["results"]) == 61
    assert any("were not scored within the budget" in words for words in cohere["meta"]["warnings"])


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        ({"X-Budget-Ms": "soon"}, {}, 400, "x-budget-ms is 'soon'"),
        ({"X-Budget-Ms": "-1"}, {}, 400, "x-budget-ms is '-1'"),
        ({}, {"budget_ms": 0}, 400, "budget_ms is 0"),
        ({}, {"budget_ms": 5, "first_scores": [1.0]}, 422, "first_scores has 1"),
        ({}, {"budget_ms": 5, "early_exit": 0.5}, 400, "give one of them"),
        ({}, {"cutoff_layer": 3}, 422, "layer"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(
    url: str, headers: dict[str, str], body: dict[str, Any], status: int, words: str
) -> None:
    answer = post(url, headers=headers, documents=["a", "b"], **body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_scores_are_kept_in_the_file_that_is_named(url: str, cache: Path) -> None:
    assert post(url, documents=[ANSWER]).status_code == 200
    assert cache.stat().st_size > 0


def test_an_instruction_that_the_model_does_not_take_is_left_out_where_clients_always_send_one(url: str) -> None:
    answer = post(url, "/v1/rerank", documents=[ANSWER, "b"], instruction="prefer dates")
    assert answer.status_code == 200
    assert any("the instruction was left out" in words for words in answer.json()["meta"]["warnings"])
    assert post(url, documents=["a"], instruction="prefer dates").status_code == 422


@pytest.mark.slow
def test_an_ordinary_pair_counts_as_one_document() -> None:
    with serving(max_documents=4) as url:
        four = {"text_1": ["q"] * 4, "text_2": ["a"] * 4}
        assert httpx.post(f"{url}/v1/score", json=four, timeout=60).status_code == 200
        five = {"text_1": ["q"] * 5, "text_2": ["a"] * 5}
        assert httpx.post(f"{url}/v1/score", json=five, timeout=60).status_code == 400


@pytest.mark.slow
def test_a_number_beyond_doubles_is_malformed_and_counted_so() -> None:
    with serving() as url:
        raw = b'{"query": "q", "documents": [{"text": "b", "price": 1e999}], "return_documents": true}'
        answer = httpx.post(f"{url}/v1/rerank", content=raw, timeout=60)
        assert (answer.status_code, answer.json()["error_type"]) == (400, "malformed")
        assert 'status="400"' in httpx.get(f"{url}/metrics").text
