"""What the files of sentence-transformers say of an embedder: pooling, normalisation, prompts, length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secondpass.checkpoint.layout import LENGTH, inside
from secondpass.errors import CheckpointError, UnknownModel
from secondpass.json_file import read_json, read_json_list
from secondpass.text.documents import clean

# Their key -> ours. A newer form of the file has "pooling_mode" with one of the values.
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_POOLING_MODES = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_MODULES = ("Transformer", "Pooling", "Normalize")
# Names that checkpoints use for the prompt of a kind, first come, first taken.
_KINDS = {"query": ("query", "search_query"), "document": ("document", "passage", "corpus", "search_document")}


@dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """prompts are by kind ("query", "document") and never empty; max_length is None where none is given."""

    pooling: str = "mean"
    is_normalized: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None


def read_settings(folder: Path) -> SentenceSettings:
    """The settings of an embedder's folder; without modules.json the mean, as sentence-transformers does.

    Raises UnknownModel for a module or a pooling that is not computed here, CheckpointError for unreadable files.
    """
    modules = _read_modules(folder)
    unknown = [kind for kind, _ in modules if kind not in _MODULES]
    if unknown:
        raise UnknownModel(f"{folder}: modules.json asks for {unknown[0]}; there are {', '.join(_MODULES)}")
    pooling = [path for kind, path in modules if kind == "Pooling"]
    apart = [path for kind, path in modules if kind == "Transformer" and path]  # where it has a length of its own
    return SentenceSettings(
        pooling=_pooling(inside(folder, pooling[0]) / "config.json") if pooling else "mean",
        is_normalized=any(kind == "Normalize" for kind, _ in modules),
        prompts=_prompts(folder / "config_sentence_transformers.json"),
        max_length=named_length(inside(folder, apart[0]) if apart else folder),
    )


def named_length(folder: Path) -> int | None:
    """The length in tokens that sentence-transformers cuts at, where it wrote one; for cross-encoders too."""
    file = folder / LENGTH
    length = _read(file).get("max_seq_length")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        raise CheckpointError(f"{file}: max_seq_length is {length!r}; a whole number from 1 is needed")
    return length


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _read_modules(folder: Path) -> list[tuple[str, str]]:
    """(kind, path) of each module; a kind is the last part of its class's name."""
    file = folder / "modules.json"
    if not file.is_file():
        return []
    try:
        return [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in read_json_list(file)]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: not a list of modules with 'type' and 'path': {error}") from error


def _pooling(file: Path) -> str:
    config = read_json(file)
    asked = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    names = [_POOLINGS.get(key, key) for key in asked]
    if isinstance(config.get("pooling_mode"), str):
        names = [_POOLING_MODES.get(config["pooling_mode"], config["pooling_mode"])]
    if len(names) != 1 or names[0] not in _POOLING_MODES.values() or config.get("include_prompt") is False:
        raise UnknownModel(f"{file}: asks for pooling {names}; one of cls, mean, last over the whole row is needed")
    return names[0]


def _prompts(file: Path) -> dict[str, str]:
    """Newer versions write empty prompts where a model's own were never told to them: these count as none."""
    prompts = _read(file).get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values() if text):
        raise CheckpointError(f"{file}: prompts is no object of texts")
    found = {kind: [clean(prompts[name]) for name in names if prompts.get(name)] for kind, names in _KINDS.items()}
    return {kind: values[0] for kind, values in found.items() if values}
