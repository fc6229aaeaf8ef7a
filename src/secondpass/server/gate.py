"""Gate: the outermost layer. Names each request, checks who sends it, and answers in the right form who may not."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from secondpass.server import dialects
from secondpass.server.api import Api, Scope, Send, begin, send_reply
from secondpass.server.dialects import Reply
from secondpass.server.exchange import Refusal
from secondpass.server.guard import Guard
from secondpass.server.limits import Receive
from secondpass.server.settings import Settings

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
PUBLIC = ("/", "/health", "/ready", "/docs", "/openapi.json", "/favicon.ico")


class Gate:
    """Wraps the whole application. scope["state"] gets request_id, headers (lower case) and started."""

    def __init__(self, app: Asgi, *, api: Api, guard: Guard, settings: Settings) -> None:
        self.app, self.api, self.guard, self.settings = app, api, guard, settings
        self._public = {*PUBLIC, "/metrics"} if settings.public_metrics else set(PUBLIC)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = _request_id(headers)
        scope["state"] = {
            **scope.get("state", {}), "headers": headers, "request_id": request_id, "started": time.perf_counter()
        }  # fmt: skip
        scope["path"] = self._inner(scope["path"])
        scope["root_path"] = ""
        send = _with_headers(send, {"x-request-id": request_id, **self.guard.cors_headers(headers)})
        try:
            peer, _ = scope.get("client") or ("", 0)
            self.guard.check_place(headers, scope["scheme"], peer)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await send_reply(send, Reply(body=None, status=204), request_id)
                return
            if not self._is_public(scope["method"], scope["path"]):
                self.guard.check_key(headers)
        except Refusal as refusal:
            exchange = begin(scope)
            exchange.refusal = refusal
            await self.api.finish(exchange, exchange.dialect.refuse(refusal, request_id), send)
            return
        await self.app(scope, receive, send)

    def _inner(self, path: str) -> str:
        """The path without the prefix that a proxy leaves in it, and without a slash at its end."""
        prefix = self.settings.root_path.rstrip("/")
        if prefix and (path + "/").startswith(prefix + "/"):
            path = path[len(prefix) :]
        return path.rstrip("/") or "/"

    def _is_public(self, method: str, path: str) -> bool:
        if method not in ("GET", "HEAD"):
            return False
        if path in self._public or path.startswith("/page/"):
            return True
        found = dialects.find(path, "GET")
        return bool(found) and found[-1].route.kind == "health"


def _request_id(headers: Mapping[str, str]) -> str:
    """The caller's, where it is harmless, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in raw if pair[0] not in there)]
        await send(message)

    return sending
