"""HTTP connections with an end: uvicorn's protocol, with limits of time, of heads, and of their number.

uvicorn waits for heads and for readers without end, takes heads of any size, merges fields that come after a body
into the headers, loses the body of a request that offers another protocol, and closes connections while their
clients send, who then never see what they were answered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 << 10  # bytes of a request line with all its fields


class _Transport:
    """A connection that is closed, while its client sends, by its own half first (RFC 9112, 9.6).

    With what was sent unread the system resets a connection, and a client that reads after it has sent all gets that
    in place of the answer.
    """

    def __init__(self, transport: asyncio.Transport, finish: Callable[[], bool]) -> None:
        self._transport, self._finish = transport, finish
        self._is_ending = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if self._is_ending or not self._finish():
            self._transport.close()
        self._is_ending = True

    def is_closing(self) -> bool:
        return self._is_ending or self._transport.is_closing()


class TimedProtocol(HttpToolsProtocol):
    """Closes a connection whose request head is not there in time or too large, or whose answer is not read.

    Between requests uvicorn's own keep-alive time-out holds. Connections over max_connections are closed at once, so
    that there are always descriptors for the others.
    """

    def __init__(
        self, *, header_timeout_s: float, send_timeout_s: float, max_connections: int, **of_uvicorn: Any
    ) -> None:
        super().__init__(**of_uvicorn)
        self._header_timeout_s, self._send_timeout_s = header_timeout_s, send_timeout_s
        self._max_connections = max_connections
        self._head: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None
        self._received = self._size = 0  # bytes since the head began, and of its fields
        self._is_in_head = self._is_in_body = self._is_refused = False
        self._is_offer = False  # the request that is read would go on in another protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport, self._finish))  # type: ignore[arg-type]
        if len(self.connections) > self._max_connections:
            self._refuse(503, "Service Unavailable", "too many connections")
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._head is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()
        self._received += len(data)
        self._unset_keepalive_if_required()
        try:
            self._feed(memoryview(data))
        except httptools.HttpParserError:
            words = "Invalid HTTP request received."
            self.logger.warning(words)
            if self._is_behind_another():  # which would get the refusal as its answer; after its own comes the end
                self._is_refused, self.cycle.keep_alive = True, False
            else:
                self.send_400_response(words)
            return
        # What is left of a body that was answered before it was whole is no head; it has the time of one. A head that
        # comes while an earlier request is not answered yet has no time of its own, but this limit.
        if self._received > MAX_HEAD and not self._is_in_body:
            self._refuse_head()

    def _is_behind_another(self) -> bool:
        """Whether a request before the one that is being read is not answered yet."""
        if self._is_in_body:
            return len(self.pipeline) > 0
        return self.cycle is not None and not self.cycle.response_complete

    def _feed(self, data: memoryview) -> None:
        """Parse. An offer to go on in another protocol is not taken up: the request is read as if it were not there.

        Java's client makes it (h2c) with each request, and the parser takes the body for that protocol.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as end:
                if not self._is_offer:
                    return
                self._is_offer = False
                head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode()]
                fields = (name + b": " + value for name, value in self.headers if name != b"upgrade")
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
                self.parser.feed_data(b"\r\n".join((b"".join(head), *fields, b"\r\n")))
                data = data[end.args[0] :]

    def on_message_begin(self) -> None:
        self._size, self._is_in_head = 0, True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._size += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value)
        if not self._is_in_head:  # a trailer: it could say another Host, Origin or key than the head did
            if self._size > MAX_HEAD:
                self.transport.abort()
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head, self._is_in_body = False, True
        if self._head is not None:
            self._head.cancel()
            self._head = None
        if self._size > MAX_HEAD:
            self._refuse_head()
        elif self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers):
            self._is_offer = True
        elif not self._is_refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._received, self._is_in_body = 0, False
        if not self._is_refused and not self._is_offer:
            super().on_message_complete()
        if self.transport.is_closing():
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size() > 0:  # all is written, but not all is read
            self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._reader):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _finish(self) -> bool:
        """Say that nothing more is sent, and take what still comes, as long as a head may; False where none does."""
        if not self._is_in_body or self.transport.is_closing():
            return False
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        if self._head is None:
            self._await_head()
        return True

    def _await_head(self) -> None:
        self._received = 0
        self._head = self.loop.call_later(self._header_timeout_s, self.transport.abort)

    def _refuse_head(self) -> None:
        self._refuse(431, "Request Header Fields Too Large", f"the head is larger than {MAX_HEAD} bytes")

    def _refuse(self, status: int, reason: str, words: str) -> None:
        if self._is_refused:
            return
        self._is_refused = True
        body = json.dumps({"message": words}).encode()
        head = (
            f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "retry-after: 1\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _await_reader(self) -> None:
        """Look again after the time-out: a buffer that is as full as before has no reader."""
        if self._reader is None:
            size = self.transport.get_write_buffer_size()
            self._reader = self.loop.call_later(self._send_timeout_s, self._check_reader, size)

    def _check_reader(self, size: int) -> None:
        self._reader = None
        left = self.transport.get_write_buffer_size()
        if left >= size > 0:
            self.transport.abort()
        elif left:
            self._await_reader()
