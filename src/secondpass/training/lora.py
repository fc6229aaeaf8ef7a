"""LoRA: frozen weights with low-rank updates beside them, merged or written in PEFT's layout at the end.

Hu et al. 2021. A joined matrix, such as query, key and value in one, has one A for all its parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondpass.checkpoint.adapter import WEIGHTS
from secondpass.checkpoint.atomic import write_text
from secondpass.checkpoint.layout import ADAPTER, LENGTH
from secondpass.checkpoint.save import write_tensors
from secondpass.models.layers import ACTIVATIONS, Linear
from secondpass.training.model import Trainable
from secondpass.training.settings import LoraSettings

TARGETS = {"attention": re.compile(r"qkv|out"), "all": re.compile(r".*")}
_PREFIX = "base_model.model."


class LowRank(nn.Module):
    """A linear layer W with its update: activation(x (W + scale B A)^T + b) + residual, W and b frozen."""

    def __init__(self, linear: Linear, *, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        num_out, num_in = linear.weight.shape
        start = torch.empty(rank, num_in)
        nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)  # as PEFT starts; B is 0
        self.a = nn.Parameter(start.to(linear.weight.device))
        self.b = nn.Parameter(linear.weight.new_zeros(num_out, rank))
        self.scale = scale
        self._frozen = (linear.weight, linear.bias)  # in a tuple, so that they are not parameters twice

    def forward(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        y = F.linear(x, *self._frozen) + F.linear(F.linear(x, self.a), self.b) * self.scale
        if activation is not None:
            y = ACTIVATIONS[activation](y)
        return y if residual is None else y + residual

    def merged(self) -> Tensor:
        return self._frozen[0] + self.scale * (self.b @ self.a)


def add_lora(trainable: Trainable, settings: LoraSettings, *, seed: int) -> None:
    """Freeze the backbone and put updates beside its linear layers; the head stays as it is, trained whole."""
    net = trainable.model
    net.backbone.requires_grad_(False)
    if net.word_match is not None:
        net.word_match.requires_grad_(False)  # no adapter has a place for it
    generator = torch.Generator().manual_seed(seed)
    for name, module in list(net.backbone.layers.named_modules()):
        if isinstance(module, Linear) and TARGETS[settings.targets].fullmatch(name.rpartition(".")[2]):
            scale = settings.alpha / settings.rank
            module.fused = LowRank(module, rank=settings.rank, scale=scale, generator=generator)


def updates(net: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """The updates by our name of the weight that they change."""
    for name, module in net.named_modules():
        if isinstance(module, LowRank):
            yield name.removesuffix("fused") + "weight", module


def merged_tensors(net: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by our names, updates merged in."""
    low_rank = dict(updates(net))
    inside = tuple(name.removesuffix("weight") + "fused." for name in low_rank)
    own = {name: tensor.detach() for name, tensor in net.named_parameters() if not name.startswith(inside)}
    with torch.no_grad():
        return own | {name: update.merged() for name, update in low_rank.items()}


def save_adapter(trainable: Trainable, settings: LoraSettings, folder: Path, *, max_length: int) -> None:
    """Updates and head in PEFT's layout, for the base that the run started from, read to the length of the run."""
    naming, net = trainable.naming, trainable.model
    tensors: dict[str, Tensor] = {}
    changed: list[str] = []
    for name, update in updates(net):
        for theirs, rows in naming.parts(name):
            module = theirs.removesuffix(".weight")
            changed.append(module)
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = update.a
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = update.b[rows]
    head = naming.named({name: tensor for name, tensor in net.named_parameters() if name.startswith("head.")})
    tensors |= {_PREFIX + name: tensor for name, tensor in head.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": str(trainable.checkpoint.name),
        "revision": trainable.checkpoint.revision,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": changed,
        "modules_to_save": sorted({_saved_module(name) for name in head}),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS[0], {name: tensor.detach().clone() for name, tensor in tensors.items()})
    write_text(folder / LENGTH, json.dumps({"max_seq_length": max_length}) + "\n")
    write_text(folder / ADAPTER, json.dumps(config, indent=2) + "\n")


def _saved_module(name: str) -> str:
    """The module that PEFT replaces as a whole: the outermost of the head, without the model's own prefix."""
    parts = name.split(".")
    return next(part for part in parts if part in ("classifier", "pooler", "head"))
