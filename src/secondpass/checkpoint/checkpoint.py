"""A checkpoint: a folder in Hugging Face layout, here on disk or fetched from a hub and pinned to a commit."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from secondpass.errors import CheckpointError, MissingExtra
from secondpass.text.families import recipe_for
from secondpass.text.recipe import Recipe
from secondpass.text.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parent.parent / "assets" / "minilm"
INDEX = ".index.json"
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
    "modules.json",
    "config_*.json",
    "sentence_bert_config.json",
    "[0-9]*_*/config.json",
    "[0-9]*_*/model.safetensors",
    "artifact.metadata",
    "calibration.json",
    "colbert_linear.pt",
    "sparse_linear.pt",
    "adapter_config.json",
    "adapter_model.safetensors",
)
WEIGHED = (".safetensors", ".bin", ".pt", ".xml", ".onnx", ".json")  # files that scores depend on
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder whose files are all here. revision is the commit that a hub name resolved to.

    Of an adapter, `folder` and `config` are its base's, and `adapter` is the folder of what changes the base.
    """

    name: str
    folder: Path
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    adapter: Path | None = None

    @cached_property
    def recipe(self) -> Recipe:
        """How its family writes and scores a pair. Raises UnknownModel for what is no reranker."""
        return recipe_for(self.config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Read once, for all who need it. Raises CheckpointError where there is none or it is damaged."""
        return Tokenizer.from_folder(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read from the files, which a copy in another process reads again."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def weight_files(self) -> list[Path]:
        """The files that hold the weights: safetensors, sharded by an index or not, else .bin files, else a graph.

        Of the graphs only OpenVINO's name their weights.
        """
        for name in WEIGHTS:
            file = self.folder / name
            if file.is_file():
                return self._shards(file) if name.endswith(INDEX) else [file]
        for name in GRAPHS:
            if name.endswith(".xml") and (self.folder / name).is_file():
                return [self.folder / name]
        raise CheckpointError(f"{self.folder}: no model.safetensors and no pytorch_model.bin")

    def has_weights(self) -> bool:
        """Whether there are weights beside those in a graph."""
        return any((self.folder / name).is_file() for name in WEIGHTS)

    def identity(self) -> str:
        """What tells these weights from any others: the commit, or for a folder its files, their sizes and times."""
        if self.revision is not None:
            return f"{self.name}@{self.revision}"
        folders = [self.folder] if self.adapter is None else [self.folder, self.adapter]
        files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in WEIGHED]
        facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return f"{self.folder.resolve()} {facts}"

    def _shards(self, index: Path) -> list[Path]:
        names = shard_names(index)
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{index}: names {', '.join(missing)}, which is not there")
        return [self.folder / name for name in names]

    def graph(self) -> Path | None:
        """The exported graph that the openvino engine can run, where the checkpoint carries one."""
        if self.adapter is not None:
            return None  # the base's graph does not know of it
        for name in GRAPHS:
            if (self.folder / name).is_file():
                return self.folder / name
        return None


def shard_names(index: Path) -> list[str]:
    """The files that an index of weights names, none of them outside its folder."""
    weight_map = read_json(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{index}: names no file; a weight_map of tensor to file is needed")
    for name in names:
        inside(index.parent, name)
    return sorted(names)


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


def settings_of(names: Collection[str], *, where: str) -> list[str]:
    """Of a repository's file names, those that say what the model is. `where` begins the message of an error."""
    if ADAPTER in names and "config.json" not in names:
        return [name for name in (ADAPTER, "adapter_model.safetensors") if name in names]
    if "config.json" not in names:
        raise CheckpointError(f"{where}: no config.json; not a model repository in Hugging Face layout")
    vocabulary = [name for name in ("tokenizer.json", "vocab.txt") if name in names]
    if not vocabulary:
        raise CheckpointError(f"{where}: no tokenizer.json; save one with a fast tokenizer of transformers")
    found = [name for name in names if any(_matches(name, pattern) for pattern in SETTINGS)]
    return sorted({*found, vocabulary[0]})


def weights_of(names: Collection[str], *, graph: bool, where: str) -> list[str]:
    """Of a repository's file names, those of one set of weights: a graph for the openvino engine, or tensors.

    Of sharded weights it is the index alone. Empty for an adapter, which has its weights among its settings.
    """
    graphs = next((parts for name in GRAPHS if (parts := _graph_parts(name, names))), [])
    tensors = [name for name in WEIGHTS if name in names][:1]
    if graph and not graphs:
        raise CheckpointError(f"{where}: no openvino/ or onnx/ graph; use the torch engine")
    if graph or (graphs and not (tensors and _has_torch())):
        return graphs
    if tensors and not _has_torch():
        raise MissingExtra("torch", "torch")
    if not tensors and "adapter_model.safetensors" not in names:
        raise CheckpointError(f"{where}: no model.safetensors and no pytorch_model.bin; convert it to safetensors")
    return tensors


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _graph_parts(name: str, names: Collection[str]) -> list[str]:
    """The files of a graph, or none where it is not whole."""
    if name not in names:
        return []
    if name.endswith(".onnx"):
        return [name, *(part for part in (f"{name}_data", f"{name}.data") if part in names)]
    weights = name.removesuffix(".xml") + ".bin"
    return [name, weights] if weights in names else []


def _has_torch() -> bool:
    return find_spec("torch") is not None


def open_checkpoint(
    model: str | Path, *, revision: str | None = None, local_files_only: bool = False, graph: bool = False
) -> Checkpoint:
    """The checkpoint of "default", "multilingual", a folder, or a hub name: "owner/name" or "owner/name@revision".

    A hub name resolves to a commit, `main` where no revision is given, and all its files are fetched and checked
    first. `graph` asks a hub for the exported graph that the openvino engine runs instead of the weights.
    Raises ValueError for a revision of what has none, CheckpointError for what is not a checkpoint, DownloadError
    for what could not be fetched whole.
    """
    from secondpass.checkpoint import hub  # here, since it is built on this module

    packaged = _packaged(str(model))
    folder = packaged or Path(model).expanduser()
    if packaged is None and not (str(model) and folder.is_dir()):  # Path("") would be the current folder
        name, wanted = _hub_name(model, revision)
        folder, commit = hub.fetch(name, wanted, local_files_only=local_files_only, graph=graph)
        return _opened(name, folder, commit, local_files_only=local_files_only)
    if revision is not None:
        raise ValueError(f"revision={revision!r}: {model} is not a model of a hub and has no revisions")
    return _opened(str(model), folder, None, local_files_only=local_files_only)


def _packaged(model: str) -> Path | None:
    """The folder of a model that a package carries, or None for a folder's or a hub's name."""
    if model == "default":
        return EMBEDDED
    if model != "multilingual" or Path(model).is_dir():
        return None
    spec = find_spec("secondpass_multilingual")
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            "'multilingual' is a model of its own package; pip install secondpass-multilingual, "
            "or in a clone: pip install ./packages/multilingual"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _opened(name: str, folder: Path, revision: str | None, *, local_files_only: bool) -> Checkpoint:
    """A model, or an adapter with the base that it names."""
    if not (folder / ADAPTER).is_file() or any((folder / weights).is_file() for weights in WEIGHTS):
        return Checkpoint(name=name, folder=folder, revision=revision, config=read_json(folder / "config.json"))
    settings = read_json(folder / ADAPTER)
    base, pinned = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder}: {ADAPTER} names no base_model_name_or_path")
    if revision is not None and not _HUB_NAME.fullmatch(base):
        raise CheckpointError(f"{name}: {ADAPTER} names a base outside of the hub: {base}")
    whole = open_checkpoint(base, revision=pinned, local_files_only=local_files_only)
    if whole.adapter is not None:
        raise CheckpointError(f"{folder}: the base {base} is an adapter too; merge that one first")
    return replace(whole, name=name, revision=revision, adapter=folder)


def _hub_name(model: str | Path, revision: str | None) -> tuple[str, str]:
    """("owner/name", revision). Raises CheckpointError for what can only be a path."""
    name, at, pinned = str(model).partition("@")
    if isinstance(model, Path) or not _HUB_NAME.fullmatch(name):
        what = "is a file, a folder is needed" if Path(model).expanduser().is_file() else "no such folder"
        raise CheckpointError(f"{str(model)!r}: {what}; a model of the hub is written owner/name{_suggestion(name)}")
    if at and revision not in (None, pinned):
        raise ValueError(f"{model}: revision={revision!r} contradicts the name; give one of them")
    wanted = pinned if at else revision or "main"
    if not _REVISION.fullmatch(wanted):
        raise ValueError(f"{wanted!r} is not a revision; a branch, a tag or a commit is needed")
    return name, wanted


def _suggestion(name: str) -> str:
    from secondpass.text.catalogue import KNOWN

    tail = name.rsplit("/")[-1].lower()
    same = [known.name for known in KNOWN if known.name.split("/")[-1].lower() == tail]
    return f", here {same[0]}" if same else ""
