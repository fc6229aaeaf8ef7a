"""A cross-encoder as an ordinary Hugging Face folder, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.checkpoint.checkpoint import read_json
from secondpass.checkpoint.weights import Renames, rename
from secondpass.errors import CheckpointError
from secondpass.text.families import SavedHead

if TYPE_CHECKING:
    from torch import Tensor

# What makes a tokenizer; nothing else of a base is copied, an embedder's modules.json would be wrong for a reranker.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spm.model",
)
TOKENIZER_SETTINGS = "tokenizer_config.json"
_NOT_KEPT = ("_name_or_path", "num_labels", "problem_type", "torch_dtype")


def classifier_config(config: Mapping[str, Any], head: SavedHead) -> dict[str, Any]:
    """config.json of a classifier with one label, of whatever it was before."""
    kept = {key: value for key, value in config.items() if key not in _NOT_KEPT}
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return {**kept, "architectures": [head.architecture], **labels}


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
    are by their names in the file. max_length: where all libraries that load the folder cut a row from now on.
    Raises CheckpointError where a file cannot be written.
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


def tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, which appears whole or not at all."""
    from safetensors.torch import save_file

    own = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with whole_file(file) as partial:
        save_file(own, partial, metadata={"format": "pt", **(metadata or {})})
        partial.chmod(0o644)  # safetensors makes files that nobody else can read


def write_text(file: Path, text: str) -> None:
    with whole_file(file) as partial:
        partial.write_text(text, "utf-8")


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Lines, gzipped where the file's name says so."""
    import gzip

    with whole_file(file) as partial:
        if file.suffix == ".gz":
            with gzip.open(partial, "wt", encoding="utf-8") as stream:
                stream.writelines(line + "\n" for line in lines)
        else:
            with partial.open("w", encoding="utf-8") as stream:
                stream.writelines(line + "\n" for line in lines)


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A name to write under; afterwards the file has its own name and is on disk. On an error nothing is left.

    Raises CheckpointError where the disk is full or the place cannot be written to.
    """
    from safetensors import SafetensorError

    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(file)
        sync_folder(file.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be written ({error}); what was there before is untouched") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def sync_folder(folder: Path) -> None:
    """Renames in a folder are on disk after this; where folders cannot be opened, as on Windows, nothing is done."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
