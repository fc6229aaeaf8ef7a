"""What real clients sent, read and answered again; made by `make record-clients`.

Each record is one exchange of a client with a live server of the embedded model: the dialect that it was read in, the
request body, and the answer that the client accepted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secondpass import Reranker
from secondpass.server.dialects import Dialect, Route, choose
from secondpass.server.dialects.dialect import Call
from secondpass.wire.calls import EmbedCall, Item, Ranked, Refusal, ScoreCall, Timing
from tests.server.dialects.answers import CARD

RECORDS = sorted((Path(__file__).parent / "recorded").glob("*.json"))
# What differs between two answers to the same request
VOLATILE = {"id", "request_id", "created", "runtime_ms", "usage", "tokens", "input_tokens", "tokens_input", "unix"}
records = pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem, indirect=True)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text("utf-8"))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return Reranker()


def chosen(record: dict[str, Any]) -> tuple[Dialect, Route]:
    return choose(record["path"], record["request"] or {}, record.get("headers", {}), record["method"])


def answered(call: Call, reranker: Reranker) -> Ranked:
    """What a service of the embedded model would say."""
    assert not isinstance(call, EmbedCall)
    pairs = call.pairs if isinstance(call, ScoreCall) else [(call.query, text) for text in call.documents]
    logits = reranker.score_pairs(pairs)
    items = [Item(index=i, logit=logit, probability=reranker.probability(logit)) for i, logit in enumerate(logits)]
    if not isinstance(call, ScoreCall):
        items = sorted(items, key=lambda item: -item.logit)[: call.top_n]
    return Ranked(id="r-1", model="default", items=tuple(items), timing=Timing())


def steady(value: Any) -> Any:
    """A body without what differs from time to time or with the embedded model's weights: ids and scores.

    That scores stand at the right places, the tests of live clients and of each dialect show.
    """
    if isinstance(value, dict):
        return {name: steady(inner) for name, inner in value.items() if name not in VOLATILE}
    if isinstance(value, list):
        return [steady(inner) for inner in value]
    return "a score" if isinstance(value, float) else value


def test_every_client_is_recorded() -> None:
    clients = {json.loads(path.read_text("utf-8"))["client"].split(" ")[0] for path in RECORDS}
    assert clients >= {
        "cohere",
        "cohere-haystack",
        "dashscope",
        "infinity_client",
        "isaacus",
        "jina-haystack",
        "langchain-cohere",
        "langchain-community",
        "langchain-nvidia-ai-endpoints",
        "langchain-reranker",
        "langchain-voyageai",
        "litellm",
        "llama-index-postprocessor-cohere-rerank",
        "llama-index-postprocessor-jinaai-rerank",
        "llama-index-postprocessor-nvidia-rerank",
        "llama-index-postprocessor-tei-rerank",
        "llama-index-postprocessor-voyageai-rerank",
        "mixedbread",
        "nvidia-haystack",
        "pinecone",
        "together",
        "vllm-haystack",
        "voyageai",
        "xinference-client",
    }


@records
def test_the_dialect_is_found(record: dict[str, Any]) -> None:
    assert chosen(record)[0].name == record["dialect"]


@records
def test_the_answer_is_the_one_that_the_client_accepted(record: dict[str, Any], reranker: Reranker) -> None:
    dialect, route = chosen(record)
    if route.parse is None:
        if record["status"] != 200:
            with pytest.raises(Refusal):
                route.write(CARD, None, {})
            return
        told, seen = route.write(CARD, None, {}).body, record["response"]
        assert set(told["data"][0] if "data" in told else told) == set(seen["data"][0] if "data" in seen else seen)
        return
    if record["status"] != 200:
        with pytest.raises(Refusal) as refused:
            route.parse(record["request"], {})
        reply = dialect.refuse(refused.value, "r-1")
        assert (reply.status, steady(reply.body)) == (record["status"], steady(record["response"]))
        return
    call = route.parse(record["request"], {})
    body = route.write(answered(call, reranker), call, record["request"]).body
    assert steady(record["response"]) == steady(body)


@records
def test_the_answer_is_what_is_documented(record: dict[str, Any]) -> None:
    route = chosen(record)[1]
    if record["status"] == 200 and route.response_model is not None:
        route.response_model.model_validate_json(json.dumps(record["response"]))
