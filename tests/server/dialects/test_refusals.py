"""Each refusal in each dialect: the status, and the body that its clients parse."""

from __future__ import annotations

from typing import Any

import pytest

from secondpass.server.dialects import DIALECTS, Dialect
from secondpass.wire.calls import Fault, Refusal

BY_NAME = {dialect.name: dialect for dialect in DIALECTS}
UNION = ("cohere", "logits", "jina", "voyage", "nim", "deepinfra")


def refuse(name: str, fault: Fault, **more: Any) -> Any:
    return BY_NAME[name].refuse(Refusal(fault, "some words", **more), "r-1")


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_every_fault_is_an_error_that_says_its_words(dialect: Dialect, fault: Fault) -> None:
    reply = dialect.refuse(Refusal(fault, "some words", parameter="field"), "r-1")
    assert 400 <= reply.status < 600
    is_server_side = fault in (Fault.unavailable, Fault.deadline)
    assert (reply.status >= 500) is is_server_side or fault in (Fault.internal, Fault.unsupported)
    if fault is not Fault.unauthorized:
        assert "some words" in str(reply.body)


@pytest.mark.parametrize("name", UNION)
def test_the_union_of_bodies(name: str) -> None:
    body = refuse(name, Fault.overloaded).body
    words = {"id": "r-1", "message": "some words", "detail": "some words", "error": "some words"}
    assert body.items() >= {**words, "error_type": "overloaded"}.items()


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_retry_after_is_whole_seconds(dialect: Dialect) -> None:
    for seconds, header in ((0.05, "1"), (1.0, "1"), (1.2, "2"), (30, "30")):
        for fault, status in ((Fault.overloaded, 429), (Fault.unavailable, 503)):
            reply = dialect.refuse(Refusal(fault, "busy", retry_after=seconds), "r-1")
            assert reply.status == status
            assert reply.headers["Retry-After"] == header
            assert int(reply.headers["retry-after-ms"]) == round(seconds * 1000)
    assert "Retry-After" not in dialect.refuse(Refusal(Fault.overloaded, "busy"), "r-1").headers


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_refused_key_is_401_with_the_scheme(dialect: Dialect) -> None:
    reply = dialect.refuse(Refusal(Fault.unauthorized, "no such key"), "r-1")
    assert reply.status == 401
    assert reply.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_body_that_is_too_large_is_413_everywhere(dialect: Dialect) -> None:
    assert dialect.refuse(Refusal(Fault.too_large, "the body has 9 MB"), "r-1").status == 413


@pytest.mark.parametrize(
    ("name", "fault", "status"),
    [
        ("cohere", Fault.malformed, 400),
        ("cohere", Fault.invalid, 400),
        ("cohere", Fault.unsupported, 422),
        ("cohere", Fault.unknown_model, 404),
        ("voyage", Fault.malformed, 422),
        ("voyage", Fault.invalid, 400),
        ("jina", Fault.unknown_model, 400),
        ("tei", Fault.malformed, 422),
        ("tei", Fault.invalid, 422),
        ("tei", Fault.unsupported, 424),
        ("vllm", Fault.unsupported, 400),
        ("infinity", Fault.malformed, 422),
        ("llamacpp", Fault.unsupported, 501),
        ("openai", Fault.unknown_model, 404),
    ],
)
def test_statuses_of_their_own(name: str, fault: Fault, status: int) -> None:
    assert refuse(name, fault).status == status


@pytest.mark.parametrize(
    ("name", "status"), [("cohere", 400), ("voyage", 400), ("tei", 422), ("vllm", 400), ("infinity", 422)]
)
def test_a_field_that_is_too_large_is_a_wrong_value(name: str, status: int) -> None:
    assert refuse(name, Fault.too_large, parameter="documents").status == status


def test_tei_bodies() -> None:
    assert refuse("tei", Fault.invalid, parameter="query").body == {"error": "some words", "error_type": "Validation"}
    empty = refuse("tei", Fault.invalid, parameter="texts")
    assert (empty.status, empty.body["error_type"]) == (400, "Empty")
    assert refuse("tei", Fault.unauthorized).body is None
    assert refuse("tei", Fault.overloaded).body["error_type"] == "Overloaded"
    assert refuse("tei", Fault.unavailable).body["error_type"] == "Unhealthy"


def test_openai_bodies() -> None:
    for name in ("vllm", "openai", "infinity"):
        error = refuse(name, Fault.unknown_model).body["error"]
        assert (error["message"], error["type"]) == ("some words", "not_found_error")
    long = refuse("vllm", Fault.too_large, parameter="input_tokens").body["error"]
    assert (long["param"], long["code"], long["type"]) == ("input_tokens", 400, "invalid_request_error")


def test_infinity_has_fastapis_bodies_for_fields_and_keys() -> None:
    body = refuse("infinity", Fault.invalid, parameter="top_n").body
    assert body["detail"] == [{"loc": ["body", "top_n"], "msg": "some words", "type": "invalid"}]
    assert refuse("infinity", Fault.unauthorized).body == {"detail": "Unauthorized"}


def test_jina_has_coded_names() -> None:
    assert refuse("jina", Fault.unknown_model).body["code"] == "INPUT_MODEL_NOT_FOUND"
    assert refuse("jina", Fault.unauthorized).body["code"] == "AUTH_INVALID_API_KEY"
