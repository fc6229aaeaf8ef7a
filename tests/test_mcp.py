"""The MCP server by the SDK's own client: in memory, over standard input and output, and over HTTP, in both eras."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

pytest.importorskip("mcp")

from mcp import Client, StdioServerParameters

from secondpass import Reranker
from secondpass.mcp import Tools, make_server
from secondpass.search.index import Index
from secondpass.search.memory import Memory
from secondpass.types import Progress, Ranking

NOTES = "# Beans\n\nDry beans cook for ninety minutes.\n\n## Salt\n\nAdd salt late.\n\n## Soak\n\nOver night.\n"
READING = {"search", "get", "status", "rerank", "recall"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "beans.md").write_text(NOTES)
    index = Index(folder=tmp_path / "data", embedder="none", create=True)
    index.add(tmp_path / "beans.md")
    index.close()
    return tmp_path / "data"


def talk(server: object, conversation: Callable[[Any], Awaitable[None]], **options: str) -> None:
    async def run() -> None:
        async with Client(server, **options) as client:  # type: ignore[arg-type]
            await conversation(client)

    anyio.run(run)


async def converse(client: Any) -> None:
    """Each tool once, in the order in which an agent would use them."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {*READING, "remember", "forget"}
    assert {name for name, tool in tools.items() if tool.annotations.read_only_hint} == READING
    assert tools["forget"].annotations.destructive_hint
    assert all(tool.output_schema for tool in tools.values())
    found = await client.call_tool("search", {"query": "how long do beans cook", "top_n": 2})
    best = found.structured_content["passages"][0]
    assert best["line"] == 1
    assert best["probability"] > 0.5
    assert json.loads(found.content[0].text) == found.structured_content
    shown = (await client.call_tool("get", {"id": best["id"], "around": 1})).structured_content
    assert (shown["first_line"], shown["last_line"]) == (1, 7)
    ranked = await client.call_tool("rerank", {"query": "dog home", "documents": ["a cat", "the dog is home"]})
    assert ranked.structured_content["passages"][0]["index"] == 1
    id = (await client.call_tool("remember", {"text": "Ada likes tea"})).structured_content["id"]
    again = await client.call_tool("remember", {"text": "Ada likes coffee", "replaces": id})
    facts = (await client.call_tool("recall", {"query": "what does Ada like"})).structured_content["facts"]
    assert [fact["text"] for fact in facts] == ["Ada likes coffee"]
    await client.call_tool("forget", {"id": again.structured_content["id"]})
    state = (await client.call_tool("status", {})).structured_content
    assert (state["files"], state["chunks"], state["indexes"]) == (1, 3, ["default"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", [{}, {"mode": "legacy"}])
def test_in_memory(folder: Path, mode: dict[str, str]) -> None:
    talk(make_server(Tools(folder=str(folder))), converse, **mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [{}, pytest.param({"mode": "legacy"}, marks=pytest.mark.slow)])
def test_over_standard_input_and_output(folder: Path, mode: dict[str, str]) -> None:
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "secondpass", "mcp", "--folder", str(folder)],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    talk(command, converse, **mode)


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "secondpass", "mcp", "--folder", str(folder), "--http", f"127.0.0.1:{port}"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 60
    while time.monotonic() < ends and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/mcp"
    server.terminate()
    server.wait(30)


@pytest.mark.slow
def test_over_http(address: str) -> None:
    talk(address, converse)


@pytest.mark.slow
def test_over_http_no_stream_is_opened_on_which_nothing_comes(address: str) -> None:
    """It would hold up the end of the process."""
    httpx = pytest.importorskip("httpx")
    with httpx.stream("GET", address, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status_code == 405


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_while_standard_input_is_open(folder: Path, number: int) -> None:
    """A host that has called a tool, and does not close its end first."""
    command = [sys.executable, "-m", "secondpass", "mcp", "--folder", str(folder)]
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "host", "version": "1"}}
    sent = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "status", "arguments": {}}},
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None and running.stdout is not None
        try:
            running.stdin.write(b"".join(json.dumps(each).encode() + b"\n" for each in sent))
            running.stdin.flush()
            answers = [json.loads(running.stdout.readline()) for _ in range(2)]
            assert answers[1]["result"]["structuredContent"]["files"] == 1
            running.send_signal(number)
            assert running.wait(10) == 128 + number
        finally:
            running.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "said"),
    [(where, "give HOST:PORT") for where in ("8790", "127.0.0.1:", ":8790", "127.0.0.1:99999")]
    + [(where, "which other machines reach, and has no key") for where in ("0.0.0.0:8790", "[::]:8790")],
)
def test_an_address_that_is_none_or_of_other_machines_is_refused(where: str, said: str) -> None:
    command = [sys.executable, "-m", "secondpass", "mcp", "--http", where]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (told.returncode, f"--http is {where!r}" in told.stderr, said in told.stderr) == (2, True, True)


@pytest.mark.slow
def test_an_address_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "secondpass", "mcp", "--folder", str(tmp_path), "--http", where]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.returncode == 1
    assert told.stderr.startswith(f"secondpass: cannot listen on {where}: {os.strerror(errno.EADDRINUSE)}")
    assert told.stderr.endswith("; give another port\n")


def test_a_document_without_text_comes_last_and_has_no_score(tmp_path: Path) -> None:
    async def conversation(client: Any) -> None:
        answer = await client.call_tool("rerank", {"query": "dog home", "documents": ["", "a cat", " "]})
        first, *blank = answer.structured_content["passages"]
        assert (first["index"], [each["index"] for each in blank]) == (1, [0, 2])
        assert {(each["probability"], each["score"]) for each in blank} == {(0.0, None)}

    talk(make_server(Tools(folder=str(tmp_path))), conversation)


def test_errors_tell_the_model_what_to_do(tmp_path: Path) -> None:
    async def conversation(client: Any) -> None:
        for name, arguments, said in (
            ("search", {"query": "q"}, "there is no index 'default'; make it with: secondpass add FOLDER"),
            ("rerank", {"query": "q", "documents": [" "]}, "every document is empty"),
            ("forget", {"id": 7}, "there is no statement 7 in the memory 'default'; recall gives ids"),
            ("search", {"query": ""}, "at least 1 character"),
            ("search", {"query": " \n"}, "should match pattern"),
            ("recall", {"query": "　"}, "should match pattern"),
            (
                "search",
                {"query": "q", "lang": "zh"},
                "search has no argument 'lang'; its arguments: query, top_n, path",
            ),
            (
                "recall",
                {"query": "q", "when": "2025-01-01", "k": 3},
                "no argument 'when', 'k'; its arguments: query, top_n, as_of",
            ),
            ("status", {"x": None}, "status has no argument 'x'; its arguments: none"),
            ("find", {"x": 1}, "Unknown tool: find"),
        ):
            answer = await client.call_tool(name, arguments)
            assert answer.is_error
            assert said in answer.content[0].text

    talk(make_server(Tools(folder=str(tmp_path))), conversation)


def test_fields_that_a_model_leaves_empty_are_as_if_left_out(folder: Path) -> None:
    async def conversation(client: Any) -> None:
        asked = {"query": "how long do beans cook"}
        left = dict.fromkeys(("path", "since", "until", "language"), "")
        found = [(await client.call_tool("search", each)).structured_content for each in (asked, {**asked, **left})]
        assert found[0] == found[1] and found[0]["passages"]
        for text in ("Ada likes tea", "Ada drives a van"):
            await client.call_tool("remember", {"text": text, "subject": ""})
        facts = (await client.call_tool("recall", {"query": "Ada", "as_of": ""})).structured_content["facts"]
        assert {fact["text"] for fact in facts} == {"Ada likes tea", "Ada drives a van"}

    talk(make_server(Tools(folder=str(folder))), conversation)


def test_an_agent_may_ask_what_held_before(tmp_path: Path) -> None:
    with Memory(folder=tmp_path) as memory:
        id = memory.remember("Ada lives in Paris", now="2026-01-05T00:00:00Z")
        memory.supersede(id, "Ada lives in Rome", now="2026-03-05T10:00:00+01:00")

    async def conversation(client: Any) -> None:
        async def recalled(**more: str) -> list[tuple[str, str]]:
            answer = await client.call_tool("recall", {"query": "where does Ada live", **more})
            return [(fact["text"], fact["since"]) for fact in answer.structured_content["facts"]]

        assert await recalled(as_of="2026-02-01") == [("Ada lives in Paris", "2026-01-05T00:00:00+00:00")]
        assert await recalled() == [("Ada lives in Rome", "2026-03-05T09:00:00+00:00")]

    talk(make_server(Tools(folder=str(tmp_path))), conversation)


def test_an_index_and_a_memory_that_were_made_anew_are_opened_again(tmp_path: Path) -> None:
    data = tmp_path / "data"

    def made(text: str) -> Index:
        (tmp_path / "a.md").write_text(text)
        index = Index(folder=data, embedder="none", create=True)
        index.add(tmp_path / "a.md")
        return index

    async def found(client: Any, name: str, query: str) -> str:
        return str((await client.call_tool(name, {"query": query})).content[0].text)

    async def conversation(client: Any) -> None:
        await client.call_tool("remember", {"text": "The old port is 2222"})
        assert "old beans" in await found(client, "search", "beans")
        old.store.drop()
        for name in data.glob("memory.sqlite*"):
            name.unlink()
        assert "there is no index 'default'" in await found(client, "search", "beans")
        made("new beans").close()
        assert "new beans" in await found(client, "search", "beans")
        assert "2222" not in await found(client, "recall", "port")

    old = made("old beans")
    talk(make_server(Tools(folder=str(data))), conversation)


def test_what_the_model_cannot_read_is_said_and_is_not_reranked(tmp_path: Path) -> None:
    (tmp_path / "keys.md").write_text("钥匙在抽屉里。\n")

    async def conversation(client: Any) -> None:
        asked = {"query": "钥匙在哪里"}
        found = (await client.call_tool("search", asked)).structured_content
        assert [each["probability"] for each in found["passages"]] == [0.0]
        await client.call_tool("remember", {"text": "钥匙在抽屉里"})
        recalled = (await client.call_tool("recall", asked)).structured_content
        ranked = (await client.call_tool("rerank", {**asked, "documents": ["钥匙在抽屉里"]})).structured_content
        for answer in (found, recalled, ranked):
            assert "cannot read Chinese" in answer["warnings"][0]

    with Index(folder=tmp_path / "data", embedder="none", create=True) as index:
        index.add(tmp_path / "keys.md")
    talk(make_server(Tools(folder=str(tmp_path / "data"), reranker=Reranker("default"))), conversation)


class Cancelled(Reranker):
    """Has the call that it works for cancelled after its first batch, and goes on when the server knows."""

    scope: anyio.CancelScope
    done: list[int]

    def rank(self, *rest: Any, progress: Progress | None = None, **options: Any) -> Ranking:
        def told(done: int, total: int) -> None:
            self.done.append(done)
            anyio.from_thread.run_sync(self.scope.cancel)
            with suppress(asyncio.CancelledError):
                for _ in range(2000):
                    anyio.from_thread.check_cancelled()
                    time.sleep(0.005)
            if progress is not None:
                progress(done, total)

        return super().rank(*rest, progress=told if len(self.done) == 0 else progress, **options)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["rerank", "search"])
def test_a_cancelled_call_stops_after_a_batch_and_holds_up_no_other(tool: str, tmp_path: Path) -> None:
    texts = [f"Dry beans of kind {number} cook for {number} minutes." for number in range(40)]
    (tmp_path / "beans.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with Index(folder=tmp_path / "data", embedder="none", create=True) as index:
        index.add(tmp_path / "beans.jsonl")
    reranker = Cancelled(token_budget=64)
    reranker.done = []
    arguments = {"query": "how long do beans cook", **({"documents": texts} if tool == "rerank" else {})}

    async def conversation(client: Any) -> None:
        with anyio.CancelScope() as reranker.scope:
            await client.call_tool(tool, arguments)
        assert reranker.scope.cancelled_caught
        answer = await client.call_tool(tool, arguments)
        assert len(answer.structured_content["passages"]) == 5

    talk(make_server(Tools(folder=str(tmp_path / "data"), reranker=reranker)), conversation)
    assert len(reranker.done) == 1


def test_without_the_extra_there_is_one_clear_line() -> None:
    code = (
        "import sys; sys.modules['mcp'] = None; sys.argv = ['secondpass', 'mcp'];"
        "from secondpass.__main__ import main; main()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert shown.stderr == 'secondpass: mcp is not installed; pip install "secondpass[mcp]"\n'
