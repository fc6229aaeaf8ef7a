"""The command `secondpass serve` as a process: how it starts, how it stops, and what it does to bad connections."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from urllib.parse import urlsplit

import httpx
import pytest

from secondpass.search.index import Index
from secondpass.server.settings import open_socket
from tests.checkpoints import tiny_bert
from tests.server.live import until
from tests.server.test_app import health_check

BODY = {"query": "where is the bridge", "documents": ["a river", "the old bridge in the city"]}
LONG = {"query": "a", "documents": [f"{place} " + "word " * 200 for place in range(60)]}


@dataclass(frozen=True)
class Process:
    """A server process. Its log is a file: a pipe that nobody reads would hold it up."""

    running: subprocess.Popen[str]
    log: IO[str]

    @property
    def pid(self) -> int:
        return self.running.pid

    def line(self) -> str:
        assert self.running.stdout is not None
        return self.running.stdout.readline()

    def logged(self) -> str:
        """What was logged so far."""
        return Path(f"/proc/self/fd/{self.log.fileno()}").read_text("utf-8")

    def stopped(self, number: int | None = signal.SIGTERM) -> tuple[int, str]:
        """The exit code after a signal, or by itself, and what was logged."""
        if number is not None:
            self.running.send_signal(number)
        code = self.running.wait(timeout=60)
        self.log.seek(0)
        return code, self.log.read()


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[Process]:
    command = [sys.executable, "-m", "secondpass", "serve", "--port", "0", *arguments]
    with TemporaryFile("w+") as log:
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **environment}
        )
        try:
            yield Process(running, log)
        finally:
            running.kill()
            running.communicate()


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[tuple[str, Process]]:
    """A running server: its address, and its process."""
    with process(*arguments, **environment) as found:
        first = found.line()
        assert first.startswith("secondpass serves at http"), found.stopped(None)
        yield first.split()[-1], found


@contextmanager
def served_with_descriptors(folder: Path, number: int) -> Iterator[tuple[str, subprocess.Popen[str], IO[str]]]:
    """A server that may open so many files: its address, its process, and its log, which is complete at its end."""
    limited = f"ulimit -n {number}; exec {sys.executable} -m secondpass serve --port 0 tiny={folder}"
    with TemporaryFile("w+") as log:
        running = subprocess.Popen(["bash", "-c", limited], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert running.stdout is not None
            yield running.stdout.readline().split()[-1], running, log
        finally:
            running.kill()
            running.communicate()


def failed(*arguments: str, **environment: str) -> tuple[int, str]:
    with process(*arguments, **environment) as found:
        return found.stopped(None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "rows"), [((), "results"), (("--embedder", "small=default"), "data")])
def test_it_says_where_it_is_and_how_to_try_it_and_stops_with_0(arguments: tuple[str, ...], rows: str) -> None:
    with served(*arguments) as (url, found):
        line = found.line()
        assert line.startswith("try: curl http://127.0.0.1:")
        shown = subprocess.run(["bash", "-c", line.removeprefix("try: ")], capture_output=True, check=True)
        assert json.loads(shown.stdout)[rows][0]["index"] == 0
        code, log = found.stopped(signal.SIGINT)
    assert code == 0
    assert [json.loads(line)["status"] for line in log.splitlines()] == [200]
    assert urlsplit(url).hostname == "127.0.0.1"


# What Windows' Python has not, of all that the server uses.
WINDOWS = """
import asyncio, signal, sys

sys.modules["resource"] = None
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "pthread_sigmask", "setitimer"):
    delattr(signal, name)

def add_signal_handler(self, number, action):
    raise NotImplementedError

asyncio.unix_events._UnixSelectorEventLoop.add_signal_handler = add_signal_handler
"""


@pytest.mark.slow
def test_it_serves_in_one_process_where_there_are_the_signals_of_windows_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WINDOWS, "utf-8")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    with served(f"tiny={folder}", PYTHONPATH=path) as (url, found):
        body = {"query": "the river", "texts": ["the river", "a bridge"]}
        assert httpx.post(f"{url}/rerank", json=body).status_code == 200
        assert found.stopped(signal.SIGINT)[0] == 0
    code, words = failed("--workers", "2", f"tiny={folder}", PYTHONPATH=path)
    assert (code, "workers is 2; this system has no signals to tell them, give 1" in words) == (1, True)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def is_refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/ready", timeout=1)
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        pass
    return False


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_serves_where_nobody_can_be_told(folder: Path, workers: str) -> None:
    """Its output is a file on a full disk. With workers the first process ended, and waited for the others."""
    with open_socket("127.0.0.1", 0) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "secondpass", "serve", "--port", port, "--workers", workers, f"tiny={folder}"]
    with open("/dev/full", "w") as full:
        running = subprocess.Popen(command, stdout=full, stderr=subprocess.DEVNULL)
    try:
        until(lambda: all(is_ready(f"http://127.0.0.1:{port}") for _ in range(20)))  # whichever process answers
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 0
    finally:
        running.kill()
        running.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_while_it_loads_a_model(folder: Path, tmp_path: Path, number: int) -> None:
    """As one that comes from its hub for minutes; here a file of it is one that nobody ever writes."""
    os.mkfifo(tmp_path / "calibration")
    with open_socket("127.0.0.1", 0) as free:
        port = str(free.getsockname()[1])
    arguments = ["serve", "--port", port, "--calibration", str(tmp_path / "calibration"), f"tiny={folder}"]
    running = subprocess.Popen([sys.executable, "-m", "secondpass", *arguments], stderr=subprocess.DEVNULL)
    try:
        until(lambda: not is_refused(f"http://127.0.0.1:{port}"))
        running.send_signal(number)
        assert running.wait(timeout=30) == 0
    finally:
        running.kill()
        running.wait()


@pytest.mark.slow
def test_what_goes_wrong_in_the_first_process_ends_its_workers(folder: Path) -> None:
    lines = (
        "from secondpass.server.settings import ModelSource, Settings",
        "from secondpass.server.workers import run",
        f"models = (ModelSource(name='tiny', path={str(folder)!r}),)",
        "run(Settings(models=models, workers=2, port=0), (), lambda port: 1 / 0)",
    )
    shown = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 1 and "ZeroDivisionError" in shown.stderr


@pytest.mark.promise("docs/serving.md", "`kill -TERM` refuses new requests, finishes those that were accepted")
@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted_and_takes_no_more() -> None:
    with served() as (url, found), ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(httpx.post, f"{url}/v1/rerank", json=LONG, timeout=60) for _ in range(6)]
        while "secondpass_queue_requests" in httpx.get(f"{url}/metrics").text:
            queued = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if "queue_requests{" in line]
            if float(queued[0].split()[-1]) >= 4:
                break
        code, _ = found.stopped()
        assert [future.result().status_code for future in waiting] == [200] * 6
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
    assert code == 0


@pytest.mark.promise("docs/serving.md", "`kill -TERM` refuses new requests, finishes those that were accepted")
@pytest.mark.slow
def test_workers_that_finish_their_requests_keep_no_other_waiting() -> None:
    """Who connects meanwhile is refused by the system, and another server may have the port."""
    with served("--workers", "2") as (url, found), ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(httpx.post, f"{url}/v1/rerank", json=LONG, timeout=60) for _ in range(6)]
        until(lambda: _queued(url) >= 4)
        found.running.send_signal(signal.SIGTERM)
        until(lambda: is_refused(url))
        assert not all(future.done() for future in waiting)
        assert [future.result().status_code for future in waiting] == [200] * 6
        assert found.stopped(None)[0] == 0


@pytest.mark.promise("docs/serving.md", "`kill -TERM` refuses new requests, finishes those that were accepted")
@pytest.mark.slow
@pytest.mark.parametrize(("number", "again", "status"), [(signal.SIGTERM, False, 200), (signal.SIGINT, True, 503)])
def test_a_signal_to_the_whole_group_is_one_to_its_workers(number: int, again: bool, status: int) -> None:
    """As systemd and a terminal send it; a second one ends at once."""
    documents = LONG["documents"] if again else LONG["documents"][:25]  # more than is done before the second signal
    bodies = [{"query": f"q{place}", "documents": documents} for place in range(12)]
    with served("--workers", "2") as (url, found), ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(httpx.post, f"{url}/v1/rerank", json=body, timeout=60) for body in bodies]
        until(lambda: _queued(url) >= 8)
        group = [found.pid, *children(found.pid)]
        for pid in group:
            os.kill(pid, number)
        if again:
            time.sleep(1)
            for pid in group:
                os.kill(pid, number)
        code, _ = found.stopped(None)
        answers = [future.result().status_code for future in waiting]
    assert code == 0
    assert answers.count(status) >= (1 if again else 12)


@pytest.mark.slow
def test_what_does_not_finish_in_time_is_given_up() -> None:
    many = {"query": "a", "documents": LONG["documents"] * 40}
    many["documents"] = [f"{place} {text}" for place, text in enumerate(many["documents"])]
    with served("--set", "grace_s=1") as (url, found), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.post, f"{url}/v1/rerank", json=many, timeout=60)
        while 'queue_requests{model="default"} 1' not in httpx.get(f"{url}/metrics").text:
            assert not waiting.done()
        started = time.monotonic()
        code, _ = found.stopped()
        assert time.monotonic() - started < 20
        assert waiting.exception() is not None or waiting.result().status_code >= 500
    assert code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["/nowhere/at/all"], 1, "cannot start"),
        (["x=" + "n" * 300], 1, "cannot start: [Errno 36] File name too long"),  # as a folder that may not be read
        (["--host", "0.0.0.0"], 2, "there is no key"),
        (["--set", "prot=1"], 2, "is not a setting"),
        (["--config", "/nowhere.toml"], 2, "cannot be read as TOML"),
        (["--host", "192.0.2.1", "--insecure"], 1, "cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_start_says_why(arguments: list[str], code: int, words: str) -> None:
    found, log = failed(*arguments)
    assert found == code
    assert words in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_settings_come_from_everywhere(folder: Path, tmp_path: Path) -> None:
    config, keys = tmp_path / "serve.toml", tmp_path / "keys"
    config.write_text(f'timeout_s = 7\npage = false\n[models]\ntiny = "{folder}"\n')
    keys.write_text("from-file\n")
    given = ("--config", str(config), "--api-key-file", str(keys))
    with served(*given, SECONDPASS_API_KEYS="from-environment", SECONDPASS_PAGE="true") as (url, _):
        for key in ("from-file", "from-environment"):
            answer = httpx.post(f"{url}/v2/rerank", json=BODY, headers={"Authorization": f"Bearer {key}"})
            assert answer.json()["model"] == "tiny"
        assert httpx.post(f"{url}/v2/rerank", json=BODY).status_code == 401
        assert httpx.get(url).status_code == 200


@pytest.mark.promise("docs/serving.md", "`--workers N` starts N processes that each load the models")
@pytest.mark.slow
def test_workers_share_the_address_and_are_replaced(folder: Path) -> None:
    with served(f"tiny={folder}", "--workers", "2") as (url, found):
        with httpx.Client(base_url=url) as client:
            for _ in range(10):
                assert client.post("/v2/rerank", json=BODY, headers={"Connection": "close"}).status_code == 200
            total = [
                line
                for line in client.get("/metrics").text.splitlines()
                if line.startswith("secondpass_requests_total{")
            ]
            assert sum(float(line.split()[-1]) for line in total) == 10  # of both together
        workers = children(found.pid)
        assert len(workers) >= 2
        victim = workers[-1]
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in children(found.pid) and len(children(found.pid)) == len(workers))
        for _ in range(10):
            assert httpx.post(f"{url}/v2/rerank", json=BODY, timeout=60).status_code == 200
        code, log = found.stopped()
    assert code == 0
    assert "a worker ended; it is started anew" in log
    assert not [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists()]


@pytest.mark.slow
def test_workers_end_with_their_parent(folder: Path) -> None:
    with served(f"tiny={folder}", "--workers", "2") as (_, found):
        workers = children(found.pid)
        found.stopped(signal.SIGKILL)
        until(lambda: not [pid for pid in workers if is_running(pid)])


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_server() -> None:
    code, log = failed("/nowhere/at/all", "--workers", "2")
    assert code == 1
    assert "cannot start" in log


@pytest.mark.promise("docs/serving.md", "`--tls-certificate` and `--tls-key` serve HTTPS")
@pytest.mark.slow
def test_tls(folder: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    trusted = certified(certificate, key)
    with served(f"tiny={folder}", "--tls-certificate", str(certificate), "--tls-key", str(key)) as (url, found):
        assert url.startswith("https://")
        assert httpx.post(f"{url}/v2/rerank", json=BODY, verify=trusted).status_code == 200
        said = {"SECONDPASS_PORT": str(urlsplit(url).port), "SECONDPASS_TLS_CERTIFICATE": str(certificate)}
        subprocess.run(health_check(), env={**os.environ, **said}, check=True)
        assert found.stopped()[0] == 0


@pytest.mark.promise("docs/serving.md", "`kill -HUP` reads the key files anew, and the certificate")
@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_reads_the_certificate_anew(folder: Path, tmp_path: Path, workers: str) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    first = certified(certificate, key)
    given = ("--tls-certificate", str(certificate), "--tls-key", str(key), "--workers", workers)
    with served(f"tiny={folder}", *given) as (url, found):

        def shown(trusted: ssl.SSLContext) -> int:
            num_right = 0
            for _ in range(8):
                with contextlib.suppress(httpx.ConnectError):
                    num_right += httpx.get(f"{url}/ready", verify=trusted).status_code == 200
            return num_right

        assert shown(first) == 8
        second = certified(certificate, key)
        found.running.send_signal(signal.SIGHUP)
        until(lambda: shown(second) == 8 and shown(first) == 0)
        key.write_text("none")
        found.running.send_signal(signal.SIGHUP)
        until(lambda: found.logged().count("the certificate stays as it was") == int(workers))
        assert shown(second) == 8
        assert found.stopped()[0] == 0


def certified(certificate: Path, key: Path) -> ssl.SSLContext:
    """A new pair of files, and whoever trusts it."""
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, "-keyout", str(key),
         "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return ssl.create_default_context(cafile=str(certificate))


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30)


@pytest.mark.promise("docs/security.md", "time for heads, bodies, readers, TLS handshakes and calls")
@pytest.mark.slow
def test_connections_that_do_not_move_are_closed(folder: Path) -> None:
    settings = ["--set", "header_timeout_s=0.5", "--set", "send_timeout_s=0.5", "--set", "body_timeout_s=0.5"]
    with served("--set", f"models=tiny={folder}", *settings) as (url, found):
        silent, half_head, half_body, slow = (connect(url) for _ in range(4))
        half_head.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: local")
        half_body.sendall(b'POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"query"')
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps({"query": "a", "documents": ["b" * 900_000] * 8, "return_documents": True}).encode()
        slow.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
        threading.Thread(target=slow.sendall, args=(body,), daemon=True).start()
        assert read_all(silent) == b""
        assert read_all(half_head) == b""
        assert read_all(half_body).startswith(b"HTTP/1.1 400")
        endless = connect(url)
        endless.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % 10**12)
        assert endless.recv(65536).startswith(b"HTTP/1.1 413")  # and what it still sends is taken for a while
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            for _ in range(1000):
                endless.sendall(b"x" * 1000)
                time.sleep(0.01)
        endless.close()
        until(lambda: num_connections(found.pid, url) == 0)  # nothing of the slow reader's answer is kept
        assert httpx.post(f"{url}/v2/rerank", json=BODY).json()["model"] == "tiny"
        slow.close()
        assert found.stopped()[0] == 0


@pytest.mark.promise("docs/serving.md", "the answer is 429; `Retry-After` says when there is room for it")
@pytest.mark.slow
def test_a_full_queue_refuses_in_the_form_of_each_dialect() -> None:
    with served("--set", "max_queue_requests=2") as (url, _), ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: httpx.post(f"{url}/v2/rerank", json=LONG, timeout=120), range(16)))
        fine = [answer for answer in answers if answer.status_code == 200]
        full = [answer for answer in answers if answer.status_code == 429]
        assert len(fine) >= 2
        assert len(fine) + len(full) == 16
        assert full, "nothing was refused"
        for answer in full:
            assert int(answer.headers["retry-after"]) >= 1
            assert re.search("requests (with|at once)", answer.json()["message"])
        assert httpx.post(f"{url}/v2/rerank", json=BODY, timeout=60).status_code == 200


def read_all(connection: socket.socket) -> bytes:
    found = b""
    with connection:
        try:
            while piece := connection.recv(65536):
                found += piece
        except ConnectionResetError:
            pass
    return found


def num_connections(pid: int, url: str) -> int:
    """Established connections of the server, as the system lists them."""
    port = f"{urlsplit(url).port:04X}"
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(line[1].endswith(f":{port}") and line[3] == "01" for line in lines)


def children(pid: int) -> list[int]:
    """Worker processes; what multiprocessing needs beside them is not counted."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if "spawn_main" in words_of(int(child))]


def words_of(pid: int) -> str:
    """Its command line; none where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.promise("docs/serving.md", "answers 503 with `Retry-After` to what is still waiting after `grace_s`")
@pytest.mark.slow
def test_what_a_drain_has_no_time_for_is_refused_in_the_dialects_form_and_the_end_is_soon() -> None:
    texts = [f"{place} " + "word " * 400 for place in range(100)]
    with served("--set", "grace_s=2") as (url, found), ThreadPoolExecutor(12) as pool:
        bodies = [{"query": f"q{place}", "documents": texts} for place in range(12)]
        waiting = [pool.submit(httpx.post, f"{url}/v1/rerank", json=body, timeout=60) for body in bodies]
        until(lambda: _queued(url) >= 8)
        started = time.monotonic()
        code, log = found.stopped()
        took = time.monotonic() - started
        answers = [future.result() for future in waiting]
    assert code == 0
    assert took < 2 + 5 + 8  # grace, the batch that was under way, and a busy machine
    assert {answer.status_code for answer in answers} <= {200, 503}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    for answer in refused:
        assert answer.json()["message"] == "the server is stopping"
        assert int(answer.headers["retry-after"]) >= 1
    assert "Traceback" not in log


def _queued(url: str) -> float:
    lines = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if "queue_requests{" in line]
    return float(lines[0].split()[-1]) if lines else 0.0


@pytest.mark.promise("docs/serving.md", "`kill -HUP` reads the key files anew")
@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_reads_the_keys_anew_and_loses_nothing(folder: Path, tmp_path: Path, workers: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    with served(f"tiny={folder}", "--api-key-file", str(keys), "--workers", workers) as (url, found):

        def status(key: str) -> int:
            answer = httpx.post(f"{url}/v2/rerank", json=BODY, headers={"x-api-key": key, "connection": "close"})
            return answer.status_code

        assert (status("first"), status("second")) == (200, 401)
        keys.write_text("second\n")
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(status, key) for key in ["first", "second"] * 10]
            found.running.send_signal(signal.SIGHUP)
            assert {call.result() for call in calls} <= {200, 401}  # each was answered
        until(lambda: [status("first") for _ in range(8)] == [401] * 8)
        assert [status("second") for _ in range(8)] == [200] * 8
        keys.write_text("# none\n")
        found.running.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert status("second") == 200
        code, log = found.stopped()
    assert code == 0
    assert "the keys stay as they were" in log


@pytest.mark.slow
def test_a_worker_that_starts_has_the_keys_of_the_last_sighup_and_survives_one(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    with served(f"tiny={folder}", "--api-key-file", str(keys), "--workers", "2") as (url, found):

        def statuses(key: str) -> set[int]:
            headers = {"x-api-key": key, "connection": "close"}
            calls = [httpx.post(f"{url}/v2/rerank", json=BODY, headers=headers, timeout=60) for _ in range(16)]
            return {call.status_code for call in calls}

        keys.write_text("second\n")
        found.running.send_signal(signal.SIGHUP)
        until(lambda: statuses("first") == {401})
        for key in ("second", "third"):  # both workers are replaced, and the second time told while they start
            gone = set(children(found.pid)[-2:])
            for worker in gone:
                os.kill(worker, signal.SIGKILL)
            until(lambda gone=gone: len(found_now := children(found.pid)) >= 2 and not gone & set(found_now))
            if key == "third":
                keys.write_text("third\n")
                found.running.send_signal(signal.SIGHUP)
            started = children(found.pid)
            until(lambda key=key: statuses(key) == {200})
            assert statuses("first") == {401}
            assert children(found.pid) == started


@pytest.mark.promise("docs/serving.md", "`--offline` stops that too")
@pytest.mark.slow
def test_offline_is_offline_for_the_models_of_an_index_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("Beans cook for ninety minutes.")
    with Index("notes", folder=tmp_path / "data", embedder="none", create=True) as index:
        index.add(tmp_path / "note.md")
        index.store.set_meta({"embedder": "nobody/embedder"})
    given = (f"tiny={folder}", "--offline", "--index", "notes", "--index-folder", str(tmp_path / "data"))
    with open_socket("127.0.0.1", 0) as hub:
        hub.listen()
        hub.setblocking(False)
        with served(*given, HF_ENDPOINT=f"http://127.0.0.1:{hub.getsockname()[1]}") as (url, _):
            answer = httpx.post(f"{url}/v1/index/search", json={"query": "beans"}, timeout=60)
            assert "nobody/embedder" in answer.json()["message"]
        with pytest.raises(BlockingIOError):
            hub.accept()


IMPORTED = """
import signal, sys
from secondpass.cli import run

class Looks:
    def find_spec(self, name, path=None, target=None):
        if name == "secondpass.server.settings":
            print(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ()))

sys.meta_path.insert(0, Looks())
run(["serve", "--port", "0", "--model", "a=", *sys.argv[1:]])
"""


@pytest.mark.parametrize(("given", "waits"), [((), "True"), (("--on", "ray"), "False")])
def test_sighup_waits_from_before_the_servers_imports_on(given: tuple[str, ...], waits: str) -> None:
    """They take a second or two, in which it ended the process. What Ray starts is not to be deaf to it."""
    found = subprocess.run([sys.executable, "-c", IMPORTED, *given], capture_output=True, text=True)
    assert found.stdout.split() == [waits]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_during_the_start_ends_nothing(folder: Path, tmp_path: Path, workers: str) -> None:
    (tmp_path / "keys").write_text("key\n")
    with process(f"tiny={folder}", "--api-key-file", str(tmp_path / "keys"), "--workers", workers) as found:
        is_taken = Path(f"/proc/{found.pid}/status").read_text
        until(lambda: _takes_sighup(is_taken()))
        for _ in range(5):
            found.running.send_signal(signal.SIGHUP)
            time.sleep(0.2)
        assert found.line().startswith("secondpass serves at http")
        assert found.stopped()[0] == 0


def _takes_sighup(status: str) -> bool:
    """Whether a process waits for SIGHUP, or has a function for it."""
    masks = dict(re.findall(r"^(SigBlk|SigCgt):\s*(\w+)$", status, re.MULTILINE))
    return any(int(mask, 16) & 1 << (signal.SIGHUP - 1) for mask in masks.values())


@pytest.mark.promise("docs/serving.md", "as many as the process may have descriptors, at most")
@pytest.mark.slow
def test_more_connections_than_descriptors_are_no_flood(folder: Path) -> None:
    with served_with_descriptors(folder, 200) as (url, running, log):
        heads = [connect(url) for _ in range(300)]
        for each in heads:
            with contextlib.suppress(OSError):
                each.sendall(b"GET /health HTTP/1.1\r\n")
        for each in heads:
            each.close()
        until(lambda: httpx.get(f"{url}/health", timeout=5).status_code in (200, 503), 20)
        running.send_signal(signal.SIGTERM)
        running.wait(timeout=60)
        log.seek(0)
        said = log.read()
    assert "max_connections is" in said
    assert len(said.splitlines()) < 200
    assert "Traceback" not in said


def test_a_certificate_that_is_none_is_named(folder: Path, tmp_path: Path) -> None:
    from secondpass.server.settings import Settings, SettingsError
    from secondpass.server.workers import check_tls

    bad = tmp_path / "cert.pem"
    bad.write_text("no certificate")
    with pytest.raises(SettingsError, match=r"tls_certificate .*cert\.pem and tls_key .*cert\.pem: no certificate"):
        check_tls(Settings(tls_certificate=str(bad), tls_key=str(bad)))


def test_a_key_with_a_pass_phrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    from secondpass.server.settings import Settings, SettingsError
    from secondpass.server.workers import check_tls

    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    asked = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -passout pass:phrase -subj /CN=test".split()
    subprocess.run(["openssl", *asked, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with pytest.raises(SettingsError, match="the key is encrypted; give one without a pass phrase"):
        check_tls(Settings(tls_certificate=certificate, tls_key=key))
