"""Limits of HTTP requests: how much body, how fast, and by when it must be answered."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import anyio

from secondpass.wire.calls import Effort, Fault, Refusal

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


class Bodies:
    """The bytes of all bodies that are in memory at a time, which are bounded together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.held = max_bytes, 0

    def take(self, size: int) -> None:
        """Raises Refusal where others hold what is left."""
        if self.held + size > self.max_bytes and self.held:
            message = f"bodies of {self.held} bytes are being read; this server holds {self.max_bytes} at a time"
            raise Refusal(Fault.overloaded, message, retry_after=1.0)
        self.held += size

    def give(self, size: int) -> None:
        self.held -= size


class Disconnected(Exception):
    """The client went away before its request was whole."""


async def read_body(
    receive: Receive, headers: Mapping[str, str], *, max_bytes: int, timeout_s: float, bodies: Bodies | None = None
) -> bytes:
    """The body as it arrives. Raises Refusal as soon as it is too large or too slow, and Disconnected.

    What is read is taken from `bodies`; the caller gives len(body) back when it is done with it.
    """
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(Fault.malformed, f"content-encoding {headers['content-encoding'][:40]!r}; send it plain")
    chunks: list[bytes] = []
    size = 0
    is_whole = False
    bodies = bodies or Bodies(max_bytes)
    try:
        with anyio.fail_after(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                chunk = message.get("body", b"")
                if size + len(chunk) > max_bytes:
                    raise _too_large(max_bytes)
                bodies.take(len(chunk))
                chunks.append(chunk)
                size += len(chunk)
                if not message.get("more_body", False):
                    is_whole = True
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise Refusal(Fault.malformed, f"the body was not complete after {timeout_s:g} s") from None
    finally:
        if not is_whole:
            bodies.give(size)


def deadline_of(headers: Mapping[str, str], timeout_s: float) -> float:
    """When to give up, in time.monotonic(): after timeout_s, or sooner where the caller says so.

    X-Deadline-Ms has milliseconds, X-Request-Timeout seconds. Raises Refusal for what is no time.
    """
    allowed = timeout_s
    for name, unit in (("x-deadline-ms", 1000.0), ("x-request-timeout", 1.0)):
        if name not in headers:
            continue
        try:
            seconds = float(headers[name]) / unit
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise Refusal(Fault.invalid, f"{name} is {headers[name][:40]!r}; give a number above 0", parameter=name)
        allowed = min(allowed, seconds)
    return time.monotonic() + allowed


EFFORT_HEADERS = {
    "x-budget-ms": ("budget_ms", float),
    "x-cutoff-layer": ("cutoff_layer", int),
    "x-early-exit": ("early_exit", float),
}


def effort_of(headers: Mapping[str, str], effort: Effort) -> Effort:
    """The effort of a body with what headers say of it, for dialects that have no field. Raises Refusal."""
    given: dict[str, Any] = {}
    for header, (name, kind) in EFFORT_HEADERS.items():
        if header not in headers:
            continue
        try:
            value = kind(headers[header])
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            message = f"{header} is {headers[header][:40]!r}; give a number above 0"
            raise Refusal(Fault.invalid, message, parameter=header)
        given[name] = value
    return replace(effort, **given) if given else effort


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(Fault.too_large, f"the body is larger than {max_bytes} bytes; send fewer or shorter documents")
