"""What vector stores, gateways and the newer SDKs send, body by body, and what they read of the answer."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from secondpass.server import dialects
from secondpass.server.dialects import DIALECTS, choose
from secondpass.wire.calls import Budgets, Fault, Refusal, RerankCall
from tests.server.dialects.answers import CARD, answer, parsed

DOCUMENTS = ["a", "b", "c"]
LOGITS = (0.0, 3.0, -3.0)
BEST = pytest.approx(0.9525741)
PLAIN: dict[str, Any] = {"query": "q", "documents": DOCUMENTS}


def test_weaviate_reads_scores_by_their_place() -> None:
    body = {**PLAIN, "property": ""}
    assert choose("/rerank", body, {})[0].name == "weaviate"
    assert answer("/rerank", body, *LOGITS).body == {
        "query": "q",
        "scores": [
            {"document": "a", "score": 0.5},
            {"document": "b", "score": BEST},
            {"document": "c", "score": pytest.approx(0.0474259)},
        ],
    }
    refused = choose("/rerank", body, {})[0].refuse(Refusal(Fault.overloaded, "busy", retry_after=1.0), "r-1")
    assert (refused.status, refused.body) == (429, {"error": "busy"})


@pytest.mark.parametrize("prefix", ["", "/weaviate", "/some/prefix"])
def test_weaviate_asks_first_whether_the_container_is_ready_and_what_it_is(prefix: str) -> None:
    assert choose(f"{prefix}/.well-known/ready", None, {}, "GET")[1].write(CARD, None, {}).status == 200
    assert choose(f"{prefix}/meta", None, {}, "GET")[1].write(CARD, None, {}).body["model"] == "default"


@pytest.mark.parametrize(
    ("body", "dialect"), [({}, "cohere"), ({"truncate_prompt_tokens": 512}, "vllm")], ids=["bare", "with a limit"]
)
def test_milvus_vllm_finds_every_document_at_the_root(body: dict[str, Any], dialect: str) -> None:
    assert choose("/rerank", {**PLAIN, **body}, {})[0].name == dialect
    results = answer("/rerank", {**PLAIN, **body}, *LOGITS).body["results"]
    assert sorted(result["index"] for result in results) == [0, 1, 2]


def test_milvus_and_elasticsearchs_hugging_face_service_read_teis_list() -> None:
    milvus = {"query": "q", "texts": DOCUMENTS, "truncate": True, "truncation_direction": "Right"}
    assert [rank["index"] for rank in answer("/rerank", milvus, *LOGITS).body] == [1, 0, 2]
    elastic = {"texts": DOCUMENTS, "query": "q", "return_text": True, "top_n": 2}
    assert answer("/rerank", elastic, *LOGITS).body == [
        {"index": 1, "score": BEST, "text": "b"},
        {"index": 0, "score": 0.5, "text": "a"},
    ]


def test_elasticsearchs_custom_service_reads_two_parallel_lists() -> None:
    results = answer("/v1/rerank", {"model": "default", **PLAIN}, *LOGITS).body["results"]
    assert [result["index"] for result in results] == [1, 0, 2]
    assert [result["relevance_score"] for result in results] == [BEST, 0.5, pytest.approx(0.0474259)]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_opensearch_casts_scores_to_double_and_needs_them_all(path: str) -> None:
    """A JSON number without a decimal point is an Integer to it, and the cast fails."""
    body = {**PLAIN, "model": "default", "top_n": 3}
    text = json.dumps(answer(path, body, 0.0, 40.0, -300.0).body["results"], separators=(",", ":"))
    written = [part.split(":")[1] for part in text.strip("[]{}").replace("},{", ",").split(",") if "score" in part]
    assert len(written) == 3
    assert all("." in number or "e" in number for number in written), written


def test_langchains_custom_reranker_needs_no_more_than_these_fields() -> None:
    body = {"model": "bge", **PLAIN, "top_n": 2}
    assert [result["index"] for result in answer("/v1/rerank", body, *LOGITS).body["results"]] == [1, 0]


@pytest.mark.parametrize(("said", "has"), [("true", True), ("True", True), ("false", False)])
def test_ragflows_xinference_writes_a_boolean_as_text(said: str, has: bool) -> None:
    body = {"model": "m", **PLAIN, "return_documents": said, "return_len": "true", "top_n": "2"}
    results = answer("/v1/rerank", body, *LOGITS).body["results"]
    assert [("document" in result) for result in results] == [has, has]


def test_xinferences_client_sends_its_options_twice() -> None:
    body = {"model": "m", **PLAIN, "top_n": None, "max_chunks_per_doc": None, "return_documents": None}
    assert len(answer("/v1/rerank", {**body, "return_len": None, "kwargs": "{}"}, *LOGITS).body["results"]) == 3


def test_difys_xinference_plugin_asks_for_the_model_first() -> None:
    found = choose("/v1/models/default", None, {}, "GET")[1].write(CARD, None, {}).body
    assert (found["id"], found["model_type"], found["model_ability"]) == ("default", "rerank", ["rerank"])
    with pytest.raises(Refusal, match="no model is named 'absent'; there are vectors, default") as refused:
        choose("/v1/models/absent", None, {}, "GET")[1].write(CARD, None, {})
    assert refused.value.fault is Fault.unknown_model


def test_together_finds_the_tokens_that_were_completed() -> None:
    assert answer("/v1/rerank", {**PLAIN, "model": "m"}, *LOGITS).body["usage"]["completion_tokens"] == 0


def test_mixedbread() -> None:
    body = {"model": "m", "query": "q", "input": [{"text": "a"}, "b", "c"], "top_k": 2, "return_input": True}
    found = answer("/v1/reranking", body, *LOGITS).body
    assert found["data"] == [
        {"index": 1, "score": BEST, "input": {"text": "b"}, "object": "rank_result"},
        {"index": 0, "score": 0.5, "input": {"text": "a"}, "object": "rank_result"},
    ]
    assert (found["top_k"], found["return_input"], found["object"]) == (2, True, "list")
    assert choose("/v1/reranking", PLAIN, {})[0].name == "llamacpp"


def test_pinecone_is_known_by_its_header() -> None:
    body = {"model": "m", "query": "q", "documents": [{"text": text} for text in DOCUMENTS], "top_n": 1}
    dialect, route = choose("/rerank", body, {"x-pinecone-api-version": "2025-10"})
    assert dialect.name == "pinecone"
    assert route.parse is not None
    from tests.server.dialects.answers import ranked

    call = route.parse(body, {})
    assert route.write(ranked(call, *LOGITS), call, body).body == {
        "model": "default",
        "data": [{"index": 1, "score": BEST, "document": {"text": "b"}}],
        "usage": {"rerank_units": 1},
    }


@pytest.mark.parametrize(
    ("parameters", "may_truncate"),
    [(None, True), ({}, True), ({"truncate": "END"}, True), ({"truncate": "NONE"}, False)],
)
def test_pinecone_says_whether_long_texts_are_cut(parameters: dict[str, str] | None, may_truncate: bool) -> None:
    body = {"model": "m", "query": "q", "documents": DOCUMENTS, "parameters": parameters}
    _, route = choose("/rerank", body, {"x-pinecone-api-version": "2025-10"})
    assert route.parse is not None
    call = route.parse(body, {})
    assert isinstance(call, RerankCall) and call.budgets.may_truncate is may_truncate


def test_dashscope_in_both_its_forms() -> None:
    path = "/api/v1/services/rerank/text-rerank/text-rerank"
    body = {
        "model": "gte-rerank",
        "input": {"query": "q", "documents": DOCUMENTS},
        "parameters": {"top_n": 1, "return_documents": True},
    }
    assert answer(path, body, *LOGITS).body == {
        "request_id": "r-1",
        "usage": {"total_tokens": 42},
        "output": {"results": [{"index": 1, "relevance_score": BEST, "document": {"text": "b"}}]},
    }
    assert len(answer(path, {"input": body["input"]}, *LOGITS).body["output"]["results"]) == 3
    with pytest.raises(Refusal, match=r"input\.query is missing"):
        parsed(path, {"input": {"documents": DOCUMENTS}})
    flat = answer("/compatible-api/v1/reranks", {"model": "qwen3-rerank", **PLAIN, "top_n": 1}, *LOGITS).body
    assert flat["results"] == [{"index": 1, "relevance_score": BEST}]


def test_isaacus() -> None:
    body = {"model": "m", "query": "q", "texts": DOCUMENTS, "top_n": 2}
    assert answer("/v1/rerankings", body, *LOGITS).body == {
        "results": [{"index": 1, "score": BEST}, {"index": 0, "score": 0.5}],
        "usage": {"input_tokens": 42},
    }


def test_siliconflows_instruction_is_no_error() -> None:
    call = parsed("/v1/rerank", {**PLAIN, "instruction": "prefer dates"})
    assert isinstance(call, RerankCall)
    assert (call.instruction, call.is_lenient) == ("prefer dates", True)
    assert call.budgets == Budgets(in_windows=True, max_windows=10)


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_an_error_where_it_is_one_at_coheres(query: str) -> None:
    with pytest.raises(Refusal, match="query is empty") as refused:
        parsed("/v2/rerank", {**PLAIN, "query": query})
    assert (refused.value.fault, refused.value.parameter) == (Fault.invalid, "query")


SIGNS: list[dict[str, Any]] = [
    {}, {"top_k": 1}, {"raw_scores": True}, {"property": ""}, {"texts": ["a"]}, {"input": ["a"]}, {"passages": ["a"]},
    {"truncate_prompt_tokens": 1}, {"model": "jina-x"}, {"model": "rerank-2.5"},
]  # fmt: skip


def test_the_order_of_the_list_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [{**PLAIN, **one, **other} for one, other in itertools.combinations(SIGNS, 2)]
    paths = ("/rerank", "/v1/rerank", "/v2/rerank", "/v1/reranking", "/x/v1/rerank")

    def chosen() -> list[str]:
        dialects.find.cache_clear()
        return [choose(path, body, {})[0].name for path in paths for body in bodies]

    usual = chosen()
    for seed in range(3):
        monkeypatch.setattr(dialects, "DIALECTS", tuple(random.Random(seed).sample(DIALECTS, len(DIALECTS))))
        assert chosen() == usual
    dialects.find.cache_clear()


def test_one_dialect_at_most_is_the_usual_one_of_an_address() -> None:
    for dialect in DIALECTS:
        for route in dialect.routes:
            found = dialects.find(route.documented.replace("{model}", "m"), route.method)
            assert sum(candidate.route.is_usual for candidate in found) <= 1, route.documented
            assert len(found) == 1 or found[-1].route.is_usual, route.documented
