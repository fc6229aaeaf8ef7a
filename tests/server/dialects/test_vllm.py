"""vLLM's /rerank and /score."""

from __future__ import annotations

from typing import Any

import pytest

from secondpass.wire.calls import Budgets, Fault, Refusal, ScoreCall
from tests.server.dialects.answers import answer, parsed

BODY: dict[str, Any] = {"model": "m", "query": "q", "documents": ["a", "b"]}


def pairs(body: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    call = parsed("/v1/score", body)
    assert isinstance(call, ScoreCall)
    return call.pairs


@pytest.mark.parametrize(
    "names", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")]
)
def test_two_sides_under_all_their_names(names: tuple[str, str]) -> None:
    left, right = names
    assert pairs({left: "q", right: "a"}) == (("q", "a"),)
    assert pairs({left: "q", right: ["a", "b"]}) == (("q", "a"), ("q", "b"))
    assert pairs({left: ["q"], right: ["a", "b"]}) == (("q", "a"), ("q", "b"))
    assert pairs({left: ["q", "r"], right: ["a", "b"]}) == (("q", "a"), ("r", "b"))
    assert pairs({left: {"content": [{"type": "text", "text": "q"}]}, right: "a"}) == (("q", "a"),)


@pytest.mark.parametrize(
    ("body", "fault", "words"),
    [
        ({}, Fault.malformed, "none is given; two are needed: queries and documents, or queries and items"),
        ({"text_1": "a"}, Fault.malformed, "only text_1 is given"),
        ({"text_1": "a", "data_2": "b"}, Fault.malformed, "only data_2 is given|only text_1 is given"),
        ({"text_1": ["a", "b"], "text_2": "c"}, Fault.invalid, "text_1 has 2 and text_2 1"),
        ({"text_1": ["a", "b"], "text_2": ["c"] * 3}, Fault.invalid, "text_1 has 2 and text_2 3"),
        ({"text_1": [], "text_2": []}, Fault.invalid, "text_1 is empty"),
        ({"text_1": "a", "text_2": [1]}, Fault.malformed, r"text_2\[0\] is a number"),
        (
            {"data_1": "a", "data_2": {"content": [{"type": "image_url", "image_url": {}}]}},
            Fault.unsupported,
            r"data_2\[0\].content\[0\] has 'image_url'",
        ),
    ],
)
def test_sides_that_do_not_fit_are_refused(body: dict[str, Any], fault: Fault, words: str) -> None:
    with pytest.raises(Refusal, match=words) as refused:
        pairs(body)
    assert refused.value.fault is fault


@pytest.mark.parametrize(
    ("fields", "budgets"),
    [
        ({}, Budgets(may_truncate=False)),
        ({"truncate_prompt_tokens": -1}, Budgets()),
        ({"truncate_prompt_tokens": 128, "truncation_side": "left"}, Budgets(max_length=128, keep_end=True)),
        ({"truncate_prompt_tokens": -1, "max_tokens_per_doc": 64}, Budgets(max_document_tokens=64)),
        ({"max_tokens_per_doc": 64, "max_tokens_per_query": 9}, Budgets(max_document_tokens=64, max_query_tokens=9)),
        ({"max_tokens_per_doc": 0, "max_tokens_per_query": 0}, Budgets(may_truncate=False)),
    ],
)
def test_ways_to_cut(fields: dict[str, Any], budgets: Budgets) -> None:
    assert parsed("/vllm/rerank", {**BODY, **fields}).budgets == budgets
    assert parsed("/score", {"text_1": "a", "text_2": "b", **fields}).budgets == budgets


def test_tokens_below_minus_one_are_refused() -> None:
    with pytest.raises(Refusal, match="truncate_prompt_tokens is -2"):
        parsed("/vllm/rerank", {**BODY, "truncate_prompt_tokens": -2})


def test_documents_are_always_given_back_as_objects() -> None:
    body = answer("/vllm/rerank", BODY, 0.0, 2.0).body
    assert body["results"][0]["document"] == {"text": "b", "multi_modal": None}
    assert [result["index"] for result in body["results"]] == [1, 0]
    single = answer("/vllm/rerank", {**BODY, "documents": "alone"}, 0.0).body
    assert single["results"][0]["document"]["text"] == "alone"
    parts = {"content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
    joined = answer("/vllm/rerank", {**BODY, "documents": [parts]}, 0.0).body
    assert joined["results"][0]["document"]["text"] == "one\ntwo"


@pytest.mark.parametrize("name", ["use_activation", "activation"])
def test_scores_are_probabilities_or_logits_when_the_activation_is_off(name: str) -> None:
    assert answer("/vllm/rerank", {**BODY, name: False}, -3.0, 2.0).body["results"][0]["relevance_score"] == 2.0
    assert answer("/vllm/rerank", {**BODY, name: True}, 0.0, -2.0).body["results"][0]["relevance_score"] == 0.5
    assert answer("/score", {"text_1": "a", "text_2": "b", name: False}, -3.0).body["data"][0]["score"] == -3.0


def test_an_answer_of_score_keeps_the_order() -> None:
    body = answer("/score", {"text_1": "q", "text_2": ["a", "b"]}, 0.0, 9.0).body
    assert body["object"] == "list"
    assert body["data"][0] == {"index": 0, "object": "score", "score": 0.5}
    assert body["data"][1]["score"] == pytest.approx(0.9998766)
    assert body["usage"] == {"prompt_tokens": 42, "total_tokens": 42}
