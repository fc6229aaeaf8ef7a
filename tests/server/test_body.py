from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondpass.server import json_body
from secondpass.server.body import Bodies, Disconnected, deadline_of, read_body
from secondpass.server.json_body import LARGE, encoded, encoded_in_steps, parse_json
from secondpass.wire.calls import Fault, Refusal


class Wire:
    """What a client sends: pieces of a body; then nothing, or that it is gone."""

    def __init__(self, pieces: Iterable[bytes], *, ends: bool = True, leaves: bool = False) -> None:
        pieces = list(pieces)
        last = len(pieces) - 1
        self.messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": piece, "more_body": not (ends and place == last)}
            for place, piece in enumerate(pieces)
        ]
        if leaves:
            self.messages.append({"type": "http.disconnect"})
        self.received = 0

    async def receive(self) -> Mapping[str, Any]:
        if self.received == len(self.messages):
            await asyncio.Event().wait()
        self.received += 1
        return self.messages[self.received - 1]


def body(wire: Wire, *, max_bytes: int = 100, timeout_s: float = 10, **headers: str) -> bytes:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(read_body(wire.receive, names, max_bytes=max_bytes, timeout_s=timeout_s))


def test_a_body_is_put_together() -> None:
    assert body(Wire([b"ab", b"", b"c"])) == b"abc"


def test_a_body_that_says_that_it_is_too_large_is_not_read() -> None:
    wire = Wire([b"x" * 200])
    with pytest.raises(Refusal, match="larger than 100 bytes") as refused:
        body(wire, content_length="200")
    assert refused.value.fault is Fault.too_large
    assert wire.received == 0


def test_a_body_that_does_not_say_so_is_read_no_further_than_the_limit() -> None:
    wire = Wire([b"x" * 60] * 10)
    with pytest.raises(Refusal, match="larger than 100 bytes"):
        body(wire)
    assert wire.received == 2


def test_a_body_that_does_not_end_is_given_up() -> None:
    with pytest.raises(Refusal, match=r"not complete after 0\.01 s") as refused:
        body(Wire([b"{"], ends=False), timeout_s=0.01)
    assert refused.value.fault is Fault.malformed


def test_a_client_that_leaves_is_not_answered() -> None:
    with pytest.raises(Disconnected):
        body(Wire([b"{"], ends=False, leaves=True))


def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(Refusal, match="'gzip'; send it plain"):
        body(Wire([b"\x1f\x8b"]), content_encoding="gzip")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "line 1, column 1"),
        (b"{", "line 1, column 2"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),  # a surrogate as if it were a character
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a": 1e400}', "beyond what a double holds"),
        (b'{"a": "\x00"}', "Invalid control character"),
        (b"[" * 100_000, "nested"),
        (b"[" * 40 + b"]" * 40, "more than 32"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "more than 32"),
    ],
)
def test_what_is_no_plain_json_is_malformed(raw: bytes, words: str) -> None:
    with pytest.raises(Refusal, match=words) as refused:
        parse_json(raw, max_depth=32)
    assert refused.value.fault is Fault.malformed
    assert "999" not in refused.value.message


def test_json_is_read() -> None:
    assert parse_json('{"a": ["\\ud800", "é", 1.5, null]}'.encode(), max_depth=2) == {"a": ["\ud800", "é", 1.5, None]}
    assert parse_json(b"[" * 32 + b"]" * 32, max_depth=32)


def test_a_caller_may_ask_for_less_time_but_not_for_more() -> None:
    now = time.monotonic()

    def allowed(**headers: str) -> float:
        return deadline_of({name.replace("_", "-"): value for name, value in headers.items()}, 60) - now

    assert allowed() == pytest.approx(60, abs=1)
    assert allowed(x_deadline_ms="1500") == pytest.approx(1.5, abs=1)
    assert allowed(x_request_timeout="20.5") == pytest.approx(20.5, abs=1)
    assert allowed(x_request_timeout="1e9") == pytest.approx(60, abs=1)


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_time_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(Refusal, match="x-deadline-ms") as refused:
        deadline_of({"x-deadline-ms": value}, 60)
    assert refused.value.fault is Fault.invalid


MANY = 600_000


@pytest.mark.promise("docs/security.md", "values, depth, documents, tokens, connections")
@pytest.mark.parametrize(
    "raw",
    [
        b'{"x":[' + b"[]," * MANY + b"[]]}",
        b"{" + b",".join(b'"%d":1' % i for i in range(MANY)) + b"}",
        b'["' + b'","' * MANY + b'"]',
    ],
    ids=["lists", "keys", "strings"],
)
def test_millions_of_values_are_refused_before_they_are_made(raw: bytes) -> None:
    with pytest.raises(Refusal, match="more than 200000 values") as refused:
        parse_json(raw, max_depth=32)
    assert refused.value.fault is Fault.too_large


def test_marks_inside_of_texts_are_no_values() -> None:
    code = 'a["b"] = {1, 2}; c = "\\\\";\n' * 20_000
    assert parse_json(json.dumps({"documents": [code]}).encode(), max_depth=32) == {"documents": [code]}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, st.sampled_from(["", "é", "重排", "🙂", '"\\', "\ud800"]))
@settings(max_examples=15, deadline=None)
def test_a_large_body_is_read_and_an_answer_is_written_as_a_small_one(value: Any, more: str) -> None:
    whole = {"a": value, "b": [more * 50_000, value], "c": ' \\" ' * 20_000}
    for raw in (encoded(whole), json.dumps(whole).encode()):
        assert len(raw) > LARGE
        assert parse_json(raw, max_depth=32) == whole
    assert encoded_in_steps(value) == encoded(value)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'["' + b"x" * LARGE + b"\xff]", "not UTF-8 at byte 65538"),
        (b'["' + b"x" * LARGE + b'"', "not JSON: .* at line 1, column 65540"),
        (b"[" * LARGE + b"]", "nested more than 32"),
        (b"[1." + b"1" * LARGE + b"]", "a number of more than 400 digits"),
        (b'{"' + b"x" * LARGE + b'\\x":1}', "Invalid .*escape at line 1, column 65539"),
    ],
)
def test_a_large_body_is_refused_as_a_small_one(raw: bytes, words: str) -> None:
    with pytest.raises(Refusal, match=words) as no:
        parse_json(raw, max_depth=32)
    assert no.value.fault is Fault.malformed


def read(decoder: type[json.JSONDecoder], text: str) -> Any:
    try:
        return decoder().decode(text)
    except json.JSONDecodeError as error:
        return error.msg, error.pos


@pytest.mark.slow
def test_strings_are_read_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "PIECE", (8, 16))
    generator, refused = random.Random(0), 0
    marks = [
        "a",
        "好",
        "🙂",
        *(r"\n \" \\ \u00e9 \ud83d \ude00 \ud83d\ude00".split()),
        '"',
        "\\",
        "\x01",
        r"\x",
        r"\u12",
    ]
    for turn in range(4000):
        body = "".join(generator.choices(marks[: -5 if turn % 2 else None], k=generator.randint(0, 30)))
        for form in ('["%s"]', '{"%s":1}', '"%s"', '["%s"'):
            found = read(json_body._InSteps, form % body)
            assert found == read(json.JSONDecoder, form % body)
            refused += isinstance(found, tuple)
    assert 5000 < refused < 11_000


@pytest.mark.promise("docs/security.md", "bodies (each, and all together)")
def test_bodies_are_bounded_together() -> None:
    bodies = Bodies(100)
    first = asyncio.run(read_body(Wire([b"x" * 60]).receive, {}, max_bytes=80, timeout_s=1, bodies=bodies))
    with pytest.raises(Refusal, match="90 bytes are being read; this server holds 100") as refused:
        asyncio.run(read_body(Wire([b"x" * 30, b"x" * 30]).receive, {}, max_bytes=80, timeout_s=1, bodies=bodies))
    assert (refused.value.fault, refused.value.retry_after, bodies.held) == (Fault.overloaded, 1.0, 60)
    bodies.give(len(first))
    with pytest.raises(Disconnected):
        asyncio.run(
            read_body(Wire([b"x"], ends=False, leaves=True).receive, {}, max_bytes=80, timeout_s=1, bodies=bodies)
        )
    assert bodies.held == 0
