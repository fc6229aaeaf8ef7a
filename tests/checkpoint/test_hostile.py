"""Checkpoints that a stranger made to harm: each is one sentence, soon, and within little memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from secondpass import Embedder, Reranker
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.errors import CheckpointError, UnknownModel
from tests.checkpoints import tiny_bert

DEEP = "[" * 1_000_000
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 133466304\n"


def opened(folder: Path) -> list[float]:
    return Reranker(folder, engine="torch", device="cpu").score("the river", ["a bridge"])


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 100_000),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1.5),
        ("hidden_size", 2**40),
        ("hidden_size", -1),
        ("hidden_size", "x"),
        ("hidden_size", None),
        ("hidden_size", True),
        ("num_attention_heads", 0),
        ("num_attention_heads", 7),
        ("num_attention_heads", [2]),
        ("layer_norm_eps", "1e-5"),
        ("layer_norm_eps", float("nan")),
        ("vocab_size", {}),
        ("pad_token_id", "[PAD]"),
        ("architectures", "BertForSequenceClassification"),
        ("architectures", [1]),
        ("id2label", ["a"]),
        ("scripts", None),
        ("scripts", [1]),
        ("languages", "en"),
        ("num_labels", "1"),
        ("model_type", ["bert"]),
    ],
)
def test_a_size_that_is_none_names_the_file_and_the_key(tmp_path: Path, key: str, value: object) -> None:
    change(tiny_bert(tmp_path) / "config.json", **{key: value})
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{key}") as caught:
        opened(tmp_path)
    assert len(str(caught.value)) < 300


def test_heads_of_keys_divide_the_others(tmp_path: Path) -> None:
    change(tiny_bert(tmp_path) / "config.json", num_key_value_heads=3)
    with pytest.raises(CheckpointError, match="num_attention_heads 2 is no multiple of num_key_value_heads 3"):
        opened(tmp_path)


@pytest.mark.parametrize("value", [{"a": 1}, "no such", 7, None])
def test_an_activation_of_another_kind(tmp_path: Path, value: object) -> None:
    change(tiny_bert(tmp_path) / "config.json", hidden_act=value)
    with pytest.raises((CheckpointError, UnknownModel)):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "modules.json"])
def test_json_that_is_nested_too_deep(tmp_path: Path, name: str) -> None:
    (tiny_bert(tmp_path) / name).write_text(DEEP)
    with pytest.raises(CheckpointError, match=name):
        Embedder(tmp_path, device="cpu") if name == "modules.json" else opened(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.txt"])
def test_what_git_left_in_the_place_of_a_large_file_is_named(tmp_path: Path, name: str) -> None:
    folder = tiny_bert(tmp_path)
    for first in {"pytorch_model.bin": ["model.safetensors"], "vocab.txt": ["tokenizer.json"]}.get(name, []):
        (folder / first).unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name}: is only a pointer of Git LFS.* run `git lfs pull`"):
        opened(folder)


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin", "model.onnx"])
def test_a_graph_of_which_git_left_a_pointer_is_named(tmp_path: Path, name: str) -> None:
    folder = tiny_bert(tmp_path)
    if name.startswith("openvino"):
        (folder / "openvino_model.xml").write_text("<net></net>")
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name}: is only a pointer of Git LFS"):
        Reranker(folder, engine="openvino")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a device of Unix")
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_link_to_a_device_is_not_read(tmp_path: Path, name: str) -> None:
    file = tiny_bert(tmp_path) / name
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=f"{name}: a plain file is needed"):
        opened(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    file = tiny_bert(tmp_path) / "config.json"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match="a plain file is needed"):
        opened(tmp_path)


def test_a_file_of_settings_that_is_too_large(tmp_path: Path) -> None:
    file = tiny_bert(tmp_path) / "config.json"
    os.truncate(file, 1 << 33)  # without a byte on disk
    with pytest.raises(CheckpointError, match=r"has 8,589,934,592 bytes, at most"):
        opened(tmp_path)


@pytest.mark.promise("docs/security.md", "a checkpoint's code is never run")
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("bert.embeddings.word_embeddings.weight", torch.zeros(1).expand(2**40)),
        ("classifier.weight", torch.zeros(1, 16).to_sparse()),
        ("classifier.weight", torch.zeros(1, 16, dtype=torch.complex64)),
        (7, torch.zeros(1)),
    ],
)
def test_a_tensor_of_a_bin_file_that_is_not_plain(tmp_path: Path, name: object, tensor: torch.Tensor) -> None:
    file = tiny_bert(tmp_path) / "model.safetensors"
    torch.save({**load_file(file), name: tensor}, tmp_path / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin: '{name}' is no plain tensor with a name"):
        opened(tmp_path)


def test_a_tensor_that_is_larger_than_asked_for_is_not_copied(tmp_path: Path) -> None:
    file = tiny_bert(tmp_path) / "model.safetensors"
    save_file(load_file(file) | {"classifier.bias": torch.zeros(1 << 20, dtype=torch.float16)}, file)
    with pytest.raises(CheckpointError, match=r"head\.out\.bias is \(1048576,\), config\.json asks for \(1,\)"):
        opened(tmp_path)


def test_very_many_keys_beside_the_tensors(tmp_path: Path) -> None:
    file = tiny_bert(tmp_path) / "model.safetensors"
    save_file(load_file(file), file, metadata={f"key {n}": "" for n in range(300_000)})
    with pytest.raises(CheckpointError, match="has no safetensors header: it would have"):
        opened(tmp_path)


BOMB = '<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><net name="&b;"/>'


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("content", [BOMB.encode(), BOMB.encode("utf-16"), b"<net", b"", DEEP.encode()])
def test_a_graph_that_is_none(tmp_path: Path, engine: str, content: bytes) -> None:
    folder = tiny_bert(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "openvino_model.xml").write_bytes(content)
    (folder / "openvino_model.bin").write_bytes(bytes(64))
    with pytest.raises(CheckpointError, match=r"openvino_model\.xml"):
        Reranker(folder, engine=engine, device="cpu")


def test_a_graph_of_onnx_that_is_none_is_not_shown_to_openvino(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_bert(tmp_path)
    (folder / "model.onnx").write_bytes(b"garbage" * 99)
    with pytest.raises(CheckpointError, match=r"model\.onnx: no ONNX graph"):
        Reranker(folder, engine="openvino")
    assert capfd.readouterr().err == ""


def test_a_tokenizer_that_never_ends_a_match_is_an_error(tmp_path: Path) -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    change(tiny_bert(tmp_path) / "tokenizer.json", pre_tokenizer=pattern)
    reranker = Reranker(tmp_path, engine="torch", device="cpu")
    with pytest.raises(CheckpointError, match="the tokenizer failed on a text"):
        reranker.score("a", ["a" * 40 + "!"])


@pytest.mark.parametrize("limit", [0, -5, "512", [1], True])
def test_a_length_that_is_none(tmp_path: Path, limit: object) -> None:
    change(tiny_bert(tmp_path) / "tokenizer_config.json", model_max_length=limit)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: model_max_length is"):
        opened(tmp_path)


@pytest.mark.parametrize("limit", [1, 3])
def test_a_length_without_room_for_a_text(tmp_path: Path, limit: int) -> None:
    change(tiny_bert(tmp_path) / "tokenizer_config.json", model_max_length=limit)
    with pytest.raises(CheckpointError, match=rf"max_length is {limit}; what stands around the texts leaves no room"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["model\0.safetensors", "C:model.safetensors", "\\model.safetensors", "a" * 5000])
def test_an_index_with_a_name_that_no_file_has(tmp_path: Path, name: str) -> None:
    folder = tiny_bert(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"index\.json|outside the checkpoint|as no system can"):
        opened(tmp_path)


@pytest.mark.parametrize("model", [123, None, ["a"]])
@pytest.mark.parametrize("opener", [Reranker, Embedder, open_checkpoint])
def test_what_is_no_name_is_a_type_error(model: Any, opener: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match="give 'default', 'multilingual', a folder or a name of the hub"):
        opener(model)


def test_an_error_of_a_hostile_checkpoint_stays_small(tmp_path: Path) -> None:
    change(tiny_bert(tmp_path) / "config.json", hidden_size="x" * 100_000)
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path)
    assert len(str(caught.value)) < 300
