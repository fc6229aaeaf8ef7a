"""A checkpoint: a folder in Hugging Face layout, here on disk or fetched from a hub and pinned to a commit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

from secondpass.atomic import at_home
from secondpass.checkpoint.config import read_config
from secondpass.checkpoint.layout import ADAPTER, GRAPHS, INDEX, WEIGHED, WEIGHTS, read_header, shard_names
from secondpass.checkpoint.scoring_modules import told
from secondpass.checkpoint.sentence_transformers import named_length
from secondpass.errors import CheckpointError, DownloadError
from secondpass.json_file import read_json
from secondpass.text.families import (
    BY_LAYER,
    FAMILIES,
    OWN_PROMPT,
    named_prompt,
    recipe_for,
    unlabelled_head,
)
from secondpass.text.recipe import Recipe
from secondpass.text.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parent.parent / "assets" / "minilm"
MULTILINGUAL = "multilingual"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder whose files are all here. revision is the commit that a hub name resolved to.

    Of an adapter, `folder` and `config` are its base's, `adapter` is the folder of what changes the base, and `base`
    is the checkpoint that it changes.
    """

    name: str
    folder: Path
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    adapter: Path | None = None
    base: Checkpoint | None = None

    @cached_property
    def recipe(self) -> Recipe:
        """How its family writes and scores a pair. Raises UnknownModel for what is no reranker."""
        return recipe_for(self.config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Read once, for all who need it. Raises CheckpointError where there is none or it is damaged."""
        return Tokenizer.from_folder(self.folder, num_ids=self.config.get("vocab_size"))

    @cached_property
    def usual_length(self) -> int | None:
        """The length in tokens that it was made for, where it says so: of an adapter its own, or else its base's."""
        own = None if self.adapter is None else named_length(self.adapter)
        return named_length(self.folder) if own is None else own

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
        own = f"{self.name}@{self.revision}" if self.revision is not None else _facts(self.adapter or self.folder)
        return own if self.base is None else f"{own} on {self.base.identity()}"

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


def _facts(folder: Path) -> str:
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in WEIGHED]
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{folder.resolve()} {facts}"


def open_checkpoint(
    model: str | Path, *, revision: str | None = None, local_files_only: bool = False, graph: bool = False
) -> Checkpoint:
    """The checkpoint of "default", "multilingual", a folder, or a hub name: "owner/name" or "owner/name@revision".

    "auto", which chooses by the texts where there are any, is "default" here.

    A hub name resolves to a commit, `main` where no revision is given, and all its files are fetched and checked
    first. `graph` asks a hub for the exported graph that the openvino engine runs instead of the weights.
    Raises ValueError for a revision of what has none, CheckpointError for what is not a checkpoint, DownloadError
    for what could not be fetched whole.
    """
    if not isinstance(model, str | PathLike):
        kind = type(model).__name__
        raise TypeError(f"model is a {kind}; give 'default', 'multilingual', a folder or a name of the hub")
    found = _find(model, revision, local_files_only=local_files_only, graph=graph)
    return _adapted(found, local_files_only=local_files_only) if _is_adapter(found.folder) else _configured(found)


def _find(model: str | Path, revision: str | None, *, local_files_only: bool, graph: bool) -> Checkpoint:
    """The folder of a model or an adapter, not read yet."""
    packaged = _packaged(str(model))
    folder = packaged or at_home(model)
    if packaged is None and not (str(model) and folder.is_dir()):  # Path("") would be the current folder
        from secondpass.checkpoint import hub

        name, wanted = _hub_name(model, revision)
        folder, commit = hub.fetch(name, wanted, local_files_only=local_files_only, graph=graph)
        return Checkpoint(name=name, folder=folder, revision=commit)
    if revision is not None:
        raise ValueError(f"revision={revision!r}: {model} is not a model of a hub and has no revisions")
    return Checkpoint(name=str(model), folder=folder)


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).is_file() and not any((folder / weights).is_file() for weights in WEIGHTS)


def _configured(found: Checkpoint) -> Checkpoint:
    configured = replace(found, config=_told(found, read_config(found.folder)))
    head = unlabelled_head(configured.config)
    labels = None if head is None else _num_rows(configured, head)
    return configured if labels is None else replace(configured, config={**configured.config, "num_labels": labels})


def _told(found: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with what the checkpoint's modules and its name tell of the score."""
    if OWN_PROMPT in config or config.get("model_type") not in FAMILIES:
        return dict(config)
    own, named = told(found.adapter or found.folder, config), named_prompt(found.name, config)
    if OWN_PROMPT in own and OWN_PROMPT in named:
        own = {OWN_PROMPT: {**named[OWN_PROMPT], **own[OWN_PROMPT]}}
    return {**config, **named, **own}


def _num_rows(checkpoint: Checkpoint, name: str) -> int | None:
    """Of a tensor, by headers of safetensors; None where it is in none. What is damaged is said when it is read."""
    with suppress(CheckpointError, OSError):
        for file in checkpoint.weight_files():
            shape = read_header(file).get(name, {}).get("shape") if file.suffix == ".safetensors" else None
            if isinstance(shape, list) and shape and isinstance(shape[0], int):
                return shape[0]
    return None


def _adapted(found: Checkpoint, *, local_files_only: bool) -> Checkpoint:
    """An adapter with the base that it names, which is no adapter: so none can name itself, or go round in a ring."""
    settings = read_json(found.folder / ADAPTER)
    name, pinned = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{found.folder}: {ADAPTER} names no base_model_name_or_path")
    if pinned is not None and not isinstance(pinned, str):
        raise CheckpointError(f"{found.folder}: {ADAPTER}: revision is {pinned!r}; a branch, tag or commit is needed")
    if found.revision is not None and not _HUB_NAME.fullmatch(name):
        raise CheckpointError(f"{found.name}: {ADAPTER} names a base outside of the hub: {name}")
    if found.revision is not None and name == found.name:
        raise CheckpointError(f"{found.name}: {ADAPTER} names itself as its base")
    try:
        base = _find(name, pinned, local_files_only=local_files_only, graph=False)
    except ValueError as error:
        raise CheckpointError(f"{found.folder}: {ADAPTER}: {error}") from error
    except (CheckpointError, DownloadError) as error:
        raise type(error)(f"{found.folder}: {ADAPTER}: base_model_name_or_path: {error}") from error
    if _is_adapter(base.folder):
        raise CheckpointError(f"{found.folder}: the base {name} is an adapter too; merge that one first")
    base = _configured(base)
    adapted = replace(found, folder=base.folder, adapter=found.folder, base=base)
    return replace(adapted, config=_told(adapted, _adapted_config(base.config, settings)))


def _adapted_config(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A base's config.json as it holds with an adapter of these settings: bounds of early exit are the base's own."""
    found = {key: value for key, value in config.items() if key != "exit_bounds"}
    return found | {BY_LAYER: True} if settings.get(BY_LAYER) is True else found


def has_multilingual() -> bool:
    """Whether the package with the multilingual model is installed."""
    return _package() is not None


def _package() -> Path | None:
    spec = find_spec(f"secondpass_{MULTILINGUAL}")
    places = None if spec is None else spec.submodule_search_locations
    return Path(places[0]) / "model" if places else None


def _packaged(model: str) -> Path | None:
    """The folder of a model that a package carries, or None for a folder's or a hub's name."""
    if model == "default" or (model == "auto" and not Path(model).is_dir()):
        return EMBEDDED
    if model != MULTILINGUAL or Path(model).is_dir():
        return None
    folder = _package()
    if folder is None:
        raise CheckpointError(
            "'multilingual' is a model of its own package; pip install secondpass-multilingual, "
            "or in a clone: pip install ./packages/multilingual"
        )
    return folder


def _hub_name(model: str | Path, revision: str | None) -> tuple[str, str]:
    """("owner/name", revision). Raises CheckpointError for what can only be a path."""
    name, at, pinned = str(model).partition("@")
    if isinstance(model, Path) or not _HUB_NAME.fullmatch(name):
        what = "is a file, a folder is needed" if at_home(model).is_file() else "no such folder"
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
