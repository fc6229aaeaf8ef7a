"""An application that passes requests on to a server elsewhere, and refuses first what it is told to."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import MutableMapping
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from secondpass.server.api import send_reply
from secondpass.server.dialects import choose
from secondpass.wire.calls import Refusal

HOP = (b"connection", b"keep-alive", b"transfer-encoding", b"content-length")


class Passing:
    """The next rankings are refused, one by each of the refusals; everything else is the server's at `url`."""

    def __init__(self, url: str, refusals: deque[Refusal]) -> None:
        self.host, self.refusals = urlsplit(url).netloc, refusals

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if self.refusals and scope["method"] == "POST":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            dialect, _ = choose(scope["path"], json.loads(body), headers)
            await send_reply(send, dialect.refuse(self.refusals.popleft(), "passing"), "passing")
            return
        status, fields, answer = await asyncio.to_thread(self._ask, scope, body)
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": answer})

    def _ask(self, scope: MutableMapping[str, Any], body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        path = scope["raw_path"].decode() + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
        connection = HTTPConnection(self.host, timeout=60)
        connection.putrequest(scope["method"], path, skip_host=True, skip_accept_encoding=True)
        for name, value in scope["headers"]:
            if name not in HOP:
                connection.putheader(name.decode(), value.decode())
        connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        with connection.getresponse() as response:
            answer = response.read()
        fields = [(name.lower().encode(), value.encode()) for name, value in response.getheaders()]
        return (
            response.status,
            [*((n, v) for n, v in fields if n not in HOP), (b"content-length", b"%d" % len(answer))],
            answer,
        )
