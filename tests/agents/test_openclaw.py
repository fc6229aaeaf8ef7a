"""OpenClaw itself, headless, with a scripted chat model: its memory by our embeddings, in our order, and our tools.

A turn takes half a minute on two cores. SECONDPASS_LANCEDB_PRO names a folder with memory-lancedb-pro, built.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from secondpass.search.index import Index
from secondpass.server.settings import ModelSource
from tests.agents.chat import ScriptedChat, chatting
from tests.agents.hosts import program
from tests.server.live import serving

pytestmark = pytest.mark.clients
PACKAGE = Path(__file__).parents[2] / "packages" / "openclaw"
RECORDED = PACKAGE / "test" / "recorded.json"  # a tool's result as the host gives it, for the plugin's quick tests
QUERY = "how long do beans cook"
ANSWER = "Dry beans cook for ninety minutes in salted water."
MEMORY = {
    "MEMORY.md": "# Memory\n\nBeans need a pot, and a long spoon. Bo is the cook.\n",
    "memory/2026-11-01.md": f"# Kitchen\n\n{ANSWER}\n",
    "memory/2026-11-02.md": "# Car\n\nThe car is red and stands in the yard.\n",
}
MODELS = (
    ModelSource(name="default", path="default"),
    ModelSource(name="embedded", path="default", kind="embedder"),
)


@dataclass
class Host:
    """An OpenClaw of its own home. posts are the bodies that the server got, by path."""

    home: Path
    url: str
    chat: ScriptedChat
    posts: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def config_file(self) -> Path:
        return self.home / ".openclaw" / "openclaw.json"

    def configure(self, change: Callable[[dict[str, Any]], None]) -> None:
        config = json.loads(self.config_file.read_text())
        change(config)
        self.config_file.write_text(json.dumps(config))

    def run(self, *arguments: str) -> str:
        environment = {**os.environ, "HOME": str(self.home), "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [program("openclaw"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def told(self, tool: str, **arguments: Any) -> str:
        """What the chat model is told of a tool that it calls in a turn of the agent."""
        self.chat.call, self.chat.seen = ("tool_call", {"id": tool, "args": arguments}), []
        self.run("agent", "--local", "--agent", "main", "--session-id", tool, "-m", f"{tool} {arguments}", "--json")
        (result,) = self.chat.seen
        return result

    def memory_search(self, **arguments: Any) -> Any:
        return json.loads(json.loads(self.told("memory_search", **arguments))["result"]["content"][0]["text"])


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    program("openclaw")
    place = tmp_path_factory.mktemp("openclaw")
    (place / "notes").mkdir()
    (place / "notes" / "beans.md").write_text("# Beans\n\nSoaked beans cook in one hour.\n")
    index = Index("notes", folder=place / "data", create=True)
    index.add(place / "notes")
    index.close()
    posts: list[tuple[str, Any]] = []
    with (
        chatting() as chat,
        serving(models=MODELS, index="notes", index_folder=str(place / "data"), wrap=noting(posts)) as url,
    ):
        found = Host(home=place / "home", url=url, chat=chat, posts=posts)
        settle(found)
        yield found


def settle(host: Host) -> None:
    """The files and settings that docs/openclaw.md describes, the plugin installed, the memory indexed."""
    workspace = host.home / ".openclaw" / "workspace"
    for name, text in MEMORY.items():
        file = workspace / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    shutil.copytree(PACKAGE / "skills" / "secondpass", workspace / "skills" / "secondpass")
    remote = {"baseUrl": f"{host.url}/v1", "apiKey": "local"}
    search = {"provider": "openai-compatible", "model": "embedded", "remote": remote}
    search["query"] = {"maxResults": 20, "minScore": 0.0}  # what is cut here cannot be reranked
    models = [{"id": "scripted", "name": "scripted"}]
    loop = {"api": "openai-completions", "baseUrl": host.chat.url, "apiKey": "x", "models": models}
    config = {
        "memory": {"search": search},
        "models": {"providers": {"loop": loop}},
        "agents": {"defaults": {"model": "loop/scripted"}},
    }
    host.config_file.write_text(json.dumps(config))
    host.run("plugins", "install", "-l", "--force", "--accept-capabilities", str(PACKAGE))
    reranking(host, baseUrl=f"{host.url}/v1", timeoutMs=20000, index="notes")
    host.run("memory", "index", "--force")


def reranking(host: Host, **options: Any) -> None:
    plugin = {"enabled": True, "config": options}
    host.configure(lambda config: config["plugins"]["entries"].update(secondpass=plugin))


def noting(posts: list[tuple[str, Any]]) -> Callable[[Any], Any]:
    """Keeps what is posted to an application."""

    def around(app: Any) -> Any:
        async def noted(scope: Any, receive: Any, send: Any) -> None:
            parts: list[bytes] = []

            async def received() -> Any:
                message = await receive()
                parts.append(message.get("body", b""))
                if message["type"] == "http.request" and not message.get("more_body") and any(parts):
                    posts.append((scope["path"], json.loads(b"".join(parts))))
                    parts.clear()
                return message

            await app(scope, received if scope["type"] == "http" else receive, send)

        return noted

    return around


def paths(result: Any) -> list[str]:
    return [hit["path"] for hit in result["results"]]


def test_its_memory_is_found_by_our_embeddings(host: Host) -> None:
    embedded = [body for path, body in host.posts if path == "/v1/embeddings"]
    assert sorted(body["input"][0] for body in embedded if body["input"] != ["ping"]) == sorted(MEMORY.values())
    assert all(set(body) == {"model", "input"} and body["model"] == "embedded" for body in embedded)
    found = json.loads(host.run("memory", "search", QUERY, "--json"))["results"]
    likeness = {hit["path"]: hit["vectorScore"] for hit in found}
    assert likeness["memory/2026-11-01.md"] > likeness["MEMORY.md"] > likeness.get("memory/2026-11-02.md", 0.0)


def test_the_agent_is_told_its_memory_in_our_order(host: Host) -> None:
    host.posts.clear()
    result = host.memory_search(query=QUERY)
    assert paths(result)[0] == "memory/2026-11-01.md"
    scores = [hit["rerankScore"] for hit in result["results"]]
    assert scores == sorted(scores, reverse=True)
    (body,) = [body for path, body in host.posts if path == "/v1/rerank"]
    assert set(body) == {"query", "documents"}
    assert any(ANSWER in text for text in body["documents"])


def test_our_index_is_a_corpus_beside_its_memory(host: Host) -> None:
    host.posts.clear()
    result = host.memory_search(query=QUERY, corpus="all")
    assert any(hit["path"].endswith("beans.md#1") and hit["corpus"] == "secondpass" for hit in result["results"])
    assert [body["query"] for path, body in host.posts if path == "/v1/index/search"] == [QUERY]


def test_its_order_stays_where_the_server_does_not_answer(host: Host) -> None:
    reranking(host, baseUrl="http://127.0.0.1:9/v1", timeoutMs=200)
    result = host.memory_search(query=QUERY)
    if os.environ.get("SECONDPASS_RECORD"):
        RECORDED.write_text(json.dumps({"query": QUERY, "text": host.chat.seen[0]}, indent=1) + "\n")
    assert paths(result)[0] == "MEMORY.md"
    assert all("rerankScore" not in hit for hit in result["results"])
    reranking(host, baseUrl=f"{host.url}/v1", timeoutMs=20000, index="notes")


def test_our_tools_are_added_and_called(host: Host) -> None:
    pytest.importorskip("mcp")
    command = host.home / "secondpass"  # the host lets no PYTHONPATH through
    served = f"mcp --name notes --folder '{host.home.parent / 'data'}'"
    path = os.pathsep.join(sys.path)
    command.write_text(f"#!/bin/sh\nPYTHONPATH='{path}' exec '{sys.executable}' -m secondpass {served}\n")
    command.chmod(0o755)
    host.run("mcp", "add", "secondpass", "--command", str(command), "--connect-timeout", "60")
    probed = json.dumps(json.loads(host.run("mcp", "probe", "secondpass", "--json")))
    assert all(name in probed for name in ("search", "get", "rerank", "remember", "recall", "forget", "status"))
    assert "Soaked beans cook in one hour." in host.told("secondpass__search", query=QUERY)


def test_the_skill_is_known(host: Host) -> None:
    skills = {skill["name"]: skill for skill in json.loads(host.run("skills", "list", "--json"))["skills"]}
    assert "secondpass" in skills
    assert skills["secondpass"]["eligible"] is (shutil.which("secondpass") is not None)


def test_memory_lancedb_pro_reranks_with_our_server(host: Host, tmp_path: Path) -> None:
    folder = os.environ.get("SECONDPASS_LANCEDB_PRO")
    if folder is None:
        pytest.skip("needs memory-lancedb-pro; SECONDPASS_LANCEDB_PRO names its folder")
    host.run("plugins", "install", "-l", "--force", "--accept-capabilities", folder)
    embedding = {"provider": "openai-compatible", "apiKey": "local", "baseURL": f"{host.url}/v1", "model": "embedded"}
    rerank = {"rerank": "cross-encoder", "rerankProvider": "jina", "rerankEndpoint": f"{host.url}/v1/rerank"}
    more = {"rerankApiKey": "local", "rerankModel": "default", "rerankTimeoutMs": 20000}
    settings = {
        "dbPath": str(tmp_path / "lance"),
        "embedding": {**embedding, "dimensions": 384},
        "retrieval": {"mode": "hybrid", **rerank, **more},
    }

    def chosen(config: dict[str, Any]) -> None:
        config["plugins"]["slots"] = {"memory": "memory-lancedb-pro"}
        config["plugins"]["entries"]["memory-lancedb-pro"] = {"enabled": True, "config": settings}

    host.configure(chosen)
    facts = [text.partition("\n\n")[2].strip() for text in MEMORY.values()]
    kept = tmp_path / "facts.json"
    kept.write_text(
        json.dumps({"memories": [{"text": text, "category": "fact", "importance": 0.7} for text in facts]})
    )
    host.run("memory-pro", "import", str(kept), "--scope", "global")
    host.posts.clear()
    found = json.loads(host.run("memory-pro", "search", QUERY, "--scope", "global", "--json"))
    assert ANSWER in json.dumps(found[0])
    (body,) = [body for path, body in host.posts if path == "/v1/rerank"]
    assert set(body) == {"model", "query", "documents", "top_n"}
    assert ANSWER in body["documents"]
