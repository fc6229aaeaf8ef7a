"""What holds for every dialect: unknown fields, nulls, wrong types, and answers that are what is documented."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondpass.server.dialects import Dialect, Route
from secondpass.server.dialects.dialect import Call
from secondpass.wire.calls import EmbedCall, Fault, Refusal, RerankCall, ScoreCall, Vectors
from tests.server.dialects.answers import CARD, ranked, routes

NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))  # `make fuzz` asks for more
# The least that each route's request needs, by its model's name.
LEAST: dict[str, dict[str, Any]] = {
    "CohereRequest": {"query": "q", "documents": ["a", "b"]},
    "CohereV1Request": {"query": "q", "documents": ["a", "b"]},
    "JinaRequest": {"query": "q", "documents": ["a", {"text": "b"}]},
    "VoyageRequest": {"query": "q", "documents": ["a", "b"]},
    "TeiRequest": {"query": "q", "texts": ["a", "b"]},
    "VllmRequest": {"query": "q", "documents": ["a", "b"]},
    "VllmScoreRequest": {"text_1": "q", "text_2": ["a", "b"]},
    "NimRequest": {"query": {"text": "q"}, "passages": [{"text": "a"}, {"text": "b"}]},
    "InfinityRequest": {"query": "q", "documents": ["a", "b"]},
    "LlamacppRequest": {"query": "q", "documents": ["a", "b"]},
    "MixedbreadRequest": {"query": "q", "input": ["a", {"text": "b"}]},
    "PineconeRequest": {"query": "q", "documents": [{"text": "a"}, {"text": "b"}]},
    "DashscopeRequest": {"input": {"query": "q", "documents": ["a", "b"]}},
    "DashscopeCompatibleRequest": {"query": "q", "documents": ["a", "b"]},
    "IsaacusRequest": {"query": "q", "texts": ["a", "b"]},
    "WeaviateRequest": {"query": "q", "documents": ["a", "b"]},
    "DeepInfraRequest": {"queries": ["q", "r"], "documents": ["a", "b"]},
    "NativeRequest": {"query": "q", "documents": ["a", {"text": "b"}]},
    "EmbeddingsRequest": {"input": ["a", "b"]},
}
# One route of each kind of request: those of a dialect share their functions
POSTED = list({route.request_model: (dialect, route) for dialect, route in routes() if route.request_model}.values())
IDS = [f"{dialect.name}{route.path}" for dialect, route in POSTED]
every_post = pytest.mark.parametrize(("dialect", "route"), POSTED, ids=IDS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def least(route: Route) -> dict[str, Any]:
    assert route.request_model is not None
    return json.loads(json.dumps(LEAST[route.request_model.__name__]))  # type: ignore[no-any-return]


def parse(route: Route, body: Any) -> Call:
    assert route.parse is not None
    return route.parse(body, {})


def optional(route: Route) -> list[str]:
    assert route.request_model is not None
    return [name for name in route.request_model.model_fields if name not in least(route)]


@every_post
def test_unknown_fields_are_let_through(dialect: Dialect, route: Route) -> None:
    plain = parse(route, least(route))
    unknown = {"user": "u", "x-extra": {"deep": [1]}, "model_config": 1, "__class__": "a", "self": None, "": 0}
    assert parse(route, {**least(route), **unknown}) == plain


@every_post
def test_null_is_as_if_not_given(dialect: Dialect, route: Route) -> None:
    nulls = dict.fromkeys(optional(route))
    assert parse(route, {**least(route), **nulls}) == parse(route, least(route))


@every_post
def test_a_required_field_may_not_be_missing_or_null(dialect: Dialect, route: Route) -> None:
    for name in least(route):
        for body in ({k: v for k, v in least(route).items() if k != name}, {**least(route), name: None}):
            with pytest.raises(Refusal) as refused:
                parse(route, body)
            assert refused.value.fault in (Fault.malformed, Fault.invalid)
            assert refused.value.parameter is not None


@every_post
@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(data=st.data())
def test_any_value_is_read_or_refused_by_name(dialect: Dialect, route: Route, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*least(route), *optional(route)]))
    value = data.draw(JSON)
    try:
        parse(route, {**least(route), name: value})
    except Refusal as refusal:
        assert refusal.fault in (Fault.malformed, Fault.invalid, Fault.too_large, Fault.unsupported)
        assert refusal.parameter is not None
        reply = dialect.refuse(refusal, "r-1")
        assert 400 <= reply.status < 500
        json.dumps(reply.body)


@every_post
@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(body=JSON)
def test_any_body_is_read_or_refused(dialect: Dialect, route: Route, body: Any) -> None:
    try:
        parse(route, body)
    except Refusal as refusal:
        assert dialect.refuse(refusal, "r-1").status >= 400


@every_post
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_answers_are_what_is_documented(dialect: Dialect, route: Route, data: st.DataObject) -> None:
    names = [name for name in optional(route) if name.startswith(("return_", "raw_", "use_", "encoding"))]
    body = {**least(route), **{name: data.draw(st.booleans() | st.none(), label=name) for name in names}}
    if "encoding_format" in names:
        body["encoding_format"] = data.draw(st.sampled_from(["float", "base64", None]))
    call = parse(route, body)
    logits = data.draw(st.lists(st.floats(-30, 30), min_size=2, max_size=2))
    reply = route.write(answer(call, logits), call, body)
    assert reply.status == 200
    text = json.dumps(reply.body, allow_nan=False)
    if route.response_model is not None:
        route.response_model.model_validate_json(text)


def answer(call: Call, logits: list[float]) -> Any:
    if isinstance(call, EmbedCall):
        return Vectors(id="r-1", model="m", vectors=tuple((logit, 1.0) for logit in logits))
    return ranked(call, *logits)


@pytest.mark.parametrize("route", [route for _, route in routes() if route.parse is None], ids=lambda r: r.documented)
def test_what_is_told_is_what_is_documented(route: Route) -> None:
    reply = route.write(CARD, None, {})
    if route.response_model is None:
        assert reply.body is None
    else:
        route.response_model.model_validate_json(json.dumps(reply.body))


@every_post
def test_texts_arrive_in_order(dialect: Dialect, route: Route) -> None:
    call = parse(route, least(route))
    if isinstance(call, RerankCall):
        assert (call.query, call.documents) == ("q", ("a", "b"))
    elif isinstance(call, ScoreCall):
        assert [document for _, document in call.pairs] == ["a", "b"]
    else:
        assert call.texts == ("a", "b")


@every_post
def test_every_field_is_described_for_openapi(dialect: Dialect, route: Route) -> None:
    assert route.request_model is not None
    schema = route.request_model.model_json_schema()
    assert schema["description"]
    assert all({"type", "anyOf", "enum", "$ref"} & field.keys() for field in schema["properties"].values())


@pytest.mark.parametrize("value", [10**400, 1e300, -(10**400)])
def test_giant_numbers_are_harmless(value: float) -> None:
    route = next(route for dialect, route in POSTED if dialect.name in ("cohere", "logits"))
    try:
        call = parse(route, {**least(route), "top_n": value, "max_tokens_per_doc": value})
    except Refusal as refusal:
        assert value < 0
        assert len(refusal.message) < 10_000
    else:
        assert isinstance(call, RerankCall)
        assert call.top_n == 2**31 - 1
