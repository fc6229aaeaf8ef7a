"""Models of a hub, with the real client against a small hub on loopback."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.hub import Unreachable, cached
from secondpass.errors import CheckpointError, DownloadError, MissingExtra
from tests.hub_models import GRAPHS, NAME, SHARDS, connected, model_files, names_in, sharded_files, value_of
from tests.hub_server import Hub

RESUMES = int(huggingface_hub.__version__.split(".")[0]) < 2  # later clients begin anew in the next process


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with connected(tmp_path, monkeypatch) as hub:
        yield hub


def test_a_name_resolves_to_a_commit_and_only_what_is_needed_is_fetched(hub: Hub) -> None:
    commit = hub.commit(NAME, model_files())
    checkpoint = open_checkpoint(NAME)
    assert (checkpoint.name, checkpoint.revision) == (NAME, commit)
    assert checkpoint.config["model_type"] == "bert"
    assert value_of(checkpoint) == 1.0
    needed = {"config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"}
    assert names_in(checkpoint.folder) == needed


def test_the_second_open_fetches_no_file_again(hub: Hub) -> None:
    commit = hub.commit(NAME, model_files())
    first = open_checkpoint(NAME)
    hub.requests.clear()
    assert open_checkpoint(NAME).folder == first.folder
    assert hub.requests == {("GET", "api"): 1}
    hub.requests.clear()
    assert open_checkpoint(NAME, revision=commit).folder == first.folder
    assert not hub.requests


def test_a_moved_branch_gives_the_new_commit_and_the_old_one_stays(hub: Hub) -> None:
    old = hub.commit(NAME, model_files(1.0))
    open_checkpoint(NAME)
    new = hub.commit(NAME, model_files(2.0))
    moved = open_checkpoint(NAME)
    assert (moved.revision, value_of(moved)) == (new, 2.0)
    pinned = open_checkpoint(f"{NAME}@{old}")
    assert (pinned.revision, value_of(pinned)) == (old, 1.0)


def test_a_branch_beside_main(hub: Hub) -> None:
    hub.commit(NAME, model_files(1.0))
    commit = hub.commit(NAME, model_files(3.0), branch="refs/pr/1")
    checkpoint = open_checkpoint(NAME, revision="refs/pr/1")
    assert (checkpoint.revision, value_of(checkpoint)) == (commit, 3.0)
    assert open_checkpoint(NAME, revision="refs/pr/1", local_files_only=True).revision == commit


def test_unknown_names_and_revisions_are_told_apart(hub: Hub) -> None:
    hub.commit(NAME, model_files())
    with pytest.raises(DownloadError, match=r"no such model on http"):
        open_checkpoint("owner/other")
    with pytest.raises(DownloadError, match=r"no such revision"):
        open_checkpoint(NAME, revision="v9")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_how_to_log_in(hub: Hub, status: int) -> None:
    hub.commit(NAME, model_files())
    hub.faults.status["api"] = (status, "GatedRepo")
    with pytest.raises(DownloadError, match=rf"refused \({status}\).*licence at .*/owner/tiny.*HF_TOKEN"):
        open_checkpoint(NAME)


def test_a_refusal_of_one_file_says_how_to_log_in(hub: Hub) -> None:
    hub.commit(NAME, model_files())
    hub.faults.status["model.safetensors"] = (403, "GatedRepo")
    with pytest.raises(DownloadError, match=r"model.safetensors: .*refused \(403\)"):
        open_checkpoint(NAME)


def test_a_file_that_the_hub_lists_but_does_not_have(hub: Hub) -> None:
    hub.commit(NAME, model_files())
    hub.faults.status["tokenizer.json"] = (404, "EntryNotFound")
    with pytest.raises(DownloadError, match=r"tokenizer.json: .*answered 404"):
        open_checkpoint(NAME)
    hub.faults.status.clear()
    assert value_of(open_checkpoint(NAME)) == 1.0


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "not a model repository"),
        ("tokenizer.json", "no tokenizer.json"),
        ("model.safetensors", "no model"),
    ],
)
def test_a_repository_that_is_no_model_is_refused_before_the_download(hub: Hub, missing: str, said: str) -> None:
    unwanted = {missing, "vocab.txt", "pytorch_model.bin"}
    hub.commit(NAME, {name: content for name, content in model_files().items() if name not in unwanted})
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(NAME)
    assert hub.requests == {("GET", "api"): 1}


def test_a_truncated_file_is_refused_and_the_next_try_heals(hub: Hub) -> None:
    commit = hub.commit(NAME, model_files())
    hub.faults.short["model.safetensors"] = 1000
    with pytest.raises(DownloadError, match=r"model.safetensors"):
        open_checkpoint(NAME)
    with pytest.raises(DownloadError, match=r"not in the cache"):
        open_checkpoint(NAME, local_files_only=True)
    with pytest.raises(DownloadError, match=r"model.safetensors is missing"):
        open_checkpoint(NAME, revision=commit, local_files_only=True)
    hub.faults.short.clear()
    assert value_of(open_checkpoint(NAME)) == 1.0


def test_a_damaged_file_is_removed_and_the_next_try_heals(hub: Hub) -> None:
    commit = hub.commit(NAME, model_files())
    hub.faults.flipped.add("model.safetensors")
    with pytest.raises(DownloadError, match=r"came damaged and was removed: model.safetensors has another sha256"):
        open_checkpoint(NAME)
    with pytest.raises(DownloadError, match=r"model.safetensors is missing"):
        open_checkpoint(NAME, revision=commit, local_files_only=True)
    hub.faults.flipped.clear()
    assert value_of(open_checkpoint(NAME)) == 1.0


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(hub: Hub) -> None:
    hub.commit(NAME, model_files())
    (file,) = open_checkpoint(NAME).weight_files()
    os.truncate(file.resolve(), 500)
    with pytest.raises(DownloadError, match=r"model.safetensors has 500 bytes of .*secondpass pull owner/tiny@main"):
        open_checkpoint(NAME, local_files_only=True)
    assert value_of(open_checkpoint(NAME)) == 1.0


def test_a_file_that_two_commits_share_is_healed_for_both(hub: Hub) -> None:
    old = hub.commit(NAME, model_files())
    (file,) = open_checkpoint(NAME).weight_files()
    hub.commit(NAME, model_files() | {"config.json": b'{"model_type": "other"}'})
    open_checkpoint(NAME)
    os.truncate(file.resolve(), 500)
    open_checkpoint(NAME)
    assert value_of(open_checkpoint(NAME, revision=old)) == 1.0
    assert len(cached()) == 2


def test_a_connection_that_breaks_is_resumed(hub: Hub) -> None:
    hub.commit(NAME, model_files())
    hub.faults.cut["model.safetensors"] = 5000
    try:
        open_checkpoint(NAME)
    except DownloadError as error:
        assert RESUMES and isinstance(error, Unreachable)
    assert value_of(open_checkpoint(NAME)) == 1.0
    assert hub.ranges == [5000]


@pytest.mark.skipif(not RESUMES, reason="this client keeps no part of a file")
def test_a_started_download_longer_than_the_file_does_not_stay(hub: Hub) -> None:
    hub.commit(NAME, model_files())
    hub.faults.cut["model.safetensors"] = 5000
    try:
        open_checkpoint(NAME)
        pytest.skip("this client went on by itself")
    except Unreachable:
        pass
    (part,) = Path(constants.HF_HUB_CACHE).rglob("*.incomplete")
    part.write_bytes(bytes(100_000))
    with pytest.raises(DownloadError):
        open_checkpoint(NAME)
    assert value_of(open_checkpoint(NAME)) == 1.0


def test_a_silent_hub_is_a_timeout(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.05)
    hub.commit(NAME, model_files())
    hub.faults.silent.add("api")
    with pytest.raises(Unreachable, match=r"did not answer in time.*HF_HUB_ETAG_TIMEOUT.*not in the cache"):
        open_checkpoint(NAME)


def test_a_silent_file_is_a_timeout(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.05)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.05, raising=False)
    hub.commit(NAME, model_files())
    hub.faults.silent.add("tokenizer.json")
    with pytest.raises(Unreachable, match=r"tokenizer.json: .*did not answer in time"):
        open_checkpoint(NAME)


def test_shards_come_with_their_index(hub: Hub) -> None:
    hub.commit(NAME, sharded_files())
    checkpoint = open_checkpoint(NAME)
    assert [file.name for file in checkpoint.weight_files()] == sorted(SHARDS.values())
    (checkpoint.folder / SHARDS["b"]).unlink()
    with pytest.raises(DownloadError, match=f"{SHARDS['b']} is missing"):
        open_checkpoint(NAME, local_files_only=True)
    (checkpoint.folder / "model.safetensors.index.json").unlink()
    with pytest.raises(DownloadError, match=r"model.safetensors.index.json is missing"):
        open_checkpoint(NAME, local_files_only=True)


def test_a_shard_that_the_repository_lacks_is_named(hub: Hub) -> None:
    files = sharded_files()
    del files[SHARDS["b"]]
    hub.commit(NAME, files)
    with pytest.raises(CheckpointError, match=f"its index names {SHARDS['b']}, which it does not hold"):
        open_checkpoint(NAME)


def test_an_index_that_points_outside_is_refused(hub: Hub) -> None:
    index = json.dumps({"weight_map": {"a": "../evil.safetensors"}}).encode()
    hub.commit(NAME, sharded_files() | {"model.safetensors.index.json": index, "../evil.safetensors": b""})
    with pytest.raises(CheckpointError, match=r"outside the checkpoint: \.\./evil"):
        open_checkpoint(NAME)


@pytest.mark.parametrize("has_config", [False, True])
@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_comes_with_its_weights_and_its_base(hub: Hub, weights: str, has_config: bool) -> None:
    hub.commit("owner/base", model_files())
    files = {
        "adapter_config.json": b'{"base_model_name_or_path": "owner/base"}',
        weights: model_files()["model.safetensors"],
    }
    files |= {name: model_files()[name] for name in ("config.json", "tokenizer.json") if has_config}
    hub.commit(NAME, files)
    opened = open_checkpoint(NAME)
    assert opened.adapter is not None and (opened.adapter / weights).is_file()
    assert opened.base is not None and opened.base.name == "owner/base"


def test_bin_files_come_only_where_there_is_no_safetensors(hub: Hub) -> None:
    hub.commit(NAME, {name: content for name, content in model_files().items() if name != "model.safetensors"})
    assert [file.name for file in open_checkpoint(NAME).weight_files()] == ["pytorch_model.bin"]


def test_a_graph_comes_only_where_it_is_asked_for(hub: Hub) -> None:
    hub.commit(NAME, model_files() | GRAPHS)
    assert open_checkpoint(NAME).graph() is None
    checkpoint = open_checkpoint(NAME, graph=True)
    assert checkpoint.graph() == checkpoint.folder / "openvino/openvino_model.xml"
    assert "onnx/model.onnx" not in names_in(checkpoint.folder)


def test_without_torch_the_graph_comes_and_no_weights(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondpass.checkpoint.layout.find_spec", lambda name: None)
    onnx = {name: content for name, content in GRAPHS.items() if name.startswith("onnx")}
    hub.commit(NAME, model_files() | onnx)
    checkpoint = open_checkpoint(NAME)
    assert set(onnx) < names_in(checkpoint.folder)
    assert not checkpoint.has_weights()


def test_weights_without_a_graph_need_torch(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit(NAME, model_files())
    with pytest.raises(CheckpointError, match=r"no openvino/ or onnx/ graph"):
        open_checkpoint(NAME, graph=True)
    monkeypatch.setattr("secondpass.checkpoint.layout.find_spec", lambda name: None)
    with pytest.raises(MissingExtra):
        open_checkpoint(NAME)


def test_a_disk_without_room_says_how_much_is_needed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit(NAME, model_files())
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(DownloadError, match=r"needs 0\.0 MB, .* has 0\.0 MB free; make room or set HF_HUB_CACHE"):
        open_checkpoint(NAME)


def test_a_disk_that_fills_up_says_how_much_is_needed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.commit(NAME, model_files())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fill)
    with pytest.raises(DownloadError, match=r"the disk is full, .* MB are needed"):
        open_checkpoint(NAME)


def test_an_endpoint_that_is_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit(NAME, model_files())
    monkeypatch.setattr(Hub, "resolve", lambda *args: ("not-a-commit", {}))
    with pytest.raises(DownloadError, match=r"named no commit"):
        open_checkpoint(NAME)
