"""The MCP server by the inspector's command line, as a person tries it, in both eras of the protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondpass.search.index import Index
from tests.agents.hosts import program
from tests.server.live import serving

pytestmark = pytest.mark.clients
ERAS = ("legacy", "modern")
TOOLS = ["forget", "get", "recall", "remember", "rerank", "search", "status"]
NOTES = "# Beans\n\nDry beans cook for ninety minutes.\n\n## Salt\n\nAdd salt late.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inspected")
    (place / "beans.md").write_text(NOTES)
    index = Index(folder=place / "data", embedder="none", create=True)
    index.add(place / "beans.md")
    index.close()
    return place / "data"


@pytest.fixture(scope="module")
def targets(folder: Path) -> Iterator[dict[str, list[str]]]:
    """What the inspector is pointed at: a command, and the address at a server that asks for a key."""
    with serving(keys=("key",), index="default", index_folder=str(folder), mcp=True) as url:
        yield {
            "command": [sys.executable, "-m", "secondpass", "mcp", "--folder", str(folder)],
            "served": [f"{url}/mcp", "--transport", "http", "--header", "Authorization: Bearer key"],
        }


def inspect(target: list[str], era: str, method: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [program("mcp-inspector"), "--cli", *target, "--protocol-era", era, "--format", "json", "-q"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    asked = [*command, "--method", method, *options]
    return subprocess.run(asked, capture_output=True, text=True, timeout=120, env=environment)


def call(target: list[str], era: str, tool: str, **arguments: Any) -> Any:
    options = ("--tool-name", tool, "--tool-args-json", json.dumps(arguments))
    done = inspect(target, era, "tools/call", *options)
    answer = json.loads(done.stdout)["result"]
    assert answer.get("isError", False) is (done.returncode != 0), done.stderr
    return answer


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("kind", ["command", "served"])
def test_tools_are_listed_without_complaint_and_answer(targets: dict[str, list[str]], kind: str, era: str) -> None:
    target = targets[kind]
    listed = inspect(target, era, "tools/list", "--strict")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert sorted(tool["name"] for tool in json.loads(listed.stdout)["result"]["tools"]) == TOOLS
    ranked = call(target, era, "rerank", query="dog home", documents=["a cat", "the dog is home"])
    assert ranked["structuredContent"]["passages"][0]["index"] == 1
    found = call(target, era, "search", query="how long do beans cook", top_n=1)
    assert found["structuredContent"]["passages"][0]["line"] == 1
    kept = call(target, era, "remember", text=f"Ada likes tea, said over {kind} in {era}")["structuredContent"]
    facts = call(target, era, "recall", query="what does Ada like")["structuredContent"]["facts"]
    assert kept["id"] in [fact["id"] for fact in facts]
    call(target, era, "forget", id=kept["id"])
    refused = call(target, era, "search", query="")
    assert refused["isError"] and "at least 1 character" in refused["content"][0]["text"]


@pytest.mark.parametrize("era", ERAS)
def test_without_the_key_nothing_is_said(targets: dict[str, list[str]], era: str) -> None:
    refused = inspect(targets["served"][:3], era, "tools/list")
    assert refused.returncode != 0
    assert "rerank" not in refused.stdout
