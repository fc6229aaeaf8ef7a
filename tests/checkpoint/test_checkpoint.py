"""Folders, names and indexes: what is taken for a checkpoint, and what is said of what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secondpass.checkpoint.checkpoint import Checkpoint, open_checkpoint
from secondpass.checkpoint.layout import inside, settings_of, weights_of
from secondpass.errors import CheckpointError


def make_folder(folder: Path, *names: str) -> Path:
    for name in ("config.json", *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_a_folder_is_a_checkpoint_without_a_revision(tmp_path: Path) -> None:
    make_folder(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    assert (checkpoint.name, checkpoint.folder, checkpoint.revision) == (str(tmp_path), tmp_path, None)


@pytest.mark.parametrize(
    "name", ["./model", "../model", "/model", "~/no-such-model", "a/b/c", "model", "", "own er/x"]
)
def test_what_can_only_be_a_path_is_not_looked_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder; a model of the hub is written owner/name"):
        open_checkpoint(name)


def test_a_model_of_another_package_is_found_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("secondpass.checkpoint.checkpoint.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install secondpass-multilingual"):
        open_checkpoint("multilingual")
    monkeypatch.undo()
    package = make_folder(tmp_path / "secondpass_multilingual" / "model").parent
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = open_checkpoint("multilingual")
    assert (checkpoint.name, checkpoint.folder) == ("multilingual", package / "model")


def test_a_path_object_is_never_a_hub_name() -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(Path("owner/name"))


def test_a_known_model_without_its_owner_is_suggested() -> None:
    with pytest.raises(CheckpointError, match="here BAAI/bge-reranker-base"):
        open_checkpoint("bge-reranker-base")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    file = make_folder(tmp_path) / "config.json"
    with pytest.raises(CheckpointError, match="is a file, a folder is needed"):
        open_checkpoint(str(file))


def test_a_revision_of_what_has_none_is_a_value_error(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for model in (tmp_path, "default"):
        with pytest.raises(ValueError, match="has no revisions"):
            open_checkpoint(model, revision="main")


@pytest.mark.parametrize("revision", ["../main", "/main", "a//b", "a b", "a/../b", ".hidden"])
def test_a_revision_that_is_none_is_a_value_error(revision: str) -> None:
    with pytest.raises(ValueError, match="not a revision"):
        open_checkpoint("owner/name", revision=revision)


def test_two_revisions_contradict() -> None:
    with pytest.raises(ValueError, match="contradicts the name"):
        open_checkpoint("owner/name@v1", revision="v2")
    with pytest.raises(ValueError, match="not a revision"):
        open_checkpoint("owner/name@")


@pytest.mark.parametrize(
    ("content", "said"), [("{", "not readable as JSON"), ("[]", "holds a list"), (None, "no config")]
)
def test_a_config_that_is_no_json_object_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path)


def test_weights_are_taken_in_the_order_of_transformers(tmp_path: Path) -> None:
    checkpoint = Checkpoint(name="x", folder=make_folder(tmp_path, "pytorch_model.bin"))
    assert [file.name for file in checkpoint.weight_files()] == ["pytorch_model.bin"]
    make_folder(tmp_path, "model-1.safetensors", "model-2.safetensors")
    index = {"weight_map": {"b": "model-2.safetensors", "a": "model-1.safetensors", "c": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [file.name for file in checkpoint.weight_files()] == ["model-1.safetensors", "model-2.safetensors"]
    make_folder(tmp_path, "model.safetensors")
    assert [file.name for file in checkpoint.weight_files()] == ["model.safetensors"]


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    checkpoint = Checkpoint(name="x", folder=make_folder(tmp_path))
    assert not checkpoint.has_weights()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors and no pytorch_model\.bin"):
        checkpoint.weight_files()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "model-1.safetensors"}}, r"names model-1\.safetensors, which is not there"),
        ({"weight_map": {"a": "../evil.safetensors"}}, r"outside the checkpoint: \.\./evil"),
        ({"weight_map": {"a": "/evil.safetensors"}}, "outside the checkpoint: /evil"),
        ({"weight_map": {"a": 1}}, "a weight_map of tensor to file is needed"),
        ({"weight_map": {}}, "a weight_map of tensor to file is needed"),
        ({}, "a weight_map of tensor to file is needed"),
    ],
)
def test_an_index_that_cannot_be_followed(tmp_path: Path, index: object, said: str) -> None:
    folder = make_folder(tmp_path / "model")
    (tmp_path / "evil.safetensors").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(folder).weight_files()


def test_inside_keeps_names_in_their_folder(tmp_path: Path) -> None:
    assert inside(tmp_path, "1_Pooling/config.json") == tmp_path / "1_Pooling" / "config.json"
    with pytest.raises(CheckpointError):
        inside(tmp_path, "1_Pooling/../../config.json")


def test_settings_are_few_and_small() -> None:
    names = ["config.json", "tokenizer.json", "vocab.txt", "README.md", "1_Pooling/config.json", "onnx/config.json"]
    names += ["config_sentence_transformers.json", "deep/config_x.json", "colbert_linear.pt", "training_args.bin"]
    names += ["2_Dense/config.json", "2_Dense/pytorch_model.bin"]  # an embedder's layer, in an old file
    wanted = {*names} - {"vocab.txt", "README.md", "onnx/config.json", "deep/config_x.json", "training_args.bin"}
    assert set(settings_of(names, where="x")) == wanted
    assert "vocab.txt" in settings_of(["config.json", "vocab.txt"], where="x")


def test_a_graph_that_is_not_whole_is_not_taken() -> None:
    graphs = ["openvino/openvino_model.xml", "model.onnx", "model.onnx.data"]
    assert weights_of(graphs, graph=True, where="x") == ["model.onnx", "model.onnx.data"]
    assert weights_of(["adapter_model.safetensors"], graph=False, where="x") == []
