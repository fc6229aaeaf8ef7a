"""A server behind a proxy that ends TLS, called as the page calls it."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.checkpoints import tiny_bert
from tests.server.live import serving

BODY = {"query": "where is the bridge", "documents": ["a river", "the old bridge in the city"]}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this machine; the key is beside it."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key.pem"),
         "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem"


@contextmanager
def behind_tls(url: str, certificate: Path) -> Iterator[httpx.Client]:
    """A client of a proxy before the server, which keeps Host and says that it was called by https."""
    inner = httpx.Client(timeout=60)

    class Forward(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent = {**dict(self.headers), "X-Forwarded-Proto": "https"}
            answer = inner.post(url + self.path, headers=sent, content=body)
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    trusted = ssl.create_default_context(cafile=str(certificate))
    with inner, ThreadingHTTPServer(("127.0.0.1", 0), Forward) as proxy:
        proxy.socket = context.wrap_socket(proxy.socket, server_side=True)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with httpx.Client(base_url=f"https://127.0.0.1:{proxy.server_port}", verify=trusted, timeout=60) as client:
            yield client
        proxy.shutdown()


@pytest.mark.parametrize(("trusted", "status"), [("127.0.0.1", 200), ("192.0.2.1", 403)])
def test_its_page_may_call_where_the_proxy_is_trusted(
    certificate: Path, tmp_path: Path, trusted: str, status: int
) -> None:
    with (
        serving(tiny_bert(tmp_path / "bert"), trusted_proxies=(trusted,)) as url,
        behind_tls(url, certificate) as client,
    ):
        own = {"Origin": str(client.base_url).rstrip("/")}
        assert client.post("/v1/rerank", json=BODY, headers=own).status_code == status
        assert client.post("/v1/rerank", json=BODY, headers={"Origin": "https://evil.example"}).status_code == 403
