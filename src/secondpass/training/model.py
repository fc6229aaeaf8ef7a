"""A cross-encoder that can be trained: any encoder's checkpoint, with a head of its own or a fresh one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from secondpass.checkpoint.adapter import change_of
from secondpass.checkpoint.checkpoint import Checkpoint, open_checkpoint
from secondpass.checkpoint.save import Naming, classifier_config
from secondpass.checkpoint.weights import load_weights, rename
from secondpass.engine.batches import memory_checked
from secondpass.errors import UnknownModel
from secondpass.models.attention import pick_kernel, use_kernel
from secondpass.models.cross_encoder import CrossEncoder
from secondpass.packed import pack
from secondpass.text.families import FAMILIES, SavedHead, num_labels, recipe_for, saved_head
from secondpass.text.recipe import Recipe
from secondpass.text.tokenizer import Tokenizer
from secondpass.types import Row

FRESH_STD = 0.02  # of BERT's own start (Devlin et al. 2019)
# Of the backbone, what a frozen vocabulary leaves alone.
WORDS = "backbone.word.weight"


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """A float32 model on its device, and what is needed to write it down again.

    fresh are our names of the tensors that were not in the checkpoint. config is that of the result.
    """

    checkpoint: Checkpoint
    model: CrossEncoder
    recipe: Recipe
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    layout: SavedHead | None
    naming: Naming
    fresh: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype

    @property
    def max_length(self) -> int:
        """The longest row that the model can read, in tokens."""
        longest: int = self.model.backbone.config.max_length
        known = self.tokenizer.max_length
        return longest if known is None else min(longest, known)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by our names."""
        return {name: tensor for name, tensor in self.model.named_parameters() if tensor.requires_grad}

    def logits(self, rows: Sequence[Row]) -> Tensor:
        """Scores (N,) of the rows in float32, by the forward pass that the saved model has."""
        with memory_checked(sum(map(len, rows))):
            scores: Tensor = self.model(pack(rows).to(self.device))
        return scores[:, 0]


def open_trainable(
    model: str | Path | Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    has_frozen_words: bool = False,
    has_gradient_checkpointing: bool = False,
) -> Trainable:
    """The model of a folder or of the hub: a reranker as it is, a plain encoder with a fresh head drawn by `seed`.

    Raises UnknownModel for what is no encoder, CheckpointError for a damaged checkpoint.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    _check_encoder(checkpoint.config)
    has_head = _has_head(checkpoint.config)
    layout = None if has_head else saved_head(checkpoint.config)
    config = dict(checkpoint.config) if layout is None else classifier_config(checkpoint.config, layout)
    with torch.device("meta"):
        net = CrossEncoder(config, recipe_for(config))
    source = _Source(checkpoint, net, layout, seed)
    _load(net, checkpoint, source, has_head=has_head)
    net.to(device).requires_grad_(True)
    use_kernel(net, pick_kernel(device, dtype, net.backbone.config.head_width, has_gradient=True))
    if has_frozen_words:
        net.get_parameter(WORDS).requires_grad_(False)
    if has_gradient_checkpointing:
        recompute_blocks(net)
    if dtype != torch.float32:  # the backbone alone; what is above it makes float32 of its states
        net.backbone.forward = torch.autocast(device.type, dtype=dtype)(net.backbone.forward)
    return Trainable(
        checkpoint=checkpoint,
        model=net,
        recipe=net.recipe,
        tokenizer=checkpoint.tokenizer,
        config=config,
        layout=layout,
        naming=source.naming,
        fresh=tuple(source.fresh),
        device=device,
        dtype=dtype,
    )


def _load(net: CrossEncoder, checkpoint: Checkpoint, source: _Source, *, has_head: bool) -> None:
    """Float32 weights in memory of their own, which may be written to, not mapped from the file."""
    load_weights(
        net,
        checkpoint.weight_files(),
        renames=net.renames,
        ignored=net.ignored if has_head else (),
        dtype=torch.float32,
        change=source.changed,
    )
    for parameter in net.parameters():
        parameter.data = parameter.data.clone()


def recompute_blocks(net: CrossEncoder) -> None:
    """Gradient checkpointing (Chen et al. 2016): only what goes into each block is kept for the backward pass."""
    for block in net.backbone.layers:
        block.forward = partial(recomputed, block.forward, use_reentrant=False, preserve_rng_state=False)


def _check_encoder(config: Mapping[str, Any]) -> None:
    model_type = str(config.get("model_type"))
    known = [name for name, family in FAMILIES.items() if family.recipe and family.recipe.head == "classifier"]
    if model_type not in known:
        raise UnknownModel(f"model_type {model_type!r} cannot be trained; encoders can: {', '.join(known)}")


def _has_head(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint is a classifier of one label, which is what a reranker is."""
    names = config.get("architectures") or ()
    return any(name.endswith("ForSequenceClassification") for name in names) and num_labels(config) == 1


class _Source:
    """What is read from a checkpoint on its way into the model: names are noted, a head is added where none is."""

    def __init__(self, checkpoint: Checkpoint, net: CrossEncoder, layout: SavedHead | None, seed: int) -> None:
        self._adapted = change_of(checkpoint)
        self._layout = layout
        self._shapes = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
        self._ignored: Collection[str] = net.ignored
        self._generator = torch.Generator().manual_seed(seed)
        self.naming = Naming(renames=net.renames)
        self.fresh: list[str] = []

    def changed(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        tensors = tensors if self._adapted is None else self._adapted(tensors)
        yield from self.naming.noted(tensors if self._layout is None else self._wanted(tensors, self._layout))
        if self._layout is not None:
            yield from self._added(self._layout)

    def _wanted(self, tensors: Iterable[tuple[str, Tensor]], layout: SavedHead) -> Iterator[tuple[str, Tensor]]:
        """The backbone, and what transformers too would take into the head; not the heads of pre-training."""
        heads = set(layout.head.values())
        for name, tensor in tensors:
            name = layout.full_name(name)
            target = rename(name, self.naming.renames).partition("@")[0]
            is_head = target.startswith("head.")
            is_ours = name.rpartition(".")[0] in heads and self._shapes.get(target) == tuple(tensor.shape)
            if target in self._shapes and (is_ours or not is_head):
                yield name, tensor

    def _added(self, layout: SavedHead) -> Iterator[tuple[str, Tensor]]:
        for target, shape in self._shapes.items():
            if target.startswith("head.") and target not in self.naming.blocks:
                module, _, kind = target.rpartition(".")
                name, tensor = f"{layout.head[module]}.{kind}", self._drawn(target, shape)
                self.fresh.append(target)
                self.naming.note(name, tensor)
                yield name, tensor

    def _drawn(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        if name.endswith("bias"):
            return torch.zeros(shape)
        return torch.randn(shape, generator=self._generator) * FRESH_STD
