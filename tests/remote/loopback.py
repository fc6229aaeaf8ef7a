"""A scripted HTTP server on loopback: every way in which a rerank server can answer, or not."""

from __future__ import annotations

import json
import math
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from secondpass import RemoteReranker


@dataclass
class Reply:
    """One answer: the status, the body as JSON or as raw bytes, more headers, and what goes wrong on the way."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    sent_bytes: int | None = None  # the connection breaks after so many bytes of the body
    is_silent: bool = False  # nothing is sent until the test is over
    is_slow: bool = False  # the body is sent one byte at a time until the test is over


@dataclass
class Seen:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Script = Callable[[Seen], Reply]


class Loopback:
    """Answers with the script's replies; `seen` lists the requests."""

    def __init__(self, script: Script) -> None:
        self.script, self.seen, self.url = script, list[Seen](), ""
        self.lock, self.closing = threading.Lock(), threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: Loopback

    def log_message(self, format: str, *args: object) -> None:
        """Nothing; a test's output is its own."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seen = Seen(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        with self.server_.lock:
            self.server_.seen.append(seen)
        reply = self.server_.script(seen)
        if reply.is_silent:
            self.server_.closing.wait(timeout=30)
            self.close_connection = True
            return
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if reply.is_slow:
            for byte in content:
                if self.server_.closing.wait(timeout=0.02):
                    break
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
        self.wfile.write(content[: reply.sent_bytes])
        self.close_connection = reply.sent_bytes is not None


@contextmanager
def loopback(script: Script, certificate: Path | None = None) -> Iterator[Loopback]:
    """A server on a free port that answers by `script`; over TLS when there is a certificate (with its key)."""
    server = Loopback(script)
    handler = type("Handler", (_Handler,), {"server_": server})

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hung up is what some tests are about."""

    with Quiet(("127.0.0.1", 0), handler) as listener:
        server.url = f"http://127.0.0.1:{listener.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            listener.socket = context.wrap_socket(listener.socket, server_side=True)
            server.url = server.url.replace("http:", "https:")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            listener.shutdown()
            thread.join()


def in_turn(*replies: Reply) -> Script:
    """The replies one after the other, the last of them for ever."""
    left = list(replies)

    def script(seen: Seen) -> Reply:
        return left.pop(0) if len(left) > 1 else left[0]

    return script


def cohere(scores: Sequence[float]) -> dict[str, Any]:
    """Cohere's body, best first."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return {"id": "x", "results": [{"index": i, "relevance_score": scores[i]} for i in order]}


TEXTS = ["a", "bb", "ccc"]
GOOD = Reply(cohere([0.2, 0.9, 0.5]))


def client(server: Loopback, **options: Any) -> RemoteReranker:
    settings = {"dialect": "cohere", "backoff_s": 0.01, "deadline_s": 20.0} | options
    return RemoteReranker(server.url, **settings)


def by_length(seen: Seen) -> Reply:
    """Longer texts score higher: half a logit for every letter."""
    texts = seen.body.get("documents") or seen.body["texts"]
    if "texts" in seen.body:
        return Reply([{"index": i, "score": len(text) / 2} for i, text in enumerate(texts)])
    return Reply(cohere([1 / (1 + math.exp(-len(text) / 2)) for text in texts]))
