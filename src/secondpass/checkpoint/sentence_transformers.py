"""What the files of sentence-transformers say of an embedder: pooling, normalisation, prompts, length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secondpass.checkpoint.layout import COLBERT, LENGTH, MODULES, inside
from secondpass.errors import CheckpointError, UnknownModel
from secondpass.json_file import read_json, read_json_list
from secondpass.text.documents import clean

# Their name of a pooling -> ours, in the order in which several are joined. A newer form of the file has them in
# "pooling_mode"; the older has a key for each.
_POOLING_MODES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
    "lasttoken": "last",
}
_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SETTINGS = "config_sentence_transformers.json"
# What is computed here, in the only order
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_OTHERS = {"LogitScore": "secondpass.Reranker", "MultiVectorMask": "secondpass.ColBERT"}
# Names that checkpoints use for the prompt of a kind, first come, first taken.
_KINDS = {"query": ("query", "search_query"), "document": ("document", "passage", "corpus", "search_document")}


@dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """prompts are by kind ("query", "document") and never empty; max_length is None where none is given.

    pooling is one, or several joined by "+"; dense are the folders of the layers that its vector goes through.
    """

    pooling: str = "mean"
    dense: tuple[Path, ...] = ()
    is_normalized: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None
    has_lowered_case: bool = False


def read_settings(folder: Path) -> SentenceSettings:
    """The settings of an embedder's folder; without modules.json the mean, as sentence-transformers does.

    Raises UnknownModel for a module or a pooling that is not computed here, CheckpointError for unreadable files.
    """
    if (folder / COLBERT).is_file():
        raise UnknownModel(f"{folder}: {COLBERT} makes it late interaction; open it with secondpass.ColBERT")
    modules = computed_modules(folder)
    unknown = [kind for kind, _ in modules if kind not in _MODULES]
    if unknown:
        other = f"; open it with {_OTHERS[unknown[0]]}" if unknown[0] in _OTHERS else ""
        raise UnknownModel(f"{folder}: modules.json asks for {unknown[0]}; there are {', '.join(_MODULES)}{other}")
    kinds = [kind for kind, _ in modules]
    if kinds != sorted(kinds, key=_MODULES.index) or ("Dense" in kinds and "Pooling" not in kinds):
        raise UnknownModel(
            f"{folder}: modules.json has {', '.join(kinds)}; only {', '.join(_MODULES)}, in this order"
        )
    pooling = [path for kind, path in modules if kind == "Pooling"]
    apart = [path for kind, path in modules if kind == "Transformer" and path]  # where it has a length of its own
    own = inside(folder, apart[0]) if apart else folder
    return SentenceSettings(
        pooling=pooling_of(inside(folder, pooling[0]) / "config.json") if pooling else "mean",
        dense=tuple(inside(folder, path) for kind, path in modules if kind == "Dense"),
        is_normalized=any(kind == "Normalize" for kind, _ in modules),
        prompts=prompts_of(folder / SETTINGS),
        max_length=named_length(own),
        has_lowered_case=read_if_there(own / LENGTH).get("do_lower_case") is True,
    )


def dense_layers(folder: Path, modules: Sequence[tuple[str, str]]) -> list[Path]:
    """Folders of the linear layers over each token, in order, where the modules are nothing else; else none.

    Raises UnknownModel for a layer that is more than linear.
    """
    if not modules or modules[0][0] != "Transformer" or {kind for kind, _ in modules[1:]} != {"Dense"}:
        return []
    layers = [inside(folder, path) for _, path in modules[1:]]
    for layer in layers:
        activation = str(dense_settings(layer).get("activation_function", "Tanh"))
        if activation.rsplit(".", 1)[-1] != "Identity":
            raise UnknownModel(f"{layer}: has the activation {activation}; a layer over tokens is linear")
    return layers


def dense_settings(layer: Path) -> dict[str, Any]:
    """What a layer's config.json says: in_features, out_features, activation_function, use_residual."""
    return read_json(layer / "config.json")


def layer_file(layer: Path) -> Path:
    """The weights of a layer's folder. Raises CheckpointError where there are none."""
    file = next((f for f in (layer / "model.safetensors", layer / "pytorch_model.bin") if f.is_file()), None)
    if file is None:
        raise CheckpointError(f"{layer}: no model.safetensors or pytorch_model.bin")
    return file


def named_length(folder: Path) -> int | None:
    """The length in tokens that sentence-transformers cuts at, where it wrote one; for cross-encoders too."""
    file = folder / LENGTH
    length = read_if_there(file).get("max_seq_length")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        raise CheckpointError(f"{file}: max_seq_length is {length!r}; a whole number from 1 is needed")
    return length


def named_activation(folder: Path) -> str | None:
    """The activation of a cross-encoder's logits that sentence-transformers wrote, from version 5.4 on only there."""
    return read_if_there(folder / SETTINGS).get("activation_fn")


def read_if_there(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    return read_json(file) if file.is_file() else {}


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """(kind, path) of each module; a kind is the last part of its class's name."""
    file = folder / MODULES
    if not file.is_file():
        return []
    try:
        return [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in read_json_list(file)]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: not a list of modules with 'type' and 'path': {error}") from error


def computed_modules(folder: Path) -> list[tuple[str, str]]:
    """Those that do something but in training."""
    return [module for module in read_modules(folder) if module[0] != "Dropout"]


def pooling_of(file: Path) -> str:
    """The pooling that a module's config.json asks for. Raises UnknownModel for one that is not computed here."""
    config = read_json(file)
    names = [
        _POOLING_KEYS.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value
    ]
    named = config.get("pooling_mode")
    if named is not None:
        names = [named] if isinstance(named, str) else list(named)
    if not names or not all(name in _POOLING_MODES for name in names):
        raise UnknownModel(f"{file}: asks for pooling {names}; there are {', '.join(_POOLING_MODES)}")
    if config.get("include_prompt") is False:
        raise UnknownModel(
            f"{file}: include_prompt is false; a pooling over the whole row, prompt included, is needed"
        )
    return "+".join(ours for theirs, ours in _POOLING_MODES.items() if theirs in names)


def prompts_of(file: Path) -> dict[str, str]:
    """By kind; default_prompt_name is of texts of any kind that has none of its own.

    Newer versions write empty prompts where a model's own were never told to them: these count as none.
    """
    config = read_if_there(file)
    prompts, default = config.get("prompts") or {}, str(config.get("default_prompt_name"))
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values() if text):
        raise CheckpointError(f"{file}: prompts is no object of texts")
    kinds = {kind: (*names, default) for kind, names in _KINDS.items()}
    found = {kind: [clean(prompts[name]) for name in names if prompts.get(name)] for kind, names in kinds.items()}
    return {kind: values[0] for kind, values in found.items() if values}
