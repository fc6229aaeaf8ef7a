"""The cache of the client: offline, shared with other tools, and listed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.hub import cached
from secondpass.errors import DownloadError
from tests.hub_models import NAME, connected, model_files
from tests.hub_server import Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with connected(tmp_path, monkeypatch) as hub:
        yield hub


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_fails_leaves_the_cached_commit(hub: Hub, status: int, caplog: pytest.LogCaptureFixture) -> None:
    commit = hub.commit(NAME, model_files())
    open_checkpoint(NAME)
    hub.faults.status["api"] = (status, "")
    with caplog.at_level(logging.WARNING, logger="secondpass"):
        assert open_checkpoint(NAME).revision == commit
    assert f"going on with commit {commit} from the cache" in caplog.text
    with pytest.raises(DownloadError, match=r"owner/tiny@v2.*not in the cache"):
        open_checkpoint(NAME, revision="v2")


def test_a_refusal_does_not_fall_back_to_the_cache(hub: Hub) -> None:
    hub.commit(NAME, model_files())
    open_checkpoint(NAME)
    hub.faults.status["api"] = (401, "")
    with pytest.raises(DownloadError, match=r"HF_TOKEN"):
        open_checkpoint(NAME)


def test_offline_from_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.commit(NAME, model_files())
    open_checkpoint(NAME)
    hub.requests.clear()
    assert open_checkpoint(NAME, local_files_only=True).revision == commit
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_checkpoint(f"{NAME}@{commit}").revision == commit
    assert not hub.requests


def test_offline_and_not_cached_says_how_to_get_it(hub: Hub) -> None:
    with pytest.raises(
        DownloadError, match=r"tiny@v1: no such folder, and not in the cache .*`secondpass pull owner/tiny@v1`"
    ):
        open_checkpoint(NAME, revision="v1", local_files_only=True)


def test_offline_knows_what_an_interrupted_fetch_left_out(hub: Hub) -> None:
    hub.commit(NAME, model_files())
    checkpoint = open_checkpoint(NAME)
    (checkpoint.folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(DownloadError, match=r"not whole in the cache: 1_Pooling/config.json is missing"):
        open_checkpoint(NAME, local_files_only=True)


def test_offline_takes_what_another_tool_fetched(hub: Hub) -> None:
    commit = hub.commit(NAME, model_files())
    for name in ("config.json", "tokenizer.json"):
        huggingface_hub.hf_hub_download(NAME, name)
    with pytest.raises(DownloadError, match=r"not whole in the cache: .*no model.safetensors"):
        open_checkpoint(NAME, local_files_only=True)
    huggingface_hub.hf_hub_download(NAME, "model.safetensors")
    assert open_checkpoint(NAME, local_files_only=True).revision == commit


def test_cached_lists_the_commits_in_the_cache(hub: Hub) -> None:
    assert cached() == []
    old = hub.commit(NAME, model_files(1.0))
    open_checkpoint(NAME)
    new = hub.commit(NAME, model_files(2.0))
    checkpoint = open_checkpoint(NAME)
    models = {model.revision: model for model in cached()}
    assert set(models) == {old, new}
    assert models[new].folder == checkpoint.folder
    assert (models[old].branches, models[new].branches) == ((), ("main",))
    assert models[new].size_bytes > 64 * 64 * 4


def in_a_process(hub: Hub, cache: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """What another Python says when it opens the model, set up by environment variables alone."""
    code = f"from secondpass.checkpoint.checkpoint import open_checkpoint; print(open_checkpoint({NAME!r}).revision)"
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(cache), "NO_PROXY": "127.0.0.1,localhost"}
    environment = os.environ | variables | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"} | more
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_the_usual_environment_variables(hub: Hub, tmp_path: Path) -> None:
    commit = hub.commit(NAME, model_files())
    assert in_a_process(hub, tmp_path / "env").stdout.strip() == commit
    hub.requests.clear()
    assert in_a_process(hub, tmp_path / "env", HF_HUB_OFFLINE="1").stdout.strip() == commit
    refused = in_a_process(hub, tmp_path / "empty", TRANSFORMERS_OFFLINE="1", HF_HUB_OFFLINE="")
    assert "DownloadError: owner/tiny@main: no such folder, and not in the cache" in refused.stderr
    assert not hub.requests


def test_importing_this_loads_neither_the_client_nor_torch() -> None:
    code = (
        "import sys, secondpass.checkpoint.checkpoint, secondpass.checkpoint.hub;"
        "print(sorted({'huggingface_hub', 'torch', 'transformers'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
