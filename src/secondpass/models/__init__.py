"""Architectures. A new one is a file here and a row in BACKBONES.

A file has a frozen config with `from_hf`, `max_length` and `classifier()`, a backbone
`forward(batch: Packed, keep) -> states`, and the tables RENAMES and IGNORED.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from secondpass.errors import UnknownModel

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
}


def architecture(model_type: str) -> tuple[ModuleType, str, str]:
    """The module of a model_type and the names of its config and backbone classes."""
    if model_type not in BACKBONES:
        known = ", ".join(sorted(BACKBONES))
        raise UnknownModel(f"no backbone for model_type {model_type!r}; there are {known}")
    module, config, backbone = BACKBONES[model_type]
    return import_module(f"secondpass.models.{module}"), config, backbone
