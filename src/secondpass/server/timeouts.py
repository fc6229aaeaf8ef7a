"""HTTP connections with an end: uvicorn's protocol, and time-outs for heads that do not come and answers not read."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class TimedProtocol(HttpToolsProtocol):
    """Closes a connection whose request head is not there in time, or whose answer is not read.

    uvicorn itself waits for both without end. Between requests its own keep-alive time-out holds.
    """

    def __init__(self, *, header_timeout_s: float, send_timeout_s: float, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._header_timeout_s, self._send_timeout_s = header_timeout_s, send_timeout_s
        self._head: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._head is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
        super().on_headers_complete()

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

    def _await_head(self) -> None:
        self._head = self.loop.call_later(self._header_timeout_s, self.transport.abort)

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
