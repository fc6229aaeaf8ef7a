"""The real command against a hub on loopback: pull a model, rank with it, and again offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import tiny_bert
from tests.hub_server import Hub, serve

NAME = "owner/tiny-reranker"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tiny_bert(tmp_path_factory.mktemp("model"))
    with serve() as server:
        server.commit(NAME, {file.name: file.read_bytes() for file in folder.iterdir()})
        yield server


def command(hub: Hub, cache: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(cache), "NO_PROXY": "127.0.0.1,localhost"}
    environment = os.environ | variables | {"HF_HUB_DISABLE_XET": "1"} | more
    line = [sys.executable, "-m", "secondpass", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.slow
def test_pull_then_rank_offline(hub: Hub, tmp_path: Path) -> None:
    pulled = command(hub, tmp_path, "pull", f"{NAME}@main")
    assert pulled.returncode == 0, pulled.stderr
    ranking = ("rank", "a long river", "--passage", "the river", "--passage", "a bridge", "--model", NAME, "--json")
    found = command(hub, tmp_path, *ranking, HF_HUB_OFFLINE="1")
    assert found.returncode == 0, found.stderr
    shown = json.loads(found.stdout)
    assert shown["model"]["revision"] in pulled.stdout
    assert len(shown["model"]["revision"]) == 40
    assert {result["text"] for result in shown["results"]} == {"the river", "a bridge"}
    listed = command(hub, tmp_path, "models", "--json")
    assert NAME in listed.stdout


def test_a_model_that_is_not_there_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    missing = command(hub, tmp_path, "pull", "owner/nothing")
    assert missing.returncode == 1
    assert missing.stderr.startswith("secondpass: ")
    assert missing.stderr.count("\n") == 1
