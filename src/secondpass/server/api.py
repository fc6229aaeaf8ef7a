"""Api: HTTP requests to calls and back, in whatever dialect they are written. An ASGI application."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from starlette import types

from secondpass.server import dialects, telemetry
from secondpass.server.body import Bodies, Disconnected, Receive, deadline_of, effort_of, read_body
from secondpass.server.dialects import Dialect, Reply, Route
from secondpass.server.json_body import LARGE, encoded, encoded_in_steps, parse_json
from secondpass.server.metrics import Metrics
from secondpass.server.service import Answering, CallContext
from secondpass.server.settings import Settings
from secondpass.wire.calls import Answer, Call, EmbedCall, Fault, Ranked, Refusal, Vectors

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ACTIVE = 2  # requests that may be in memory for one that may wait for the engine
WARNINGS = "x-warnings"  # a list in JSON
UNREAD = "unread"  # the route of a request that was refused before its body was read
CLOSED = 499  # the status of a request whose client went away
MANY_VECTORS = 16  # of an answer that is written beside the event loop


@dataclass(kw_only=True, slots=True)
class RequestLog:
    """What is known of one request so far; what is logged of it."""

    method: str
    path: str
    headers: Mapping[str, str]
    request_id: str
    started: float
    dialect: Dialect
    route: Route | None = None
    call: Call | None = None
    answer: Answer | None = None
    refusal: Refusal | None = None


class HttpApi:
    """Every address of every dialect."""

    def __init__(self, service: Answering, settings: Settings, metrics: Metrics) -> None:
        self.service, self.settings, self.metrics = service, settings, metrics
        self._active = 0  # requests whose body is being read, or which wait or are computed
        self._bodies = Bodies(settings.max_held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = begin(scope)
        self._active += 1
        try:
            with telemetry.span("secondpass.request", exchange.headers) as span:
                reply = await self._reply(exchange, receive)
                telemetry.describe(span, facts(exchange, reply))
        except Disconnected:
            self._record(exchange, Reply(body=None, status=CLOSED), *_place(exchange))
            return
        finally:
            self._active -= 1
        await self.finish(exchange, reply, send)

    def bounded(self, app: types.ASGIApp) -> types.ASGIApp:
        """An application that reads bodies without an end of time or a bound together: it gets what was read here.

        It is cancelled when its client goes away, since it does not look.
        """

        async def reading(scope: Scope, receive: types.Receive, send: Send) -> None:
            try:
                async with self.body(receive, scope["state"]["headers"]) as raw:
                    messages: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": raw}]

                    async def read() -> MutableMapping[str, Any]:
                        return messages.pop() if messages else await receive()

                    await connected(app(scope, read, send), receive)
            except Disconnected:
                return
            except Refusal as refusal:
                scope["state"]["refusal"] = refusal
                request_id = scope["state"]["request_id"]
                await send_reply(send, dialects.NATIVE.refuse(refusal, request_id), request_id, closes=True)

        return reading

    def watched(self, app: types.ASGIApp, address: str, kind: str) -> types.ASGIApp:
        """What answers at an address of no dialect; its requests are limited, counted and logged like the others."""

        async def watching(scope: Scope, receive: types.Receive, send: Send) -> None:
            exchange, status = replace(begin(scope), dialect=dialects.NATIVE), CLOSED

            async def sending(message: MutableMapping[str, Any]) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            self._active += 1
            try:
                await app(scope, receive, sending)
            finally:
                self._active -= 1
                exchange.refusal = scope["state"].get("refusal")
                self._record(exchange, Reply(body=None, status=status), address, kind)

        return watching

    async def finish(self, exchange: RequestLog, reply: Reply, send: Send) -> None:
        """Count, log and send."""
        self._record(exchange, reply, *_place(exchange))
        is_cut_off = exchange.refusal is not None and exchange.refusal.fault in (Fault.malformed, Fault.too_large)
        await send_reply(send, reply, exchange.request_id, closes=is_cut_off and exchange.call is None)

    async def _reply(self, exchange: RequestLog, receive: Receive) -> Reply:
        try:
            return await self._answered(exchange, receive)
        except Refusal as refusal:
            exchange.refusal = refusal
        except Disconnected:
            raise
        except Exception:  # a bug: the client gets a clean answer, the log the trace
            exchange.refusal = failed(exchange.request_id)
        return exchange.dialect.refuse(exchange.refusal, exchange.request_id)

    async def _answered(self, exchange: RequestLog, receive: Receive) -> Reply:
        settings = self.settings
        deadline = deadline_of(exchange.headers, settings.timeout_s)
        if exchange.method != "POST" or not dialects.find(exchange.path):
            exchange.dialect, exchange.route = dialects.choose(exchange.path, {}, exchange.headers, exchange.method)
            return exchange.route.write(self.service.card(), None, {})
        async with self.body(receive, exchange.headers) as raw:
            return await self._ranked(exchange, raw, receive, deadline)

    @asynccontextmanager
    async def body(self, receive: Receive, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """A request's body, for as long as it is held. Raises Refusal where it, or all of them, are too much."""
        self._check_room()
        raw = await read_body(
            receive,
            headers,
            max_bytes=self.settings.max_body_bytes,
            timeout_s=self.settings.body_timeout_s,
            bodies=self._bodies,
        )
        try:
            yield raw
        finally:
            self._bodies.give(len(raw))

    async def _ranked(self, exchange: RequestLog, raw: bytes, receive: Receive, deadline: float) -> Reply:
        """The reply to what was posted; what is large is read and written beside the event loop."""
        loop, is_large = asyncio.get_running_loop(), len(raw) > LARGE
        body = await loop.run_in_executor(None, self._read, exchange, raw) if is_large else self._read(exchange, raw)
        assert exchange.route is not None and exchange.call is not None
        context = CallContext(request_id=exchange.request_id, deadline=deadline, dialect=exchange.dialect.name)
        exchange.answer = await connected(self.service.answer(exchange.call, context), receive)
        self.metrics.call(exchange.answer.timing, exchange.answer.cost)
        if is_large or (isinstance(exchange.answer, Vectors) and len(exchange.answer.vectors) > MANY_VECTORS):
            return await loop.run_in_executor(None, _written, exchange, body)
        return _reply(exchange, body)

    def _read(self, exchange: RequestLog, raw: bytes) -> Any:
        """The body as JSON; the exchange gets its dialect, route and call."""
        body = parse_json(raw, max_depth=self.settings.max_depth)
        exchange.dialect, route = dialects.choose(exchange.path, body, exchange.headers)
        assert route.parse is not None
        exchange.route = route
        call = route.parse(body, exchange.headers)
        if not isinstance(call, EmbedCall):
            call = replace(call, effort=effort_of(exchange.headers, call.effort))
        exchange.call = call
        return body

    def _check_room(self) -> None:
        """Raises Refusal before a body is read where too many others are held already."""
        most = ACTIVE * self.settings.max_queue_requests
        if self._active > most:
            raise Refusal(
                Fault.overloaded, f"{self._active} requests at once; this server takes {most}", retry_after=1.0
            )

    def _record(self, exchange: RequestLog, reply: Reply, address: str, kind: str) -> None:
        """Count and log."""
        log.info("request", extra=facts(exchange, reply) | self._texts(exchange))
        dialect = exchange.dialect.name
        self.metrics.requests.labels(dialect, address, str(reply.status)).inc()
        self.metrics.seconds.labels(dialect, kind).observe(time.perf_counter() - exchange.started)
        if exchange.refusal is not None:
            self.metrics.errors.labels(dialect, exchange.refusal.fault.value).inc()

    def _texts(self, exchange: RequestLog) -> dict[str, Any]:
        """The call itself, where the log is to have it."""
        return {"call": asdict(exchange.call)} if self.settings.log_texts and exchange.call is not None else {}


def _place(exchange: RequestLog) -> tuple[str, str]:
    """The address, as it is documented, and the kind of a request."""
    route = exchange.route
    return (UNREAD, UNREAD) if route is None else (route.documented, route.kind)


def failed(request_id: str) -> Refusal:
    """What a client is told of an error that is not its own; the log has the trace."""
    log.exception("a request failed", extra={"request_id": request_id})
    return Refusal(Fault.internal, f"internal error; the log has it under {request_id}")


async def connected(work: Awaitable[Any], receive: Receive) -> Any:
    """The result of work, which is cancelled when the client goes away; raises Disconnected then."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Disconnected
    finally:
        watching.cancel()
        working.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def begin(scope: Scope) -> RequestLog:
    """What the head of a request says. The usual dialect of its path is that of refusals until the body is read."""
    state = scope["state"]
    return RequestLog(
        method=scope["method"],
        path=scope["path"],
        headers=state["headers"],
        request_id=state["request_id"],
        started=state["started"],
        dialect=dialects.usual(scope["path"], scope["method"]),
    )


def facts(exchange: RequestLog, reply: Reply) -> dict[str, str | int | float]:
    """What is said of a request in logs and spans: figures and names, no text."""
    found: dict[str, str | int | float] = {
        "request_id": exchange.request_id,
        "method": exchange.method,
        "path": exchange.path[:200],
        "dialect": exchange.dialect.name,
        "status": reply.status,
        "ms": round(1000 * (time.perf_counter() - exchange.started), 2),
    }
    if exchange.answer is not None:
        timing, cost = exchange.answer.timing, exchange.answer.cost
        found |= {"model": exchange.answer.model, "rows": cost.rows, "tokens": cost.tokens, "cut": cost.truncated}
        found |= {
            "tokenize_ms": round(1000 * timing.tokenize, 2),
            "queue_ms": round(1000 * timing.queue, 2),
            "compute_ms": round(1000 * timing.compute, 2),
        }
    if exchange.refusal is not None:
        found |= {"fault": exchange.refusal.fault.value}
    return found


def _reply(exchange: RequestLog, body: Any) -> Reply:
    """The answer in the dialect's form, with its warnings as a header, since most dialects have no field for them."""
    assert exchange.route is not None
    reply = exchange.route.write(exchange.answer, exchange.call, body)
    if not isinstance(exchange.answer, Ranked) or not exchange.answer.warnings:
        return reply
    return replace(reply, headers={**reply.headers, WARNINGS: json.dumps(exchange.answer.warnings)})


def _written(exchange: RequestLog, body: Any) -> Reply:
    """The reply with its body as bytes."""
    reply = _reply(exchange, body)
    return replace(reply, body=encoded_in_steps(reply.body))


async def send_reply(send: Send, reply: Reply, request_id: str, *, closes: bool = False) -> None:
    """Send a reply as JSON; None is an empty body, bytes are JSON already."""
    body = b"" if reply.body is None else reply.body if isinstance(reply.body, bytes) else encoded(reply.body)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-request-id": request_id,
        "x-content-type-options": "nosniff",
        **{name.lower(): value for name, value in reply.headers.items()},
    }
    if reply.status == 204:  # RFC 9110, 8.6
        del headers["content-length"]
    if closes:
        headers["connection"] = "close"  # what is left of the body is not read
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
