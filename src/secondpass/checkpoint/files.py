"""A checkpoint: a folder in Hugging Face layout, here on disk or fetched from a hub and pinned to a commit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secondpass.errors import CheckpointError

EMBEDDED = Path(__file__).parent.parent / "assets" / "minilm"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder whose files are all here. revision is the commit that a hub name resolved to."""

    name: str
    folder: Path
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def has_weights(self) -> bool:
        """Whether there are weights that the torch engine can load."""
        stems = ("model.safetensors", "pytorch_model.bin")
        return any((self.folder / f"{stem}{tail}").is_file() for stem in stems for tail in ("", ".index.json"))

    def weight_files(self) -> list[Path]:
        """The files that hold the weights: safetensors, sharded by an index or not, else .bin files."""
        for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
            index = self.folder / f"{stem}.{suffix}.index.json"
            if index.is_file():
                return self._shards(index)
            file = self.folder / f"{stem}.{suffix}"
            if file.is_file():
                return [file]
        raise CheckpointError(f"{self.folder}: no model.safetensors and no pytorch_model.bin")

    def _shards(self, index: Path) -> list[Path]:
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing or not names:
            raise CheckpointError(f"{index}: names {', '.join(missing) or 'no file'}, which is not there")
        return [inside(self.folder, name) for name in names]

    def graph(self) -> Path | None:
        """The exported graph that the openvino engine can run, where the checkpoint carries one."""
        for name in ("openvino/openvino_model.xml", "openvino_model.xml", "onnx/model.onnx", "model.onnx"):
            if (self.folder / name).is_file():
                return self.folder / name
        return None


def inside(folder: Path, name: str) -> Path:
    """folder / name, or an error where a name in a checkpoint points out of its folder."""
    file = Path(name)
    if file.is_absolute() or ".." in file.parts:
        raise CheckpointError(f"{folder}: names a file outside the checkpoint: {name}")
    return folder / file


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError that names the file."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file.parent}: no {file.name}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, a JSON object is needed")
    return content


def open_checkpoint(model: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> Checkpoint:
    """The checkpoint of "default", of a folder, or of a hub name at a revision."""
    if str(model) == "default":
        return Checkpoint(name="default", folder=EMBEDDED, config=read_json(EMBEDDED / "config.json"))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Checkpoint(name=str(model), folder=folder, config=read_json(folder / "config.json"))
    raise CheckpointError(f"{model}: no such folder")
