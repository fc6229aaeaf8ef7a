"""One live server of the embedded model: what travels over HTTP beside the dialects themselves."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from secondpass import Reranker
from secondpass.server import telemetry
from secondpass.server.logs import JsonLines, PlainLines
from tests.checkpoints import tiny_bert
from tests.server.live import serving, until

BODY = {"query": "who wrote Faust?", "documents": ["Goethe wrote Faust.", "Bread is baked.", "Rivers are long."]}
KEYS = ("key-one", "key-two")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(max_body_bytes=1 << 20, body_timeout_s=0.3) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A small model behind keys, below a prefix, with an allowed origin and models that come and go."""
    folder = tiny_bert(tmp_path_factory.mktemp("models") / "bert")
    settings: dict[str, Any] = {"root_path": "/ai", "cors_origins": ("https://app.example",)}
    with serving(folder, keys=KEYS, allow_model_changes=True, **settings) as found:
        yield found


@pytest.fixture(scope="module")
def right() -> list[float]:
    return [hit.probability for hit in Reranker().rank(BODY["query"], BODY["documents"])]  # type: ignore[arg-type]


def scores(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return [row["relevance_score"] for row in answer.json()["results"]]


def test_it_ranks_as_the_library_does(url: str, right: list[float]) -> None:
    answer = httpx.post(f"{url}/v1/rerank", json=BODY)
    assert scores(answer) == pytest.approx(right, abs=1e-2)
    assert answer.json()["results"][0]["index"] == 0
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


def health_check() -> list[str]:
    """What the container runs to see whether its server is healthy."""
    file = Path(__file__).parents[2] / "deploy" / "Dockerfile"
    if not file.exists():
        pytest.skip("needs the folder deploy")
    found = re.search(r"HEALTHCHECK [^\n]*\n +CMD (\[.*\])", file.read_text("utf-8"))
    assert found is not None
    return [sys.executable, *json.loads(found[1])[1:]]


def test_the_containers_health_check_asks_the_port_of_the_environment(url: str) -> None:
    """And never a proxy, which Docker names in each container where it is told of one."""
    environment = {**os.environ, "SECONDPASS_PORT": str(urlsplit(url).port), "http_proxy": "http://127.0.0.1:9"}
    subprocess.run(health_check(), env=environment, check=True)


def test_a_slash_at_the_end_of_an_address_is_no_harm(url: str) -> None:
    assert scores(httpx.post(f"{url}/v1/rerank/", json=BODY))


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/default", "/info", "/health", "/nowhere"])
def test_head_is_get_without_the_body(url: str, path: str) -> None:
    head, get = httpx.head(url + path), httpx.get(url + path)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]


def test_request_ids_are_kept_when_harmless(url: str) -> None:
    def said(given: str) -> str:
        answer = httpx.post(f"{url}/v1/rerank", json=BODY, headers={"X-Request-ID": given})
        assert answer.json()["id"] == answer.headers["x-request-id"]
        return answer.headers["x-request-id"]

    assert said("trace-1:a/b") == "trace-1:a/b"
    assert re.fullmatch("[0-9a-f]{32}", said("a b, c"))
    assert re.fullmatch("[0-9a-f]{32}", said("x" * 129))


POISON: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "no object": (b"[1]", 400),
    "not UTF-8": (b'{"query": "\xff", "documents": ["a"]}', 400),
    "deep": (b'{"query": ' + b"[" * 100_000, 400),
    "deep and whole": (b'{"query": "a", "documents": ' + b"[" * 500 + b"]" * 500 + b"}", 400),
    "NaN": (b'{"query": "a", "documents": ["a"], "top_n": NaN}', 400),
    "Infinity": (b'{"query": "a", "documents": ["a"], "top_n": Infinity}', 400),
    "a huge number": (b'{"query": "a", "documents": ["a"], "top_n": 1' + b"0" * 5000 + b"}", 400),
    "more than a float": (b'{"query": "a", "documents": ["a"], "top_n": 1e999}', 400),
    "wrong types": (b'{"query": 5, "documents": {"a": 1}}', 400),
    "mixed documents": (b'{"query": "a", "documents": ["a", 7, null]}', 400),
    "a 10 MB passage": (json.dumps({"query": "a", "documents": ["x" * 10_000_000]}).encode(), 413),
    "null bytes": (b'{"query": "\\u0000", "documents": ["\\u0000a\\u0000"]}', 200),
    "a lone surrogate": (b'{"query": "\\ud800", "documents": ["\\udfff b"], "return_documents": true}', 200),
    "an odd length": (b'{"query": "a", "documents": ["' + b"\\u200d" * 9000 + b'"]}', 200),
}


@pytest.mark.slow
@pytest.mark.promise("docs/security.md", "values, depth, documents, tokens, connections")
def test_poisoned_requests_are_answered_and_harm_no_other(url: str, right: list[float]) -> None:
    def send(content: bytes) -> httpx.Response:
        return httpx.post(f"{url}/v1/rerank", content=content, timeout=30)

    good = json.dumps(BODY).encode()
    with ThreadPoolExecutor(6) as pool:
        sent = {name: pool.submit(send, content) for name, (content, _) in POISON.items()}
        fine = [pool.submit(send, good) for _ in range(12)]
    assert {name: future.result().status_code for name, future in sent.items()} == {
        name: status for name, (_, status) in POISON.items()
    }
    assert sent["a lone surrogate"].result().json()["results"][0]["document"] == {"text": "\udfff b"}
    for future in fine:
        assert scores(future.result()) == pytest.approx(right, abs=1e-2)
    for name in ("not UTF-8", "NaN"):
        assert set(sent[name].result().json()) >= {"id", "message", "detail", "error"}


@pytest.mark.promise("docs/security.md", "time for heads, bodies, readers, TLS handshakes and calls")
def test_a_half_sent_body_is_given_up(url: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
        connection.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"not complete after 0.3 s" in answer
    assert b"connection: close" in answer.lower()


def test_a_deadline_of_the_caller_holds(url: str) -> None:
    long = {"query": "a", "documents": [f"{place} " + "word " * 300 for place in range(150)]}
    answer = httpx.post(f"{url}/v2/rerank", json=long, headers={"X-Deadline-Ms": "30"}, timeout=60)
    assert answer.status_code == 504
    assert "deadline" in answer.json()["message"]
    assert httpx.post(f"{url}/v2/rerank", json=BODY, headers={"X-Request-Timeout": "never"}).status_code == 400


@pytest.mark.promise("docs/security.md", "`Host` must be one of this server's names")
@pytest.mark.promise("docs/serving.md", "so that no web page reaches a server on your machine")
def test_other_hosts_and_origins_are_refused(url: str) -> None:
    assert httpx.post(f"{url}/v1/rerank", json=BODY, headers={"Host": "evil.example"}).status_code == 403
    answer = httpx.post(f"{url}/v1/rerank", json=BODY, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    for path in ("/", "/metrics", "/docs", "/v1/models"):
        assert httpx.get(url + path, headers={"Host": "evil.example"}).status_code == 403
    assert httpx.get(f"{url}/v1/models", headers={"Origin": url}).status_code == 200


def test_the_page_works_behind_a_proxy_that_ends_tls(url: str) -> None:
    behind = {"Origin": url.replace("http:", "https:"), "X-Forwarded-Proto": "https"}
    assert scores(httpx.post(f"{url}/v1/rerank", json=BODY, headers=behind))
    assert httpx.post(f"{url}/v1/rerank", json=BODY, headers={"Origin": behind["Origin"]}).status_code == 403


def test_health_ready_and_models(url: str) -> None:
    health = httpx.get(f"{url}/health").json()
    assert (health["status"], health["models"]["default"]["state"]) == ("ok", "ready")
    assert httpx.get(f"{url}/ready").json() == {"ready": True}
    assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == ["default"]
    assert httpx.get(f"{url}/info").json()["model_id"] == "default"


def test_what_is_not_there_is_said(url: str) -> None:
    answer = httpx.get(f"{url}/nothing")
    assert answer.status_code == 404
    assert "/v1/rerank" in answer.json()["message"]
    assert httpx.get(f"{url}/v1/rerank").status_code == 404
    assert httpx.post(f"{url}/admin/models", json={}).status_code == 404


@pytest.mark.parametrize(("method", "path"), [("POST", "/health"), ("DELETE", "/"), ("PUT", "/ai/admin/models")])
def test_a_method_that_an_address_does_not_take_is_refused_as_all_else(guarded: str, method: str, path: str) -> None:
    """In plain text it ended as an error of its own in clients that read JSON."""
    answer = httpx.request(method, f"{guarded}{path}", headers={"x-api-key": KEYS[0]})
    assert (answer.status_code, answer.headers["content-type"]) == (405, "application/json")
    assert answer.headers["allow"] in answer.json()["message"]


def metric(url: str, name: str, **labels: str) -> float:
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if found and found[1] == name and wanted <= set((found[2] or "").split(",")):
            return float(found[3])
    return 0.0


@pytest.mark.slow
def test_metrics_count(url: str) -> None:
    before = metric(url, "secondpass_requests_total", dialect="cohere", route="/v2/rerank", status="200")
    tokens = metric(url, "secondpass_tokens_total", model="default")
    errors = metric(url, "secondpass_errors_total", dialect="cohere", fault="malformed")
    cut = metric(url, "secondpass_truncated_rows_total")
    saved = metric(url, "secondpass_padding_saved_tokens_total", model="default")
    answer = httpx.post(f"{url}/v2/rerank", json=BODY)
    httpx.post(f"{url}/rerank", json={"query": "a", "documents": ["word " * 900, "b"], "max_chunks_per_doc": 1})
    httpx.post(f"{url}/v2/rerank", content=b"{")
    assert metric(url, "secondpass_requests_total", dialect="cohere", route="/v2/rerank", status="200") == before + 1
    computed = metric(url, "secondpass_tokens_total", model="default") - tokens
    assert computed == answer.json()["usage"]["total_tokens"] + 512 + 6  # [CLS] a [SEP] [CLS] b [SEP]
    assert metric(url, "secondpass_errors_total", dialect="cohere", fault="malformed") == errors + 1
    assert metric(url, "secondpass_truncated_rows_total") == cut + 1
    assert metric(url, "secondpass_padding_saved_tokens_total", model="default") - saved >= 512 - 6
    assert metric(url, "secondpass_request_seconds_count", dialect="cohere", kind="rerank") > 0
    for name in ("tokenize", "queue", "compute"):
        assert metric(url, f"secondpass_{name}_seconds_count") > 0
    assert metric(url, "secondpass_queue_requests", model="default") == 0


@pytest.mark.promise("docs/security.md", "no document, query or key is logged or repeated in an error")
def test_logs_hold_figures_and_no_text(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="secondpass"):
        httpx.post(f"{url}/v2/rerank", json=BODY, headers={"X-Request-ID": "logged-1"})
        httpx.post(f"{url}/v2/rerank", json={**BODY, "top_n": "secret"}, headers={"X-Request-ID": "logged-2"})
    lines = [JsonLines().format(record) for record in caplog.records if record.name.startswith("secondpass")]
    done, failed = map(json.loads, lines)
    assert (done["event"], done["request_id"], done["status"], done["rows"]) == ("request", "logged-1", 200, 3)
    assert done["compute_ms"] > 0
    assert (failed["request_id"], failed["status"], failed["fault"]) == ("logged-2", 400, "malformed")
    everything = "".join(lines + [PlainLines().format(record) for record in caplog.records])
    assert not [text for text in ("Faust", "Bread", "secret") if text in everything]


def test_the_description_has_every_address_and_nothing_from_outside(url: str) -> None:
    description = httpx.get(f"{url}/openapi.json").json()
    assert {"/v1/rerank", "/v2/rerank", "/rerank", "/v1/ranking", "/v1/score", "/health"} <= set(description["paths"])
    names = set(re.findall(r"#/components/schemas/([\w.-]+)", json.dumps(description)))
    assert names <= set(description["components"]["schemas"])
    page = httpx.get(f"{url}/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<h2><code>POST /v2/rerank</code></h2>" in page.text
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page.text)) == {"page/page.css", "page/mark.svg", "openapi.json"}
    assert "<script" not in page.text


def test_the_page_and_its_files(url: str) -> None:
    page = httpx.get(f"{url}/")
    assert page.headers["content-type"].startswith("text/html")
    again = httpx.get(f"{url}/", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(f"{url}/page/page.css").status_code == 200
    assert httpx.get(f"{url}/page/__init__.py").status_code == 404
    assert httpx.get(f"{url}/page/..%2f__init__.py").status_code == 404


@pytest.mark.parametrize("header", [{"Authorization": "Bearer key-one"}, {"X-Api-Key": "key-two"}])
def test_a_key_opens(guarded: str, header: dict[str, str]) -> None:
    assert scores(httpx.post(f"{guarded}/ai/v1/rerank", json=BODY, headers=header))
    assert httpx.get(f"{guarded}/ai/metrics", headers=header).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/rerank"), ("POST", "/tei/rerank"), ("GET", "/v1/models"), ("GET", "/metrics"),
     ("GET", "/admin/models"), ("POST", "/health"), ("GET", "/nothing")],
)  # fmt: skip
def test_without_a_key_everything_but_health_and_pages_is_closed(guarded: str, method: str, path: str) -> None:
    answer = httpx.request(method, guarded + path, json=BODY)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.request(method, guarded + path, headers={"Authorization": "Bearer no"}).status_code == 401


@pytest.mark.parametrize("path", ["/", "/health", "/ai/health", "/ready", "/docs", "/openapi.json", "/tei/health"])
def test_health_and_pages_are_open(guarded: str, path: str) -> None:
    assert httpx.get(guarded + path).status_code == 200


def test_an_allowed_origin_may_call(guarded: str) -> None:
    origin = {"Origin": "https://app.example"}
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    before = httpx.options(f"{guarded}/v1/rerank", headers=asked)
    assert before.status_code == 204
    assert "content-length" not in before.headers
    assert before.headers["access-control-allow-headers"] == "authorization"
    answer = httpx.post(f"{guarded}/v1/rerank", json=BODY, headers={**origin, "Authorization": "Bearer key-one"})
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_models_are_loaded_and_unloaded_over_http(guarded: str, tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "more", seed=4)
    with httpx.Client(base_url=guarded, headers={"Authorization": "Bearer key-one"}) as client:
        assert client.post("/admin/models", json={"name": "more", "path": str(folder)}).status_code == 201
        assert [model["name"] for model in client.get("/admin/models").json()["models"]] == ["default", "more"]
        assert client.post("/v2/rerank", json={**BODY, "model": "more"}).json()["model"] == "more"
        assert 'secondpass_queue_requests{model="more"}' in client.get("/metrics").text
        assert client.delete("/admin/models/more").json() == {"unloaded": "more"}
        assert 'secondpass_queue_requests{model="more"}' not in client.get("/metrics").text  # nothing waits for it
        assert client.delete("/admin/models/more").status_code == 404
        raw = json.dumps({"name": "\ud800", "path": str(folder)}).encode()
        assert client.post("/admin/models", content=raw).status_code == 400
        assert client.get("/health").json()["models"].keys() == {"default"}
        for wrong in (
            {},
            {"name": "x"},
            {"name": "x", "path": 5},
            {"name": "x", "path": str(tmp_path)},
        ):
            assert client.post("/admin/models", json=wrong).status_code == 400


@pytest.mark.promise("docs/serving.md", "A client that left before its answer counts as status 499")
def test_a_client_that_left_is_logged_and_counted(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where all clients give up after a second, the log and the metrics were as quiet as where none calls."""
    gone = {"dialect": "cohere", "route": "unread", "status": "499"}
    before = metric(url, "secondpass_requests_total", **gone)
    parts = urlsplit(url)
    with caplog.at_level(logging.INFO, logger="secondpass"):
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
            connection.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        until(lambda: metric(url, "secondpass_requests_total", **gone) == before + 1, 20)
    lines = [json.loads(JsonLines().format(one)) for one in caplog.records if one.name == "secondpass.server.api"]
    assert [(line["path"], line["status"]) for line in lines] == [("/v1/rerank", 499)]


@pytest.mark.slow
@pytest.mark.promise("docs/serving.md", "requests whose client is gone or whose time is up are dropped")
def test_what_the_client_no_longer_waits_for_is_not_computed(url: str) -> None:
    many = {"query": "a", "documents": [f"{place} " + "word " * 300 for place in range(200)]}
    before = metric(url, "secondpass_tokens_total", model="default")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v2/rerank", json=many, timeout=httpx.Timeout(20, read=0.2))
    assert scores(httpx.post(f"{url}/v2/rerank", json=BODY, timeout=60))
    assert metric(url, "secondpass_queue_requests", model="default") == 0
    assert metric(url, "secondpass_tokens_total", model="default") - before < 200 * 300
    assert metric(url, "secondpass_requests_total", dialect="cohere", route="/v2/rerank", status="499") == 1


@pytest.mark.promise("docs/security.md", "bodies (each, and all together)")
@pytest.mark.slow
def test_no_more_bodies_are_held_than_there_is_room_for(tmp_path: Path) -> None:
    with serving(tiny_bert(tmp_path / "bert"), max_queue_requests=1) as url:
        parts = urlsplit(url)
        held = [socket.create_connection((parts.hostname or "", parts.port or 0)) for _ in range(2)]
        for connection in held:
            connection.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.get(f"{url}/health").status_code == 200  # answered after the heads above were read
        full = httpx.post(f"{url}/tei/rerank", json={"query": "a", "texts": ["b"]})
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        assert full.json()["error_type"] == "Overloaded"
        for connection in held:
            connection.close()
        answers = [httpx.post(f"{url}/v1/rerank", json=BODY) for _ in range(20)]
        assert answers[-1].status_code == 200


@pytest.mark.promise("docs/serving.md", "Documents and queries are never logged unless `--log-texts` says so")
def test_texts_are_logged_only_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tiny_bert(tmp_path / "bert"), log_texts=True) as url, caplog.at_level(logging.INFO, "secondpass"):
        httpx.post(f"{url}/v2/rerank", json=BODY)
    record = next(record for record in caplog.records if record.name == "secondpass.server.api")
    assert json.loads(JsonLines().format(record))["call"]["documents"] == BODY["documents"]


def test_requests_are_spans_of_their_callers_traces(url: str) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    trace.set_tracer_provider(provider)
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    httpx.post(f"{url}/v2/rerank", json=BODY, headers={"traceparent": caller})
    (span,) = memory.get_finished_spans()
    assert span.name == "secondpass.request"
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert (span.attributes["dialect"], span.attributes["status"], span.attributes["rows"]) == ("cohere", 200, 3)
    assert not [value for value in span.attributes.values() if "Faust" in str(value)]


def test_without_opentelemetrys_api_there_are_answers_and_no_spans(
    url: str, right: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's name may be there without it: its protocol has the same."""
    telemetry._tracer.cache_clear()
    monkeypatch.setitem(sys.modules, "opentelemetry", ModuleType("opentelemetry"))
    monkeypatch.setattr(sys.modules["opentelemetry"], "__spec__", ModuleSpec("opentelemetry", None), raising=False)
    try:
        assert scores(httpx.post(f"{url}/v1/rerank", json=BODY)) == pytest.approx(right, abs=1e-2)
    finally:
        telemetry._tracer.cache_clear()
