"""No way past the key: every address, written in every odd way, and heads that two readers would read differently."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import uvicorn

from secondpass.server.api import send_reply
from secondpass.server.app import create_app
from secondpass.server.dialects import DIALECTS, Reply
from secondpass.server.security import PAGE, READINESS
from secondpass.server.service import Service
from secondpass.server.settings import ModelSource, Settings
from secondpass.server.timeouts import MAX_HEAD, TimedProtocol
from secondpass.server.workers import _config as workers_config
from tests.checkpoints import tiny_bert
from tests.server.live import running

KEY = "secret-key-of-the-test"
ROUTES = sorted(
    {route.documented.replace("{model}", "default") for dialect in DIALECTS for route in dialect.routes}
    | {"/metrics", "/admin/models", "/admin/models/default", "/health", "/ready", "/", "/docs", "/openapi.json"}
    | {"/page/page.css"}
)
PREFIXES = (
    "",
    "/page",
    "/page/x",
    "/page/..",
    "/page/page.css",
    "/health",
    "/ready/..",
    "/docs",
    "/.",
    "//page",
    "/x",
)
SPELLINGS = (
    lambda path: path,
    lambda path: path + "/",
    lambda path: path + "//",
    lambda path: path.replace("/", "//"),
    lambda path: path.replace("/v1", "/%76%31"),
    lambda path: path.replace("/", "/%2e/"),
    lambda path: path.replace("/", "%2f")[3:].join(("/", "")),
    lambda path: path + "?x=/health",
    lambda path: path + "%00",
    lambda path: path + "%0a",
    lambda path: path.upper(),
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


timed: Any = partial(TimedProtocol, header_timeout_s=10, send_timeout_s=10, max_connections=500)


@pytest.fixture(scope="module", params=[True, False], ids=["with the page", "without"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tiny_bert(tmp_path_factory.mktemp("models") / "bert")
    models = (ModelSource(name="default", path=str(path)),)
    settings = Settings(models=models, page=request.param, allow_model_changes=True)
    service = Service(settings)
    config = uvicorn.Config(
        create_app(service, keys=(KEY,)),
        http=timed,
        host="127.0.0.1",
        port=0,
        log_level="critical",
        access_log=False,
        ws="none",
    )
    with running(config) as found:
        yield found


def exchange(url: str, raw: bytes) -> bytes:
    """What comes back for these bytes, until the server closes."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        try:
            connection.sendall(raw)
        except OSError:
            pass  # it was closed while much was sent: what it said is read all the same
        answer = b""
        while True:
            try:
                piece = connection.recv(1 << 16)
            except ConnectionResetError:
                return answer
            if not piece:
                return answer
            answer += piece


def head(method: str, path: str, *fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def is_closed(url: str, method: str, path: str) -> bool:
    """Whether an address asks for the key, or is public by its whole name."""
    answer = exchange(url, head(method, path, "Content-Length: 0"))
    plain = unquote(path.partition("?")[0]).rstrip("/") or "/"
    is_public = method in ("GET", "HEAD") and plain in {*READINESS, *PAGE, "/page/page.css"}
    return is_public or status(answer) in (400, 401)


EVERY = list(itertools.product(ROUTES, PREFIXES, SPELLINGS, METHODS))


@pytest.mark.slow
@pytest.mark.promise("docs/security.md", "every address but those below asks for it")
@pytest.mark.promise("docs/serving.md", "where the proxy leaves a prefix in the path")
@pytest.mark.parametrize("some", [random.Random(7).sample(EVERY, 800), pytest.param(EVERY, marks=pytest.mark.slow)])
def test_nothing_but_the_page_and_readiness_answers_without_a_key(url: str, some: list[Any]) -> None:
    asked = [(method, spelled(prefix + route)) for route, prefix, spelled, method in some]
    open_ = [each for each in asked if each[1].startswith("/") and not is_closed(url, *each)]
    assert not open_


@pytest.mark.promise("docs/security.md", "What `/health` knows of models needs the key")
def test_health_says_more_to_those_with_a_key(url: str) -> None:
    assert b'"models"' not in exchange(url, head("GET", "/health"))
    assert b'"default"' in exchange(url, head("GET", "/health", f"X-API-Key: {KEY}"))
    assert status(exchange(url, head("GET", "/health"))) == 200


@pytest.mark.promise("docs/security.md", "headers are 400")
@pytest.mark.parametrize(
    "fields",
    [
        ("Authorization: Bearer x", f"Authorization: Bearer {KEY}"),
        (f"X-API-Key: {KEY}", "X-API-Key: x"),
        (f"Authorization: Bearer {KEY}", "Host: evil.example"),
        (f"Authorization: Bearer {KEY}", "Origin: http://localhost", "Origin: http://evil.example"),
        (f"Authorization: Bearer {KEY}", "Transfer-Encoding: gzip, chunked"),
    ],
)
def test_heads_that_can_be_read_in_two_ways_are_refused(url: str, fields: tuple[str, ...]) -> None:
    assert status(exchange(url, head("GET", "/v1/models", *fields))) == 400


def chunked(*trailers: str) -> bytes:
    body = b'{"query": "q", "documents": ["a"]}'
    return b"%x\r\n%s\r\n0\r\n" % (len(body), body) + "".join(f"{line}\r\n" for line in trailers).encode() + b"\r\n"


@pytest.mark.promise("docs/security.md", "trailers are dropped")
def test_a_trailer_says_nothing(url: str) -> None:
    post = head("POST", "/v1/rerank", "Transfer-Encoding: chunked")
    assert status(exchange(url, post + chunked(f"Authorization: Bearer {KEY}"))) == 401
    evil = post.replace(b"localhost", b"evil.example")
    assert status(exchange(url, evil + chunked("Host: localhost", f"Authorization: Bearer {KEY}"))) == 403
    right = head("POST", "/v1/rerank", "Transfer-Encoding: chunked", f"Authorization: Bearer {KEY}")
    assert status(exchange(url, right + chunked("Authorization: x"))) == 200


@pytest.mark.promise("docs/security.md", "limits of heads (64 KiB)")
@pytest.mark.parametrize(
    "fields",
    [
        ("X-Long: " + "x" * (MAX_HEAD + 1),),
        tuple(f"X-{i}: {'y' * 100}" for i in range(1000)),
        ("X: " + "z" * 4_000_000,),
    ],
    ids=["one", "many", "endless"],
)
def test_a_head_has_a_limit(url: str, fields: tuple[str, ...]) -> None:
    answer = exchange(url, head("GET", "/health", *fields))
    assert status(answer) == 431
    assert b"larger than 65536 bytes" in answer


@pytest.mark.promise("docs/security.md", "limits of heads (64 KiB)")
def test_a_head_behind_a_request_that_is_not_answered_has_a_limit() -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    config = uvicorn.Config(never, http=timed, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    with running(config) as url:
        first = head("GET", "/").replace(b"Connection: close\r\n", b"")
        answer = exchange(url, first + head("GET", "/", *(f"X-{i}: {'y' * 1000}" for i in range(4_000)))[:-2])
    assert answer == b"" or status(answer) == 431


@pytest.mark.promise("docs/security.md", "limits of heads (64 KiB)")
def test_trailers_have_a_limit(url: str) -> None:
    post = head("POST", "/v1/rerank", "Transfer-Encoding: chunked", f"Authorization: Bearer {KEY}")
    answer = exchange(url, post + chunked(*(f"X-{i}: {'y' * 1000}" for i in range(20_000))))
    assert answer == b"" or status(answer) == 200  # cut off, or answered before: never held


def test_pipelined_requests_keep_their_own_heads(url: str) -> None:
    first = head("GET", "/v1/models", f"Authorization: Bearer {KEY}").replace(b"Connection: close\r\n", b"")
    answer = exchange(url, first + head("GET", "/v1/models"))
    assert answer.count(b"HTTP/1.1") == 2
    assert b"200 OK" in answer.split(b"HTTP/1.1")[1]
    assert b"401 Unauthorized" in answer.split(b"HTTP/1.1")[2]


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_no_request_gets_nobody_elses_answer(url: str, number: int) -> None:
    """The request before it was answered with its 400, and computed for nobody."""
    body = json.dumps({"query": "q", "documents": ["a", "b"]}).encode()
    good = head("POST", "/v1/rerank", f"Content-Length: {len(body)}", f"X-API-Key: {KEY}") + body
    good = good.replace(b"Connection: close\r\n", b"")
    answer = exchange(url, good * number + b"GARBAGE\r\n\r\n")
    assert [part.split(b"\r\n")[0] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200 OK"] * number


def test_keep_alive_lasts_less_than_a_second_where_it_says_so(tmp_path: Path) -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send_reply(send, Reply(body={}), "1")

    config = workers_config(Settings(keep_alive_s=0.9), answer)  # type: ignore[arg-type]
    config.lifespan, config.host, config.port = "off", "127.0.0.1", 0
    with running(config) as url:
        parts = urlsplit(url)
        with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)) as connection:
            connection.auto_open = 0
            connection.connect()
            for _ in range(2):
                connection.request("GET", "/")
                assert connection.getresponse().read() == b"{}"
                time.sleep(0.05)


def test_a_body_as_large_as_it_may_be_is_no_head(url: str) -> None:
    text = "word " * 100_000
    body = json.dumps({"query": "q", "documents": [text]}).encode()
    answer = exchange(url, head("POST", "/v1/rerank", f"Content-Length: {len(body)}", f"X-API-Key: {KEY}") + body)
    assert status(answer) == 200


def test_an_answer_that_comes_before_the_body_is_whole_leaves_the_connection_alone(url: str) -> None:
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)) as connection:
        for _ in range(2):  # its head and its body go apart, and it reads no answer before both are sent
            connection.request("POST", "/v1/rerank", b"x" * 6_000_000)
            answer = connection.getresponse()
            assert (answer.status, answer.read()[:6]) == (401, b'{"id":')


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_client_that_reads_once_it_has_sent_all_is_told_why_it_was_refused(url: str, is_chunked: bool) -> None:
    parts = urlsplit(url)
    for _ in range(5):
        with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)) as connection:
            body = (b"x" * 65_536 for _ in range(200)) if is_chunked else b"x" * 13_000_000
            connection.request("POST", "/v1/rerank", body, {"X-API-Key": KEY}, encode_chunked=is_chunked)
            answer = connection.getresponse()
            assert answer.status == 413
            assert b"larger than 8388608 bytes" in answer.read()


OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")


@pytest.mark.parametrize("size", [1, 60, 10_000])
def test_an_offer_of_another_protocol_loses_no_body(url: str, size: int) -> None:
    """Java's client offers HTTP/2 with each request."""
    body = b'{"query": "q", "documents": ["a"]}'
    one = head("POST", "/v1/rerank", f"Content-Length: {len(body)}", f"X-API-Key: {KEY}", *OFFER)
    one = one.replace(b"Connection: close\r\n", b"") + body
    sent = one * 3 + head("GET", "/health", *OFFER[1:])
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        for begin in range(0, len(sent), size):
            connection.sendall(sent[begin : begin + size])
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.count(b'"relevance_score"') == 3


@pytest.mark.promise("docs/security.md", "is taken in UTF-8 and in Latin-1")
def test_keys_beyond_ascii_are_taken_as_clients_write_them(tmp_path: Path) -> None:
    from secondpass.server.security import Keys
    from secondpass.wire.calls import Refusal

    keys = Keys(["schlüssel"])
    for written in ("schlüssel".encode(), "schlüssel".encode("latin-1")):
        keys.check({"authorization": "Bearer " + written.decode("latin-1")})
    with pytest.raises(Refusal):
        keys.check({"authorization": "Bearer schlussel"})
