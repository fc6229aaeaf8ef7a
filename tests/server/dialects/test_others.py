"""The smaller dialects: TEI, NIM, Voyage, Jina, infinity, llama.cpp, DeepInfra, OpenAI."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from secondpass.server.dialects import choose
from secondpass.wire.calls import Budgets, EmbedCall, Fault, Refusal, RerankCall, ScoreCall, ServerCard, Vectors
from tests.server.dialects.answers import CARD, answer, parsed

PLAIN: dict[str, Any] = {"query": "q", "documents": ["a", "b", "c"]}
TEI: dict[str, Any] = {"query": "q", "texts": ["a", "b", "c"]}
NIM: dict[str, Any] = {"query": {"text": "q"}, "passages": [{"text": "a"}, {"text": "b"}]}


def shown(path: str, card: ServerCard = CARD) -> Any:
    return choose(path, None, {}, "GET")[1].write(card, None, {})


def test_tei_answers_with_a_bare_list() -> None:
    assert answer("/rerank", TEI, 0.0, 3.0, -3.0).body == [
        {"index": 1, "score": pytest.approx(0.9525741)},
        {"index": 0, "score": 0.5},
        {"index": 2, "score": pytest.approx(0.0474259)},
    ]
    raw = answer("/rerank", {**TEI, "raw_scores": True, "return_text": True}, 0.0, 3.0, -3.0).body
    assert raw[0] == {"index": 1, "score": 3.0, "text": "b"}
    assert len(answer("/rerank", {**TEI, "top_n": 1}, 0.0, 3.0, -3.0).body) == 1


def test_tei_tells_times_in_milliseconds() -> None:
    assert answer("/rerank", TEI, 0.0, 0.0, 0.0).headers == {
        "x-compute-characters": "99",
        "x-compute-tokens": "42",
        "x-compute-time": "12",
        "x-total-time": "12",
        "x-tokenization-time": "1",
        "x-queue-time": "2",
        "x-inference-time": "9",
    }


@pytest.mark.parametrize(
    ("fields", "budgets"),
    [
        ({}, Budgets()),
        ({"truncate": None}, Budgets()),
        ({"truncate": True, "truncation_direction": "Left"}, Budgets(keep_end=True)),
        ({"truncate": False, "truncation_direction": "right"}, Budgets(may_truncate=False)),
    ],
)
def test_tei_ways_to_cut(fields: dict[str, Any], budgets: Budgets) -> None:
    assert parsed("/rerank", {**TEI, **fields}).budgets == budgets


def test_tei_info_is_of_the_first_reranker() -> None:
    info = shown("/info").body
    assert (info["model_id"], info["model_sha"], info["max_input_length"]) == ("default", "abc", 512)
    assert (info["max_client_batch_size"], info["version"]) == (10_000, "1.2.3")
    assert set(info["model_type"]) == {"reranker"}
    with pytest.raises(Refusal, match="no reranker"):
        shown("/info", ServerCard(models=CARD.models[:1], version="1"))


def test_health_is_503_until_ready() -> None:
    starting = ServerCard(models=CARD.models, version="1", is_ready=False)
    assert (shown("/tei/health").status, shown("/tei/health").body) == (200, None)
    assert shown("/tei/health", starting).status == 503
    assert shown("/infinity/health").body["unix"] > 1_700_000_000
    assert shown("/infinity/health", starting).status == 503


def test_nim_gives_logits() -> None:
    reply = answer("/v1/ranking", NIM, -1.5, 4.25)
    assert reply.body["rankings"] == [{"index": 1, "logit": 4.25}, {"index": 0, "logit": -1.5}]


def test_nim_refuses_long_passages_unless_they_may_be_cut() -> None:
    assert parsed("/v1/ranking", NIM).budgets == Budgets(may_truncate=False)
    assert parsed("/v1/ranking", {**NIM, "truncate": "NONE"}).budgets == Budgets(may_truncate=False)
    assert parsed("/v1/ranking", {**NIM, "truncate": "END"}).budgets == Budgets()
    with pytest.raises(Refusal, match="truncate is a string; it should be 'NONE' or 'END'") as refused:
        parsed("/v1/ranking", {**NIM, "truncate": "START"})
    assert refused.value.fault is Fault.invalid


def test_nim_refuses_pictures_and_names_them() -> None:
    pictured = {"text": "a", "image": "data:image/png;base64,AAAA"}
    with pytest.raises(Refusal, match=r"passages\[1\] has 'image'") as refused:
        parsed("/v1/ranking", {**NIM, "passages": [{"text": "a"}, pictured]})
    assert refused.value.fault is Fault.unsupported
    assert isinstance(parsed("/v1/ranking", {**NIM, "passages": [{"text": "a", "image": None}]}), RerankCall)


def test_voyage() -> None:
    body = answer("/v1/rerank", {**PLAIN, "top_k": 2, "truncation": True}, 0.0, 3.0, -3.0).body
    assert body == {
        "object": "list",
        "data": [{"index": 1, "relevance_score": pytest.approx(0.9525741)}, {"index": 0, "relevance_score": 0.5}],
        "model": "default",
        "usage": {"total_tokens": 42},
    }
    with_texts = answer("/voyage/rerank", {**PLAIN, "return_documents": True}, 0.0, 3.0, -3.0).body
    assert with_texts["data"][0]["document"] == "b"
    assert parsed("/voyage/rerank", {**PLAIN, "truncation": False}).budgets == Budgets(may_truncate=False)


def test_jina_gives_documents_back_unless_told_not_to() -> None:
    results = answer("/jina/v1/rerank", PLAIN, 0.0, 3.0, -3.0).body["results"]
    assert results[0]["document"] == {"text": "b"}
    bare = answer("/jina/v1/rerank", {**PLAIN, "return_documents": False}, 0.0, 3.0, -3.0).body["results"]
    assert bare[0] == {"index": 1, "relevance_score": pytest.approx(0.9525741)}
    call = parsed("/jina/v1/rerank", {**PLAIN, "query": {"text": "of an object"}, "max_doc_length": 64})
    assert isinstance(call, RerankCall)
    assert (call.query, call.budgets) == ("of an object", Budgets(max_document_tokens=64))
    with pytest.raises(Refusal, match="query has 'image'"):
        parsed("/jina/v1/rerank", {**PLAIN, "query": {"image": "https://example.org/a.png"}})


def test_infinity_gives_documents_as_strings() -> None:
    body = answer("/infinity/rerank", {**PLAIN, "return_documents": True}, 0.0, 3.0, -3.0).body
    assert (body["object"], body["id"]) == ("rerank", "r-1")
    assert body["results"][0] == {"relevance_score": pytest.approx(0.9525741), "index": 1, "document": "b"}
    raw = answer("/rerank", {**PLAIN, "raw_scores": True}, 0.0, 3.0, -3.0).body["results"]
    assert raw[0] == {"relevance_score": 3.0, "index": 1}


def test_infinity_has_a_name_for_no_model() -> None:
    assert parsed("/infinity/rerank", {**PLAIN, "model": "default/not-specified"}).model is None
    assert parsed("/infinity/rerank", {**PLAIN, "model": "mine"}).model == "mine"


def test_llamacpp_gives_logits_in_two_forms() -> None:
    body = answer("/v1/reranking", {**PLAIN, "top_n": 2}, 0.5, 3.0, -3.0).body
    assert body["results"] == [{"index": 1, "relevance_score": 3.0}, {"index": 0, "relevance_score": 0.5}]
    assert body["object"] == "list"
    bare = answer("/reranking", {**TEI, "return_text": True}, 0.5, 3.0, -3.0).body
    assert bare[0] == {"index": 1, "score": 3.0, "text": "b"}


@pytest.mark.parametrize("documents", [None, [], 3, "text", ["a", 3], ["a", None], ["a", ["b"]]])
def test_llamacpp_refuses_documents_that_are_no_strings_with_400(documents: Any) -> None:
    dialect, route = choose("/reranking", {}, {})
    assert route.parse is not None
    with pytest.raises(Refusal) as refused:
        route.parse({"query": "q", "documents": documents}, {})
    reply = dialect.refuse(refused.value, "r-1")
    assert (reply.status, reply.body["error"]["code"]) == (400, 400)


def test_deepinfra() -> None:
    body = {"queries": ["q", "r"], "documents": ["a", "b"]}
    call = parsed("/v1/inference/some/model", body)
    assert isinstance(call, ScoreCall)
    assert call.pairs == (("q", "a"), ("r", "b"))
    reply = answer("/v1/inference/some/model", body, 0.0, 3.0).body
    assert (reply["scores"], reply["input_tokens"]) == ([0.5, pytest.approx(0.9525741)], 42)
    assert isinstance(parsed("/inference/m", {"queries": ["q"], "documents": ["a", "b"]}), ScoreCall)
    with pytest.raises(Refusal, match="queries has 2 and documents 3"):
        parsed("/inference/m", {"queries": ["q"] * 2, "documents": ["a"] * 3})


VECTORS = Vectors(id="r-1", model="vectors", vectors=((0.6, 0.8), (1.0, 0.0)))


def embedded(**fields: Any) -> Any:
    body = {"input": ["a", "b"], **fields}
    route = choose("/v1/embeddings", body, {})[1]
    return route.write(VECTORS, parsed("/v1/embeddings", body), body).body["data"]


def test_openai_embeddings_as_numbers_and_as_base64() -> None:
    assert embedded()[0] == {"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}
    packed = base64.b64decode(embedded(encoding_format="base64")[0]["embedding"])
    assert np.frombuffer(packed, "<f4") == pytest.approx([0.6, 0.8])


def test_openai_embeddings_are_shortened_to_unit_length() -> None:
    assert embedded(dimensions=2)[0]["embedding"] == pytest.approx([0.6, 0.8])
    assert [row["embedding"] for row in embedded(dimensions=1.0)] == [[1.0], [1.0]]
    with pytest.raises(Refusal, match="dimensions is 3; vectors of this model have 2") as refused:
        embedded(dimensions=3)
    assert refused.value.fault is Fault.invalid


def test_openai_inputs() -> None:
    assert parsed("/v1/embeddings", {"input": "a"}) == EmbedCall(texts=("a",))
    query = parsed("/v1/embeddings", {"input": ["a"], "input_type": "query"})
    assert query == EmbedCall(texts=("a",), is_query=True)
    for tokens in ([1, 2], [[1, 2]]):
        with pytest.raises(Refusal, match="input has token ids") as refused:
            parsed("/v1/embeddings", {"input": tokens})
        assert refused.value.fault is Fault.unsupported
    for nothing in ([], None, {}):
        with pytest.raises(Refusal, match="input is"):
            parsed("/v1/embeddings", {"input": nothing})


def test_openai_models() -> None:
    data = shown("/v1/models").body["data"]
    assert [(model["id"], model["capabilities"]) for model in data] == [
        ("vectors", ["embed"]),
        ("default", ["rerank"]),
    ]
    assert data[1]["object"] == "model"
    assert data[1]["created"] == 1_700_000_001
