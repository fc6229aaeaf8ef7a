"""Tiny models, and the real client turned to a hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save

from secondpass.checkpoint.checkpoint import Checkpoint
from tests.hub_server import Hub, serve

NAME = "owner/tiny"
SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
GRAPHS = {
    "openvino/openvino_model.xml": b"<net/>",
    "openvino/openvino_model.bin": b"data",
    "onnx/model.onnx": b"graph",
    "onnx/model.onnx_data": b"data",
}


@contextmanager
def connected(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client in this process talks to, with an empty cache, short time-outs and no pauses."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serve() as hub:
        values = {
            "ENDPOINT": hub.endpoint,
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(cache / "token"),
            "HF_HUB_ETAG_TIMEOUT": 5,
            "HF_HUB_DOWNLOAD_TIMEOUT": 5,
            "DOWNLOAD_CHUNK_SIZE": 1000,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value, raising=False)  # not every version has all
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for module in ("constants", "file_download"):
            target = f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE"
            monkeypatch.setattr(target, template, raising=module == "constants")
        yield hub


def model_files(value: float = 1.0) -> dict[str, bytes]:
    """A model whose one tensor is full of `value`, among files that nobody needs."""
    return {
        "config.json": b'{"model_type": "bert"}',
        "tokenizer.json": b"{}",
        "model.safetensors": save({"w": np.full((64, 64), value, np.float32)}),
        "vocab.txt": b"word",
        "README.md": b"# tiny",
        "tf_model.h5": b"h5",
        "pytorch_model.bin": b"pickle",
        "onnx/model_O3.onnx": b"onnx",
        "1_Pooling/config.json": b"{}",
    }


def sharded_files() -> dict[str, bytes]:
    files = {name: content for name, content in model_files().items() if name.endswith(".json")}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": SHARDS}).encode()
    shards = {name: save({key: np.ones(8, np.float32)}) for key, name in SHARDS.items()}
    return files | shards


def value_of(checkpoint: Checkpoint) -> float:
    (file,) = checkpoint.weight_files()
    return float(load_file(file)["w"][0, 0])


def names_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
