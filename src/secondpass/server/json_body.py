"""JSON of bodies: read with bounds, and read and written in steps that are short for the event loop.

Python's parser and writer are one call each, which no other thread can come in between: a body of 8 MB, an answer
with thousands of vectors, would stop all connections for 30 to 800 ms. Large ones are read and written value by
value, in another thread than the loop's.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import math
import re
from collections.abc import Callable, Iterator
from json.decoder import JSONArray, JSONObject, scanstring  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from types import FunctionType
from typing import Any, NoReturn

from secondpass.wire.calls import Fault, Refusal

LARGE = 64 << 10  # bytes of a body that is read beside the event loop
STEP = 256 << 10  # bytes that are looked at in one go
# Lists, objects, strings and commas of a body: a parser that makes millions of them takes seconds.
MAX_VALUES = 200_000
MAX_DIGITS = 400  # of a number: Python's conversion of a whole one takes quadratic time
_LONG = re.compile(rb"[^\s,:\[\]{}]{%d}" % (MAX_DIGITS + 1))
PIECE = 4 << 10, STEP // 4  # characters of a string that are read first, and at most, in one go


async def parsed(body: bytes, *, max_depth: int) -> Any:
    """As parse_json, without holding up the event loop."""
    if len(body) <= LARGE:
        return parse_json(body, max_depth=max_depth)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, lambda: parse_json(body, max_depth=max_depth))


def parse_json(body: bytes, *, max_depth: int) -> Any:
    """The JSON value. Raises Refusal for what is not JSON in UTF-8, numbers beyond doubles, and too much of it."""
    check_values(body)
    options = {"parse_constant": _refuse_constant, "parse_float": _finite, "parse_int": _short}
    decoder = json.JSONDecoder if len(body) <= LARGE else _InSteps
    try:
        value = decoder(**options).decode(_text(body))  # type: ignore[arg-type]
    except UnicodeDecodeError as error:
        raise Refusal(Fault.malformed, f"the body is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValueError as error:
        raise Refusal(Fault.malformed, f"the body is not JSON: {_where(error)}") from None
    check_depth(value, max_depth)
    return value


class _InSteps(json.JSONDecoder):
    """Reads value by value: pieces of its strings by the fast parser, what holds them by the one in Python."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.parse_object, self.parse_array, self.parse_string = _OBJECT, JSONArray, _string
        self.scan_once = py_make_scanner(self)


def _string(text: str, begin: int, strict: bool = True) -> tuple[str, int]:
    """As json's scanstring, in pieces: one string of millions of escapes takes it 40 ms."""
    pieces: list[str] = []
    end, (size, most) = begin, PIECE
    while True:
        is_last = len(text) - end <= size
        piece = text[end:] if is_last else _whole(text[end : end + size]) + '"'
        try:
            value, length = scanstring(piece, 0, strict)
        except json.JSONDecodeError as error:
            at = begin - 1 if error.pos < 0 else end + error.pos  # -1: it has no end
            raise json.JSONDecodeError(error.msg, text, at) from None
        if is_last or length < len(piece):  # its end lies in this piece
            return "".join([*pieces, value]), end + length
        end += len(piece) - 1
        if "\ud800" <= value[-1:] <= "\udbff":  # the other half of the character comes next
            value, end = value[:-1], end - len(r"\ud800")
        pieces.append(value)
        size = min(2 * size, most)


def _whole(piece: str) -> str:
    """Without an escape that its end may have cut."""
    last = piece.rfind("\\", len(piece) - len(r"\ud800"))
    run = last + 1 - len(piece[: last + 1].rstrip("\\"))
    return piece[:last] if run % 2 else piece


# json's own, but for how it reads keys
_OBJECT = FunctionType(
    JSONObject.__code__, {**vars(json.decoder), "scanstring": _string}, "", JSONObject.__defaults__
)


def _text(body: bytes) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    if len(body) <= STEP:
        return body.decode("utf-8")
    try:
        pieces = [decoder.decode(body[at : at + STEP]) for at in range(0, len(body), STEP)]
        return "".join([*pieces, decoder.decode(b"", final=True)])
    except UnicodeDecodeError:
        return body.decode("utf-8")  # which says where in the whole


def check_values(body: bytes) -> None:
    """Raises Refusal for more than MAX_VALUES values and for endless numbers, before anything is made of them."""
    if len(body) <= LARGE and body.count(b'"') + sum(body.count(mark) for mark in (b"[", b"{", b",")) <= MAX_VALUES:
        return
    quotes = marks = 0
    kept, is_inside = b"", False
    for at in range(0, len(body), STEP):
        piece = kept + body[at : at + STEP]
        kept = b"\\" if (len(piece) - len(piece.rstrip(b"\\"))) % 2 else b""  # it escapes what comes next
        piece = piece[: len(piece) - len(kept)].replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        outside = b"".join(parts[is_inside::2])
        quotes += len(parts) - 1
        is_inside ^= len(parts) % 2 == 0
        marks += sum(outside.count(mark) for mark in (b"[", b"{", b","))
        if quotes > 2 * MAX_VALUES or marks > MAX_VALUES:
            message = f"the body has more than {MAX_VALUES} values; send fewer documents, or fewer fields of them"
            raise Refusal(Fault.too_large, message)
        if _LONG.search(outside):
            raise Refusal(Fault.malformed, f"the body has a number of more than {MAX_DIGITS} digits")


def check_depth(value: Any, max_depth: int) -> None:
    """Raises Refusal for lists and objects that are nested more than max_depth deep."""
    level = [value]
    for _ in range(max_depth + 1):
        if not level:
            return
        inner: list[Any] = []
        for each in level:
            values = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
            inner += [item for item in values if isinstance(item, dict | list)]
        level = inner
    raise _too_deep(max_depth)


def encoded(value: Any) -> bytes:
    """JSON in UTF-8; lone surrogates, which UTF-8 has not, stay the escapes that they came as."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def encoded_in_steps(value: Any) -> bytes:
    """The same bytes, one item of its lists after the other."""
    return b"".join(_steps(value))


def _steps(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        yield from _between(b"{}", value.items(), lambda pair: (encoded(pair[0]), b":", *_steps(pair[1])))
    elif isinstance(value, list):
        yield from _between(b"[]", value, lambda item: (encoded(item),))
    else:
        yield encoded(value)


def _between(ends: bytes, items: Any, write: Callable[[Any], tuple[bytes, ...]]) -> Iterator[bytes]:
    yield ends[:1]
    for index, item in enumerate(items):
        if index:
            yield b","
        yield from write(item)
    yield ends[1:]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is beyond what a double holds")
    return value


def _short(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits; at most {MAX_DIGITS} are read")
    return int(text)


def _where(error: ValueError) -> str:
    """Of the parser's own words those that hold nothing of the body."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return str(error)[:100]


def _too_deep(max_depth: int) -> Refusal:
    return Refusal(Fault.malformed, f"the body is nested more than {max_depth} deep")
