"""The MCP server by the SDK's own client: in memory, over standard input and output, and over HTTP, in both eras."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp import Client, StdioServerParameters

from secondpass.mcp import Tools, make_server
from secondpass.search.index import Index

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


@pytest.mark.parametrize("mode", [{}, {"mode": "legacy"}])
def test_in_memory(folder: Path, mode: dict[str, str]) -> None:
    talk(make_server(Tools(folder=str(folder))), converse, **mode)


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


def test_errors_tell_the_model_what_to_do(tmp_path: Path) -> None:
    async def conversation(client: Any) -> None:
        for name, arguments, said in (
            ("search", {"query": "q"}, "there is no index 'default'; make it with: secondpass add FOLDER"),
            ("rerank", {"query": "q", "documents": [" "]}, "every document is empty"),
            ("forget", {"id": 7}, "there is no statement 7 in the memory 'default'; recall gives ids"),
            ("search", {"query": ""}, "at least 1 character"),
        ):
            answer = await client.call_tool(name, arguments)
            assert answer.is_error
            assert said in answer.content[0].text

    talk(make_server(Tools(folder=str(tmp_path))), conversation)


def test_without_the_extra_there_is_one_clear_line() -> None:
    code = (
        "import sys; sys.modules['mcp'] = None; sys.argv = ['secondpass', 'mcp'];"
        "from secondpass.__main__ import main; main()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert shown.stderr == 'secondpass: mcp is not installed; pip install "secondpass[mcp]"\n'
