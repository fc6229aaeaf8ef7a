"""A served index: it answers from what was added, and reads nothing that a request names."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from secondpass.checkpoint.checkpoint import has_multilingual
from secondpass.search.index import Index
from secondpass.server.index import ServedIndex
from secondpass.server.settings import Settings
from secondpass.wire.calls import MAX_WORDS
from tests.server.live import serving, until


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("served")
    (place / "notes").mkdir()
    (place / "notes" / "beans.md").write_text("# Beans\n\nDry beans cook for ninety minutes.\n\n## Salt\n\nLate.\n")
    (place / "outside.txt").write_text("a secret outside of the notes\n")
    index = Index("notes", folder=place / "data", embedder="none", create=True)
    index.add(place / "notes")
    index.close()
    settings = {"index": "notes", "index_folder": str(place / "data"), "mcp": True, "body_timeout_s": 0.8}
    with serving(keys=("key",), **settings) as found:
        yield found


def post(url: str, name: str, body: Any, key: str = "key") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/v1/index/{name}", json=body, headers=headers, timeout=60)


def test_it_is_searched_read_and_judged(url: str) -> None:
    answer = post(url, "search", {"query": "how long do beans cook", "top_n": 1, "explain": True, "cognitive": True})
    (hit,) = answer.json()["results"]
    assert "sentence" not in hit
    asked = post(url, "search", {"query": "how long do beans cook", "top_n": 1, "sentences": True}).json()
    assert hit["text"][slice(*asked["results"][0]["sentence"])] == "Dry beans cook for ninety minutes."
    assert hit["text"].startswith("# Beans")
    assert hit["parts"]["bm25_rank"] == 1
    assert hit["parts"]["final"] == pytest.approx(hit["parts"]["relevance"])
    assert post(url, "get", {"id": hit["id"]}).json()["text"] == hit["text"]
    body = {"query": "how long do beans cook", "id": hit["id"], "kind": "used"}
    assert post(url, "feedback", body).json() == {"recorded": "used"}


def test_a_judgement_is_of_what_its_search_found(url: str) -> None:
    asked = {"query": "how long do beans cook", "diversity": "file", "cognitive": True}
    (hit,) = post(url, "search", asked).json()["results"]
    (other,) = {each["id"] for each in post(url, "search", {"query": asked["query"]}).json()["results"]} - {hit["id"]}
    for id, status in ((hit["id"], 200), (other, 400)):
        assert post(url, "feedback", {**asked, "id": id, "kind": "used"}).status_code == status
    refused = post(url, "feedback", {**asked, "path": "elsewhere/*", "id": hit["id"], "kind": "used"})
    assert "with the fields of its search" in refused.text


def test_results_beyond_the_usual_candidates_are_found_and_judged(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "beans " + " ".join(f"{letter}{at}" for letter in "abcdefgh")}) for at in range(40)]
    (tmp_path / "beans.jsonl").write_text("\n".join(lines))
    with Index("notes", folder=tmp_path / "data", embedder="none", create=True) as index:
        index.add(tmp_path / "beans.jsonl")
    with serving(keys=("key",), index="notes", index_folder=str(tmp_path / "data")) as url:
        found = post(url, "search", {"query": "beans", "top_n": 40}).json()["results"]
        assert len(found) == 40
        usual = {hit["id"] for hit in post(url, "search", {"query": "beans", "top_n": 30}).json()["results"]}
        beyond = next(hit["id"] for hit in found if hit["id"] not in usual)
        assert post(url, "feedback", {"query": "beans", "id": beyond, "kind": "used"}).json() == {"recorded": "used"}


def test_update_reads_the_folders_of_the_index_alone(url: str) -> None:
    assert post(url, "update", {"path": "/etc"}).status_code == 400
    report = post(url, "update", {}).json()
    assert (report["added"], report["unchanged"]) == (0, 1)
    found = post(url, "search", {"query": "secret outside"}).json()["results"]
    assert all("secret" not in hit["text"] for hit in found)


def test_it_needs_the_key_of_the_server(url: str) -> None:
    assert post(url, "search", {"query": "beans"}, key="wrong").status_code == 401


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("search", {}, "query is missing"),
        ("search", {"query": None}, "query is null; it should be a valid string"),
        ("search", {"query": 7}, "query is a number; it should be a valid string"),
        ("search", {"query": " "}, "query is empty"),
        ("search", {"query": "q" * 1_000_001}, "query has 1000001 characters; this server takes 1000000"),
        ("search", {"query": "q", "top_n": True}, "top_n is a boolean; it should be a valid integer"),
        ("search", {"query": "q", "top_n": 1000}, "top_n is 1000; it should be less than or equal to 100"),
        ("search", {"query": "q", "budget_ms": -1}, "budget_ms is -1; it should be greater than 0"),
        ("search", {"query": "q", "depth": 9}, "there is no field 'depth'; there are query, path"),
        ("update", {"path": "/etc"}, "there is no field 'path'; there are none"),
        ("search", {"query": "q", "since": "soon"}, "since is 'soon'"),
        ("search", {"query": "q", "cognitive": {"recancy": 1}}, "cognitive has no 'recancy'"),
        ("search", {"query": "q", "fields": {"tags": ["a"]}}, "the field 'tags' cannot be ['a']"),
        ("search", {"query": "q", "fields": {"n": 2**70}}, "the field 'n' cannot be"),
        ("search", {"query": "q", "fields": {'"': 1}}, "no field is called"),
        ("search", [], "the body is a list; a JSON object is needed"),
        ("get", {"id": 999}, "there is no chunk 999"),
        ("feedback", {"query": "beans", "id": 999, "kind": "used"}, "999 is not among what is found"),
    ],
)
def test_bad_requests_are_refused_in_words(url: str, name: str, body: Any, said: str) -> None:
    answer = post(url, name, body)
    assert answer.status_code in (400, 413)
    assert said in answer.text


@pytest.mark.parametrize("top_n", [1, 1.0, "1", None])
def test_whole_numbers_are_read_as_by_the_rerank_routes_and_null_is_nothing(url: str, top_n: object) -> None:
    body = {"query": "beans", "top_n": top_n, "explain": None, "sentences": None, "fields": None}
    assert len(post(url, "search", body).json()["results"]) == (1 if top_n else 2)


def test_half_a_character_in_the_question_stops_nothing(url: str) -> None:
    headers = {"Authorization": "Bearer key"}
    answer = httpx.post(f"{url}/v1/index/search", content=b'{"query": "beans \\ud800"}', headers=headers, timeout=60)
    assert answer.json()["results"]


@pytest.mark.skipif(has_multilingual(), reason="the multilingual model reads it")
def test_what_the_model_cannot_read_is_said(url: str) -> None:
    (warning,) = post(url, "search", {"query": "beans 豆子要煮多久才能吃"}).json()["warnings"]
    assert "cannot read Chinese" in warning


def test_an_index_that_is_made_anew_is_opened_anew(tmp_path: Path) -> None:
    def made(text: str) -> None:
        (tmp_path / "notes" / "beans.md").write_text(text)
        with Index("notes", folder=tmp_path / "data", embedder="none", create=True) as index:
            index.add(tmp_path / "notes")

    def dropped() -> None:
        with Index("notes", folder=tmp_path / "data") as index:
            index.store.drop()

    (tmp_path / "notes").mkdir()
    made("Dry beans cook for ninety minutes.\n")
    with serving(index="notes", index_folder=str(tmp_path / "data")) as url:
        assert "ninety" in post(url, "search", {"query": "beans"}).text
        dropped()
        gone = post(url, "search", {"query": "beans"})
        assert "there is no index" in gone.json()["error"]
        assert (gone.status_code, gone.headers["retry-after"]) == (503, "5")  # 400 was for what the client did
        made("Dry beans cook for an hour.\n")
        answers = [post(url, "search", {"query": "beans"}).json()["results"] for _ in range(2)]
        assert [[hit["text"] for hit in results] for results in answers] == [["Dry beans cook for an hour."]] * 2


def requests(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == "request"]


def test_it_is_counted_and_logged_like_all_requests(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="secondpass"):
        post(url, "search", {"query": "beans"})
        post(url, "get", {"id": 999})
        # Written once the answer has gone out; so may be, only now, that of the test before.
        until(lambda: [record.path for record in requests(caplog)][-1:] == ["/v1/index/get"])
    logged = [vars(record) for record in requests(caplog)][-2:]
    assert [(each["path"], each["status"], each.get("fault")) for each in logged] == [
        ("/v1/index/search", 200, None),
        ("/v1/index/get", 400, "invalid"),
    ]
    counted = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer key"}).text
    assert 'route="/v1/index/search",status="200"' in counted
    assert 'secondpass_errors_total{dialect="secondpass",fault="invalid"}' in counted


@pytest.mark.slow
def test_searches_that_take_long_hold_up_nothing_else(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than asyncio has threads of its own, in which large bodies are read."""
    going, search = threading.Event(), Index.search

    def slow(self: Index, *arguments: Any, **options: Any) -> Any:
        assert going.wait(60)
        return search(self, *arguments, **options)

    monkeypatch.setattr(Index, "search", slow)
    headers = {"Authorization": "Bearer key", "X-Deadline-Ms": "300"}
    large = {"query": "beans", "documents": ["dry beans " * 10_000]}
    try:
        with ThreadPoolExecutor(40) as pool:
            waiting = [pool.submit(post, url, "search", {"query": "beans"}) for _ in range(39)]
            asked = {"json": {"query": "beans"}, "headers": headers, "timeout": 60}
            assert pool.submit(httpx.post, f"{url}/v1/index/search", **asked).result(30).status_code == 504
            answer = httpx.post(f"{url}/v1/rerank", json=large, headers={"X-API-Key": "key"}, timeout=30)
            assert answer.status_code == 200
            assert not any(call.done() for call in waiting)
            going.set()
            assert {call.result().status_code for call in waiting} == {200}
    finally:
        going.set()


def test_mcp_opens_no_stream_on_which_nothing_comes(url: str) -> None:
    headers = {"Authorization": "Bearer key", "Accept": "text/event-stream"}
    assert httpx.get(f"{url}/mcp", headers=headers, timeout=10).status_code == 405


def test_its_addresses_are_described(url: str) -> None:
    described = httpx.get(f"{url}/openapi.json").json()
    assert {"/v1/index/search", "/v1/index/get", "/v1/index/update", "/v1/index/feedback", "/mcp"} <= set(
        described["paths"]
    )
    assert described["components"]["schemas"]["SearchBody"]["required"] == ["query"]
    page = httpx.get(f"{url}/docs").text
    assert "<h2><code>POST /v1/index/search</code></h2>" in page and "<h2><code>POST /mcp</code></h2>" in page


@pytest.mark.parametrize("wrong", [{"diversity": "x" * 500_000}, {"path": "\ud800" * 9999}])
def test_a_refusal_is_short_whatever_it_quotes(url: str, wrong: dict[str, str]) -> None:
    content = json.dumps({"query": "q", **wrong}).encode()
    answer = httpx.post(f"{url}/v1/index/search", content=content, headers={"X-API-Key": "key"}, timeout=60)
    assert (answer.status_code, len(answer.json()["message"])) == (400, MAX_WORDS)


def test_an_error_of_the_server_is_json_and_counted_as_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(index: Index, id: int) -> None:
        raise OSError("No space left on device: a secret")

    monkeypatch.setattr(Index, "get", full)
    answer = post(url, "get", {"id": 1})
    assert (answer.status_code, answer.json()["error_type"]) == (500, "internal")
    assert "secret" not in answer.text
    counted = httpx.get(f"{url}/metrics", headers={"X-API-Key": "key"}).text
    assert 'route="/v1/index/get",status="500"} 1.0' in counted


@pytest.mark.promise("docs/security.md", "time for heads, bodies, readers, TLS handshakes and calls")
@pytest.mark.promise("docs/security.md", "bodies (each, and all together)")
def test_a_body_to_mcp_has_the_limits_of_every_other(url: str) -> None:
    parts = urlsplit(url)
    for size, said in ((100, b"not complete after 0.8 s"), (100_000_000, b"larger than")):
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
            head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nX-API-Key: key\r\nContent-Length: {size}\r\n\r\n"
            connection.sendall(head.encode() + b"{")
            assert said in b"".join(iter(lambda here=connection: here.recv(1 << 16), b""))


def test_a_call_of_an_agent_that_left_is_not_computed_and_holds_up_no_other(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of tools come one after the other; each that was given up kept the next ones waiting for its end."""
    from anyio import from_thread

    begun, is_over = threading.Event(), threading.Event()

    def rank(self: object, query: str, documents: object, **options: object) -> None:
        begun.set()
        while not is_over.wait(0.01):
            from_thread.check_cancelled()

    monkeypatch.setattr("secondpass.mcp.StoppableReranker.rank", rank)
    headers = {"X-API-Key": "key", "Accept": "application/json, text/event-stream"}

    def called(tool: str, **arguments: object) -> dict[str, object]:
        return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}

    body, where = json.dumps(called("rerank", query="q", documents=["a"])), urlsplit(url)
    more = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": len(body)}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**headers, **more}.items())
    try:
        with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
            connection.sendall(f"POST /mcp HTTP/1.1\r\n{head}\r\n{body}".encode())
            assert begun.wait(60)
        answer = httpx.post(f"{url}/mcp", json=called("status"), headers=headers, timeout=60)
        assert '\\"facts\\": 0' in answer.text
    finally:
        is_over.set()


@pytest.mark.slow
def test_agents_find_it_at_mcp_with_the_key_alone(url: str) -> None:
    anyio = pytest.importorskip("anyio")
    mcp = pytest.importorskip("mcp")
    http = pytest.importorskip("mcp.client.streamable_http")
    httpx2 = pytest.importorskip("httpx2")

    async def talk() -> None:
        async with httpx2.AsyncClient(headers={"Authorization": "Bearer key"}, timeout=60) as client:
            async with mcp.Client(http.streamable_http_client(f"{url}/mcp", http_client=client)) as agent:
                found = await agent.call_tool("search", {"query": "how long do beans cook"})
                assert found.structured_content["passages"][0]["line"] == 1

    anyio.run(talk)
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert httpx.post(f"{url}/mcp", json=body).status_code == 401


@pytest.mark.parametrize("embedder", ["none", "./nowhere"])
def test_its_models_are_open_before_the_first_question(
    tmp_path: Path, embedder: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where they cannot be opened the server starts, and says it."""
    (tmp_path / "beans.md").write_text("Dry beans cook for ninety minutes.\n")
    with closing(Index("notes", folder=tmp_path / "data", embedder="none", create=True)) as index:
        index.add(tmp_path / "beans.md")
        index.store.set_meta({"embedder": embedder})
    served = ServedIndex("notes", Settings(index="notes", index_folder=str(tmp_path / "data")))
    with closing(served), closing(served.index):
        served.start()
        until(lambda: served.is_idle)
        assert "_named_reranker" in vars(served.index)
    said = [record.getMessage() for record in caplog.records if "cannot be searched yet" in record.getMessage()]
    assert len(said) == (embedder != "none")
