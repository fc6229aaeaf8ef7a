"""A cross-encoder as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.atomic import whole_file, write_text
from secondpass.checkpoint.layout import GRAPHS, REPORT, TOKENIZER_SETTINGS, graph_parts, tokenizer_files
from secondpass.checkpoint.weights import Renames, rename
from secondpass.json_file import read_json
from secondpass.text.families import SavedHead, is_classifier

if TYPE_CHECKING:
    from torch import Tensor

_NOT_KEPT = ("_name_or_path", "num_labels", "problem_type", "torch_dtype")


def classifier_config(config: Mapping[str, Any], head: SavedHead) -> dict[str, Any]:
    """config.json of a classifier with one label, of whatever it was before."""
    kept = {key: value for key, value in config.items() if key not in _NOT_KEPT}
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    named = kept["architectures"] if is_classifier(config) else [head.architecture]
    return {**kept, "architectures": named, **labels}


@dataclass(kw_only=True)
class Naming:
    """Which rows of our tensors go into the file under which names: those that the weights were read with."""

    renames: Renames
    blocks: dict[str, dict[int, tuple[str, int]]] = field(default_factory=dict)  # ours -> block -> name, rows

    def note(self, name: str, tensor: Tensor) -> None:
        target, _, block = rename(name, self.renames).partition("@")
        self.blocks.setdefault(target, {})[int(block or 0)] = (name, len(tensor) if tensor.ndim else 1)

    def noted(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The tensors as they are, each noted as it passes."""
        for name, tensor in tensors:
            self.note(name, tensor)
            yield name, tensor

    def parts(self, target: str) -> Iterator[tuple[str, slice]]:
        """(name, rows) of each tensor in the file that our tensor is made of."""
        start = 0
        for _, (name, num_rows) in sorted(self.blocks[target].items()):
            yield name, slice(start, start + num_rows)
            start += num_rows

    def named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under the file's names."""
        return {name: tensor[rows] for ours, tensor in tensors.items() for name, rows in self.parts(ours)}


def save_model(
    folder: Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    base: Path,
    max_length: int | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write config.json, the base's tokenizer, other `texts` by file name, and last of all the weights.

    Each file is replaced at once, so that a folder that could be loaded before can be loaded at any moment. tensors
    are by their names in the file. max_length: where all libraries that load the folder cut a row from now on. A
    graph of other weights that lay in the folder goes. Raises CheckpointError where a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    written = {"config.json": json.dumps({**config, "torch_dtype": dtype}, indent=2, ensure_ascii=False) + "\n"}
    for name, text in (written | dict(texts or {})).items():
        write_text(folder / name, text)
    for file in tokenizer_files(base):
        with whole_file(folder / file.name) as partial:
            shutil.copyfile(file, partial)
    if max_length is not None:
        file = folder / TOKENIZER_SETTINGS
        settings = read_json(file) if file.is_file() else {}
        write_text(file, json.dumps(settings | {"model_max_length": max_length}, indent=2, ensure_ascii=False) + "\n")
    write_tensors(folder / "model.safetensors", tensors)
    _remove_graphs(folder)


def _remove_graphs(folder: Path) -> None:
    """What was exported from the weights that were here before would still score as they did."""
    names = [file.relative_to(folder).as_posix() for file in folder.glob("**/*") if file.is_file()]
    for name in (REPORT, *(part for graph in GRAPHS for part in graph_parts(graph, names))):
        (folder / name).unlink(missing_ok=True)


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, which appears whole or not at all."""
    from safetensors.torch import save_file

    own = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with whole_file(file) as partial:
        save_file(own, partial, metadata={"format": "pt", **(metadata or {})})
        partial.chmod(0o644)  # safetensors makes files that nobody else can read
