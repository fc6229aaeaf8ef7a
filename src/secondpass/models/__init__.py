"""Architectures. A new one is a file here and a row in BACKBONES.

A file has a frozen config with `from_hf`, `max_length` and `classifier()`, a backbone
`forward(batch: Packed, keep) -> states`, and the tables RENAMES and IGNORED.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from secondpass.errors import CheckpointError, UnknownModel

# model_type in config.json -> module below, config class, backbone class
BACKBONES: dict[str, tuple[str, str, str]] = {
    "bert": ("bert", "BertConfig", "Bert"),
    "roberta": ("bert", "BertConfig", "Bert"),
    "xlm-roberta": ("bert", "BertConfig", "Bert"),
    "modernbert": ("modernbert", "ModernBertConfig", "ModernBert"),
    "new": ("gte", "GteConfig", "Gte"),
    "gte": ("gte", "GteConfig", "Gte"),
    "deberta-v2": ("deberta", "DebertaConfig", "Deberta"),
    "nomic_bert": ("nomic", "NomicConfig", "Nomic"),
    "gemma": ("decoder", "DecoderConfig", "Decoder"),
    "gemma2": ("decoder", "DecoderConfig", "Decoder"),
    "cost_wise_gemma": ("decoder", "DecoderConfig", "Decoder"),
    "minicpm": ("decoder", "DecoderConfig", "Decoder"),
    "qwen2": ("decoder", "DecoderConfig", "Decoder"),
    "qwen3": ("decoder", "DecoderConfig", "Decoder"),
    "llama": ("decoder", "DecoderConfig", "Decoder"),
    "mistral": ("decoder", "DecoderConfig", "Decoder"),
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A backbone built from a config.json, its settings, and how a checkpoint names its weights."""

    settings: Any
    backbone: Any
    renames: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]


def build_backbone(config: Mapping[str, Any]) -> Architecture:
    """The backbone that config.json describes, without weights.

    Raises UnknownModel for a model_type that is not in BACKBONES, CheckpointError for a config.json that lacks a key.
    """
    model_type = config.get("model_type")
    if model_type not in BACKBONES:
        known = ", ".join(sorted(BACKBONES))
        raise UnknownModel(f"no backbone for model_type {model_type!r}; there are {known}")
    name, config_class, backbone_class = BACKBONES[model_type]
    module = import_module(f"secondpass.models.{name}")
    try:
        settings = getattr(module, config_class).from_hf(config)
    except KeyError as error:
        raise CheckpointError(f"config.json has no {error}, which model_type {model_type!r} needs") from error
    backbone = getattr(module, backbone_class)(settings)
    return Architecture(settings=settings, backbone=backbone, renames=module.RENAMES, ignored=module.IGNORED)
