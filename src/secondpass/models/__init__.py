"""Architectures. A new one is a file here and a row in FAMILIES (text/families.py).

A file has a frozen config (`BackboneConfig`, with `from_hf`), a backbone (`Backbone`), and the tables RENAMES and
IGNORED.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from secondpass.errors import CheckpointError
from secondpass.text.families import family_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from secondpass.models.heads import ClassifierConfig, LogitConfig
    from secondpass.packed import Keep, Packed

# What values of another kind or size raise: they are a stranger's, and no bug.
_UNUSABLE = (TypeError, ValueError, AttributeError, ArithmeticError, IndexError, RuntimeError)


class BackboneConfig(Protocol):
    """What an engine and a head need to know of any backbone."""

    @property
    def width(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def mlp_width(self) -> int: ...
    @property
    def num_layers(self) -> int: ...

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""
        ...

    @property
    def reads(self) -> ClassifierConfig | LogitConfig:
        """How a head reads its states: a classifier's of its own kind, or as logits of words."""
        ...


class Backbone(Protocol):
    """A module that reads packed rows. `forward` may be replaced by what computes the same (autocast in training)."""

    forward: Callable[..., Tensor]

    @property
    def config(self) -> BackboneConfig: ...
    @property
    def layers(self) -> nn.ModuleList: ...

    def requires_grad_(self, requires_grad: bool = True) -> object: ...

    def __call__(self, batch: Packed, keep: Keep = "all") -> Tensor:
        """Hidden states (T, C), or (N, C) of each row's first or last token."""
        ...


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A backbone built from a config.json, its config, and how a checkpoint names its weights."""

    config: BackboneConfig
    backbone: Backbone
    renames: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]


def build_backbone(config: Mapping[str, Any]) -> Architecture:
    """The backbone that config.json describes, without weights.

    Raises UnknownModel for a model_type without a family, CheckpointError for a config.json that lacks a key.
    """
    family = family_of(config)
    settings = settings_of(config)
    module = import_module(f"{__name__}.{family.backbone.partition('.')[0]}")
    try:
        backbone = named(family.backbone)(settings)
    except _UNUSABLE as error:
        raise CheckpointError(f"config.json: its sizes make no {family.backbone}: {error}") from error
    return Architecture(config=settings, backbone=backbone, renames=module.RENAMES, ignored=module.IGNORED)


def settings_of(config: Mapping[str, Any]) -> BackboneConfig:
    """The backbone's settings. Raises as `build_backbone` does."""
    try:
        settings: BackboneConfig = named(family_of(config).settings)(config)
        return settings
    except KeyError as error:
        model_type = config.get("model_type")
        raise CheckpointError(f"config.json has no {error}, which model_type {model_type!r} needs") from error
    except _UNUSABLE as error:
        raise CheckpointError(f"config.json: a setting is of another kind than is needed: {error}") from error


def named(name: str) -> Any:
    """What a family calls "module.attribute" of this folder."""
    module, _, attribute = name.partition(".")
    return attrgetter(attribute)(import_module(f"{__name__}.{module}"))
