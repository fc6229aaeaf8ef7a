"""Cohere's v1 and v2."""

from __future__ import annotations

from typing import Any

import pytest

from secondpass.wire.calls import Budgets, Fault, Refusal, RerankCall
from tests.server.dialects.answers import answer, parsed

BODY: dict[str, Any] = {"model": "m", "query": "q", "documents": ["a", "b", "c"]}


def budgets(path: str, **fields: Any) -> Budgets:
    return parsed(path, {**BODY, **fields}).budgets


def test_v2_reads_4096_tokens_of_each_document_in_windows() -> None:
    assert budgets("/v2/rerank") == Budgets(max_document_tokens=4096, in_windows=True)
    assert budgets("/v2/rerank", max_tokens_per_doc=None) == budgets("/v2/rerank")
    assert budgets("/v2/rerank", max_tokens_per_doc=100) == Budgets(max_document_tokens=100, in_windows=True)


def test_v1_reads_ten_windows_of_each_document() -> None:
    assert budgets("/v1/rerank") == Budgets(in_windows=True, max_windows=10)
    assert budgets("/v1/rerank", max_chunks_per_doc=3) == Budgets(in_windows=True, max_windows=3)
    assert budgets("/v1/rerank", max_chunks_per_doc=1) == Budgets(in_windows=False, max_windows=1)


def test_v1_reads_fewer_windows_of_many_documents_unless_told_how_many() -> None:
    many = {"documents": ["a"] * 4000}
    assert budgets("/v1/rerank", **many).max_windows == 2
    with pytest.raises(Refusal, match="max_chunks_per_doc 3 of 4000 documents is 12000; at most 10000") as refused:
        budgets("/v1/rerank", **many, max_chunks_per_doc=3)
    assert refused.value.fault is Fault.too_large
    assert budgets("/v1/rerank", documents=["a"] * 10_000).max_windows == 1


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_more_than_ten_thousand_documents_are_an_error(path: str) -> None:
    with pytest.raises(Refusal, match="documents has 10001; at most 10000") as refused:
        parsed(path, {**BODY, "documents": ["a"] * 10_001})
    assert (refused.value.fault, refused.value.parameter) == (Fault.too_large, "documents")


@pytest.mark.parametrize(("top_n", "read"), [(None, None), (0, None), (1, 1), (2.0, 2), (99, 99)])
def test_top_n_of_none_or_zero_is_all(top_n: Any, read: int | None) -> None:
    call = parsed("/v2/rerank", {**BODY, "top_n": top_n})
    assert isinstance(call, RerankCall)
    assert call.top_n == read


def test_priority_and_instruction_arrive() -> None:
    call = parsed("/v2/rerank", {**BODY, "priority": 7, "instruction": "prefer dates"})
    assert (call.model, call.priority, call.instruction) == ("m", 7, "prefer dates")  # type: ignore[union-attr]


def test_an_answer_of_v2() -> None:
    body = answer("/v2/rerank", {**BODY, "top_n": 2}, -1.0, 2.0, 0.0).body
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "id": "r-1",
        "results": [
            {"index": 1, "relevance_score": pytest.approx(0.880797, abs=1e-6)},
            {"index": 2, "relevance_score": 0.5},
        ],
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": 42, "output_tokens": 0},
        },
        "object": "rerank",
        "model": "default",
        "usage": {"prompt_tokens": 42, "completion_tokens": 0, "total_tokens": 42},
    }


def test_documents_come_back_with_all_their_fields_when_asked_for() -> None:
    documents = ["plain", {"text": "of an object", "id": 7, "meta": {"a": [1]}}]
    body = {**BODY, "documents": documents, "return_documents": True}
    results = answer("/v1/rerank", body, 1.0, 0.0).body["results"]
    assert [result["document"] for result in results] == [{"text": "plain"}, documents[1]]
    assert "document" not in answer("/v1/rerank", {**body, "return_documents": None}, 1.0, 0.0).body["results"][0]


@pytest.mark.parametrize("path", ["/logits/v1/rerank", "/logits/rerank", "/logits/v2/rerank"])
def test_below_logits_the_scores_are_logits(path: str) -> None:
    results = answer(path, BODY, -1.5, 2.25, 0.0).body["results"]
    assert [(result["index"], result["relevance_score"]) for result in results] == [(1, 2.25), (2, 0.0), (0, -1.5)]


@pytest.mark.parametrize(("rows", "units"), [(3, 1), (100, 1), (101, 2), (250, 3)])
def test_a_search_unit_is_a_hundred_documents_or_windows(rows: int, units: int) -> None:
    meta = answer("/v2/rerank", BODY, 0.0, 0.0, 0.0, rows=rows).body["meta"]
    assert meta["billed_units"] == {"search_units": units}


@pytest.mark.parametrize(
    ("field", "value", "fault", "words"),
    [
        ("query", None, Fault.malformed, "query is null"),
        ("query", {"text": "q"}, Fault.malformed, "query is an object; it should be a valid string"),
        ("documents", "abc", Fault.malformed, "documents is a string"),
        ("documents", [], Fault.invalid, "documents is empty"),
        ("top_n", "three", Fault.malformed, "top_n is a string; it should be a valid integer"),
        ("top_n", -1, Fault.invalid, "top_n is -1; it should be greater than or equal to 0"),
        ("top_n", 1.5, Fault.malformed, "top_n is a number"),
        ("top_n", True, Fault.malformed, "top_n is a boolean"),
        ("return_documents", "yes", Fault.malformed, "return_documents is a string"),
        ("rank_fields", ["text", 3], Fault.malformed, r"rank_fields\[1\] is a number"),
        ("rank_fields", "text", Fault.malformed, "rank_fields is a string"),
        ("max_chunks_per_doc", 0, Fault.invalid, "max_chunks_per_doc is 0"),
        ("max_tokens_per_doc", -5, Fault.invalid, "max_tokens_per_doc is -5"),
        ("model", 3, Fault.malformed, "model is a number"),
    ],
)
def test_wrong_values_are_refused_by_name(field: str, value: Any, fault: Fault, words: str) -> None:
    with pytest.raises(Refusal, match=words) as refused:
        parsed("/v2/rerank", {**BODY, field: value})
    assert refused.value.fault is fault
    assert (refused.value.parameter or "").startswith(field)


@pytest.mark.parametrize("field", ["query", "documents"])
def test_missing_fields_are_named(field: str) -> None:
    with pytest.raises(Refusal, match=f"{field} is missing") as refused:
        parsed("/v2/rerank", {name: value for name, value in BODY.items() if name != field})
    assert (refused.value.fault, refused.value.parameter) == (Fault.malformed, field)
