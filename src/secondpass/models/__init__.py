"""Architectures. A new one is a file here and a row in FAMILIES (text/families.py).

A file has a frozen config with `from_hf`, `max_length` and `classifier()`, a backbone
`forward(batch: Packed, keep) -> states`, and the tables RENAMES and IGNORED.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import Any

from secondpass.errors import CheckpointError
from secondpass.text.families import family_of


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A backbone built from a config.json, its settings, and how a checkpoint names its weights."""

    settings: Any
    backbone: Any
    renames: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]


def build_backbone(config: Mapping[str, Any]) -> Architecture:
    """The backbone that config.json describes, without weights.

    Raises UnknownModel for a model_type without a family, CheckpointError for a config.json that lacks a key.
    """
    family = family_of(config)
    settings = settings_of(config)
    module = import_module(f"{__name__}.{family.backbone.partition('.')[0]}")
    backbone = named(family.backbone)(settings)
    return Architecture(settings=settings, backbone=backbone, renames=module.RENAMES, ignored=module.IGNORED)


def settings_of(config: Mapping[str, Any]) -> Any:
    """The backbone's settings. Raises as `build_backbone` does."""
    try:
        return named(family_of(config).settings)(config)
    except KeyError as error:
        model_type = config.get("model_type")
        raise CheckpointError(f"config.json has no {error}, which model_type {model_type!r} needs") from error


def named(name: str) -> Any:
    """What a family calls "module.attribute" of this folder."""
    module, _, attribute = name.partition(".")
    return attrgetter(attribute)(import_module(f"{__name__}.{module}"))
