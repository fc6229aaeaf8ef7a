"""Which files a checkpoint is made of: names in the layout of Hugging Face, on disk or in a repository's list."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from secondpass.errors import CheckpointError, MissingExtra
from secondpass.json_file import parsed, read_json

MAX_NAME = 255  # characters of a path in a checkpoint
MAX_HEADER = 4 << 20  # bytes; a shard of a thousand tensors has 0.1 MB
INDEX = ".index.json"
LENGTH = "sentence_bert_config.json"
MODULES = "modules.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_SETTINGS = "tokenizer_config.json"
COLBERT = "artifact.metadata"  # of the colbert-ai library
REPORT = "export.json"  # beside an exported graph
ADAPTER = "adapter_config.json"
# First come, first taken, in the order of transformers: a whole file before shards, safetensors before pickles.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors" + INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX,
)
GRAPHS = ("openvino/openvino_model.xml", "openvino_model.xml", "onnx/model.onnx", "model.onnx")
# What a checkpoint may have beside its weights, and small heads of its own; a "*" does not cross a "/".
SETTINGS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    MODULES,
    "config_*.json",
    LENGTH,
    CHAT_TEMPLATE,
    "[0-9]*_*/config.json",
    "[0-9]*_*/model.safetensors",
    "[0-9]*_*/pytorch_model.bin",
    COLBERT,
    "calibration.json",
    "colbert_linear.pt",
    "sparse_linear.pt",
    ADAPTER,
)
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # first come, first taken
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
    CHAT_TEMPLATE,
)
WEIGHED = (".safetensors", ".bin", ".pt", ".xml", ".onnx", ".json", ".jinja")  # files that scores depend on


def shard_names(index: Path) -> list[str]:
    """The files that an index of weights names, none of them outside its folder."""
    weight_map = read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{index}: names no file; a weight_map of tensor to file is needed")
    for name in set(names):
        inside(index.parent, name)
    return sorted(set(names))


def inside(folder: Path, name: str) -> Path:
    """folder / name, or an error where a name in a checkpoint points out of its folder."""
    file = Path(name)
    # on Windows "C:x" and "\\x" are not absolute, and yet lie elsewhere
    if file.anchor or ".." in file.parts:
        raise CheckpointError(f"{folder}: names a file outside the checkpoint: {name[:MAX_NAME]}")
    if len(name) > MAX_NAME or "\0" in name:
        raise CheckpointError(f"{folder}: names a file as no system can: {name[:MAX_NAME]!r}")
    return folder / file


def settings_of(names: Collection[str], *, where: str) -> list[str]:
    """Of a repository's file names, those that say what the model is. `where` begins the message of an error."""
    if ADAPTER in names and "config.json" not in names:
        return [name for name in (ADAPTER, *_adapter_weights(names), LENGTH) if name in names]
    if "config.json" not in names:
        raise CheckpointError(f"{where}: no config.json; not a model repository in Hugging Face layout")
    vocabulary = [name for name in ("tokenizer.json", "vocab.txt") if name in names]
    if not vocabulary:
        raise CheckpointError(f"{where}: no tokenizer.json; save one with a fast tokenizer of transformers")
    found = [name for name in names if any(_matches(name, pattern) for pattern in SETTINGS)]
    return sorted({*found, *_adapter_weights(names), vocabulary[0]})


def _adapter_weights(names: Collection[str]) -> list[str]:
    return [name for name in ADAPTER_WEIGHTS if name in names][:1]


def weights_of(names: Collection[str], *, graph: bool, where: str) -> list[str]:
    """Of a repository's file names, those of one set of weights: a graph for the openvino engine, or tensors.

    Of sharded weights it is the index alone. Empty for an adapter, which has its weights among its settings.
    """
    graphs = next((parts for name in GRAPHS if (parts := graph_parts(name, names))), [])
    tensors = [name for name in WEIGHTS if name in names][:1]
    if graph and not graphs:
        raise CheckpointError(f"{where}: no openvino/ or onnx/ graph; use the torch engine")
    if graph or (graphs and not (tensors and _has_torch())):
        return graphs
    if tensors and not _has_torch():
        raise MissingExtra("torch", "torch")
    if not tensors and not _adapter_weights(names):
        raise CheckpointError(f"{where}: no model.safetensors and no pytorch_model.bin; convert it to safetensors")
    return tensors


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def graph_parts(name: str, names: Collection[str]) -> list[str]:
    """The files of a graph, or none where it is not whole."""
    if name not in names:
        return []
    if name.endswith(".onnx"):
        return [name, *(part for part in (f"{name}_data", f"{name}.data") if part in names)]
    weights = name.removesuffix(".xml") + ".bin"
    return [name, weights] if weights in names else []


def _has_torch() -> bool:
    return find_spec("torch") is not None


def tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def read_header(file: Path) -> dict[str, Any]:
    """Of each tensor of a safetensors file its dtype, shape and offsets, as they stand there.

    Eight bytes of length, a JSON header of that length, and the data. Raises CheckpointError for anything else,
    OSError where the file cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            raise CheckpointError(f"{file.name} has no safetensors header: it would have {length:,} bytes")
        header = parsed(stream.read(length), file.name)
    try:
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = [end for start, end in (entry["data_offsets"] for entry in tensors.values()) if 0 <= start <= end]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file.name} has no safetensors header: {type(error).__name__}: {error}") from error
    if size != (needed := 8 + length + max(ends, default=0)):
        raise CheckpointError(f"{file.name} has {size} bytes of {needed}")
    return tensors
