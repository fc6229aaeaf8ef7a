"""Connections that break, hang, move or are given up; threads and processes that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import multiprocessing
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from secondpass import RemoteReranker
from secondpass.errors import RemoteError
from secondpass.remote.transport import Patience
from tests.remote.loopback import GOOD, TEXTS, Loopback, Reply, client, cohere, in_turn, loopback

KEY = "sk-do-not-tell"


def test_waits_grow_within_bounds() -> None:
    patience = Patience(backoff_s=1.0)
    assert [patience.wait(n, None, 1.0) for n in range(6)] == [1, 2, 4, 8, 8, 8]
    assert patience.wait(0, None, 0.0) == 0.5
    assert patience.wait(0, 7.0, 0.5) == 7.0
    assert patience.wait(1000, math.nan, 1.0) == 8
    assert patience.wait(5000, None, 1.0) == 8  # an OverflowError, which no fail_open caught


@pytest.mark.parametrize(("name", "value"), [("ALL_PROXY", "ftp://127.0.0.1:9"), ("NO_PROXY", "fe80::/10")])
def test_a_proxy_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RemoteError, match="see HTTP_PROXY, ALL_PROXY and NO_PROXY: "):
        RemoteReranker("http://127.0.0.1:1")


@pytest.mark.promise("docs/serving.md", "broken connections are tried again up to `retries`")
def test_a_cut_body_is_tried_again() -> None:
    cut = Reply(cohere([0.2, 0.9, 0.5]), sent_bytes=20)
    with loopback(in_turn(cut, GOOD)) as server:
        assert client(server).rank("q", TEXTS)[0].index == 1
    with loopback(in_turn(cut)) as server, pytest.raises(RemoteError, match=r"reached.*\(tried 2 times\)"):
        client(server, retries=1).score("q", TEXTS)


@pytest.mark.parametrize("fault", ["is_silent", "is_slow"])
def test_a_try_has_its_own_limit(fault: str) -> None:
    stuck = Reply({"filler": "x" * 5000}, **{fault: True})  # type: ignore[arg-type]
    with loopback(in_turn(stuck, GOOD)) as server:
        assert client(server, timeout_s=0.2).rank("q", TEXTS)[0].index == 1


@pytest.mark.slow
@pytest.mark.promise("docs/serving.md", "`deadline_s` (60) limits a call with all its batches and retries")
@pytest.mark.parametrize("fault", ["is_silent", "is_slow"])
def test_the_deadline_is_over_all_tries(fault: str) -> None:
    stuck = Reply({"filler": "x" * 5000}, **{fault: True})  # type: ignore[arg-type]
    with loopback(in_turn(stuck)) as server:
        started = time.monotonic()
        with pytest.raises(RemoteError, match="no answer within"):
            client(server, timeout_s=0.15, deadline_s=0.5, retries=50).score("q", TEXTS)
        assert 0.1 < time.monotonic() - started < 10


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that no other test gets it, and not listening
        remote = RemoteReranker(f"http://127.0.0.1:{taken.getsockname()[1]}", backoff_s=0.01, retries=1)
        with pytest.raises(RemoteError, match=r"/api/rank: cannot be reached.*\(tried 2 times\)"):
            remote.score("q", TEXTS)


@pytest.mark.promise("docs/serving.md", "redirects are not followed")
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with loopback(in_turn(GOOD)) as other:
        moved = Reply(b"", status, {"Location": f"{other.url}/v2/rerank?token=1"})
        with (
            loopback(in_turn(moved)) as server,
            pytest.raises(RemoteError, match="redirects to http://127") as caught,
        ):
            client(server, api_key=KEY).score("q", TEXTS)
        assert other.seen == [] and "token" not in str(caught.value)


@pytest.mark.promise("docs/serving.md", "certificates are verified")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_certificates_are_verified(tmp_path: Path) -> None:
    file = tmp_path / "both.pem"
    asked = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=test".split()
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", file, "-out", tmp_path / "cert.pem"]
    subprocess.run(["openssl", *asked, *names], check=True, capture_output=True)
    file.write_text(file.read_text("ascii") + (tmp_path / "cert.pem").read_text("ascii"), "ascii")
    with loopback(in_turn(GOOD), file) as server:
        assert client(server, ca_file=tmp_path / "cert.pem").rank("q", TEXTS)[0].index == 1
        with pytest.raises(RemoteError, match="CERTIFICATE_VERIFY_FAILED") as caught:
            client(server).score("q", TEXTS)
        assert "tried" not in str(caught.value) and len(server.seen) == 1


def test_this_projects_server_is_told_the_deadline(lengths: Loopback) -> None:
    with contextlib.suppress(RemoteError):  # the answer is of another dialect
        client(lengths, dialect="secondpass", deadline_s=7).score("q", TEXTS)
    assert 5000 < int(lengths.seen[-1].headers["x-deadline-ms"]) <= 7000
    with contextlib.suppress(RemoteError):
        client(lengths, dialect="secondpass", timeout_s=math.inf, deadline_s=math.inf).score("q", TEXTS)
    assert "x-deadline-ms" not in lengths.seen[-1].headers
    client(lengths).score("q", TEXTS)
    assert "x-deadline-ms" not in lengths.seen[-1].headers


def test_cancelling_drops_the_request() -> None:
    with loopback(in_turn(Reply(is_silent=True))) as server:
        remote = client(server)

        async def cancelled() -> None:
            task = asyncio.create_task(remote.arank("q", TEXTS))
            while not server.seen:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(asyncio.wait_for(cancelled(), 5))


def test_closing_ends_calls_that_are_under_way_and_a_later_call_works() -> None:
    with loopback(in_turn(Reply(is_silent=True), GOOD)) as server, ThreadPoolExecutor(1) as pool:
        remote = client(server)
        call = pool.submit(remote.score, "q", TEXTS)
        while not server.seen:
            threading.Event().wait(0.005)
        remote.close()
        with pytest.raises(RemoteError, match="closed"):
            call.result(timeout=5)
        assert remote.rank("q", TEXTS)[0].index == 1


@pytest.mark.slow
def test_closing_is_no_cancellation_of_who_waits() -> None:
    """It ended the caller's own task, as if that had been cancelled."""

    async def outcome(fail_open: bool) -> str | None:
        with loopback(in_turn(Reply(is_silent=True))) as server:
            reranker = client(server, fail_open=fail_open)
            task = asyncio.create_task(reranker.arank("q", TEXTS))
            while not server.seen:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(reranker.close)
            return (await task).failure

    assert str(asyncio.run(outcome(True))).endswith("closed while the call was under way")
    with pytest.raises(RemoteError, match="closed while the call was under way"):
        asyncio.run(outcome(False))


@pytest.mark.parametrize("status", [200, 503])
def test_an_answer_that_cannot_be_unpacked_is_said_to_be_that(status: int) -> None:
    broken = Reply(b"none", status, {"Content-Encoding": "gzip"})
    with loopback(in_turn(broken)) as server, pytest.raises(RemoteError, match="the answer cannot be unpacked"):
        client(server, retries=0).score("q", TEXTS)


def test_a_servers_words_move_no_cursor(caplog: pytest.LogCaptureFixture) -> None:
    with loopback(in_turn(Reply({"message": "\x1b[2J\x1b[31mRED \x9b \ud800"}, 400))) as server:
        failure = client(server, fail_open=True).rank("q", TEXTS).failure
    assert failure is not None and failure.endswith("400 Bad Request: \ufffd[2J\ufffd[31mRED \ufffd \ufffd")
    assert "\x1b" not in caplog.text


def test_a_forgotten_reranker_ends_its_thread(lengths: Loopback) -> None:
    before = set(threading.enumerate())
    remote = client(lengths)
    remote.score("q", TEXTS)
    own = [thread for thread in set(threading.enumerate()) - before if thread.name == "secondpass-remote"]
    assert len(own) == 1
    del remote
    gc.collect()
    own[0].join(timeout=30)
    assert not own[0].is_alive()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_opens_connections_of_its_own(lengths: Loopback) -> None:
    with client(lengths) as remote:
        remote.score("q", TEXTS)
        process = multiprocessing.get_context("fork").Process(target=remote.score, args=("q", TEXTS))
        process.start()
        process.join(timeout=20)
        assert process.exitcode == 0
        assert remote.score("q", TEXTS) == pytest.approx([0.5, 1.0, 1.5])
