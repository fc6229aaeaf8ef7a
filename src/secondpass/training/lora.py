"""LoRA: frozen weights with low-rank updates beside them, merged or written in PEFT's layout at the end.

Hu et al. 2021. A joined matrix, such as query, key and value in one, has an update for each of its projections.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondpass.atomic import lasting, write_text
from secondpass.checkpoint.layout import ADAPTER, ADAPTER_WEIGHTS, LENGTH
from secondpass.checkpoint.save import write_tensors
from secondpass.errors import MissingExtra, TrainingError
from secondpass.models.heads import Classifier
from secondpass.models.layers import ACTIVATIONS, Linear
from secondpass.text.families import BY_LAYER
from secondpass.training.model import Trainable
from secondpass.training.settings import LoraSettings

# Our modules that a name stands for; any other name is one of the checkpoint's own, such as q_proj.
GROUPS = {"attention": re.compile(r"qkv|out"), "all": re.compile(r".*")}
_PREFIX = "base_model.model."
# Parts of names that PEFT replaces as a whole.
_WHOLE = ("pre_classifier", "classifier", "pooler", "head", "linear_head", "score")


class LowRank(nn.Module):
    """A linear layer W with updates: activation(x (W + scale B A)^T + b) + residual, W and b frozen.

    parts are the rows of W that have an update, each with an A (rank, in) and a B (rows, rank) of its own, which
    lie end to end in `a` and `b`.
    """

    def __init__(
        self, linear: Linear, parts: Sequence[slice], *, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        num_in, device = linear.weight.shape[1], linear.weight.device
        starts = [torch.empty(rank, num_in) for _ in parts]
        for start in starts:
            nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)  # as PEFT starts; B is 0
        self.a = nn.Parameter(torch.cat(starts).to(device))
        self.b = nn.Parameter(torch.zeros(sum(part.stop - part.start for part in parts), rank, device=device))
        self.parts, self.rank, self.scale = tuple(parts), rank, scale
        self._linear = (linear,)  # in a tuple, so that its weights are not parameters twice
        self._num_out = len(linear.weight)
        self.base: FourBit | None = None

    def forward(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        linear = self._linear[0]
        frozen = F.linear(x, linear.weight, linear.bias) if self.base is None else self.base(x, None, None)
        y = frozen + self._update(x)
        if activation is not None:
            y = ACTIVATIONS[activation](y)
        return y if residual is None else y + residual

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows of W, A, B) of each update."""
        start = 0
        for index, part in enumerate(self.parts):
            stop = start + part.stop - part.start
            yield part, self.a[index * self.rank : (index + 1) * self.rank], self.b[start:stop]
            start = stop

    def merged(self) -> Tensor:
        weight = self._linear[0].weight.clone() if self.base is None else self.base.whole()
        for rows, a, b in self.blocks():
            weight[rows] += (self.scale * (b @ a)).to(weight.dtype)
        return weight

    def _update(self, x: Tensor) -> Tensor:
        """What is added to the outputs (T, out): 0 where no part lies."""
        inner = torch.split(F.linear(x, self.a), self.rank, dim=-1)
        found: list[Tensor] = []
        end = 0
        for (rows, _, b), part in zip(self.blocks(), inner, strict=True):
            if rows.start > end:
                found.append(part.new_zeros(*part.shape[:-1], rows.start - end))
            found.append(F.linear(part, b) * self.scale)
            end = rows.stop
        if end < self._num_out:
            found.append(inner[0].new_zeros(*inner[0].shape[:-1], self._num_out - end))
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


def add_lora(trainable: Trainable[nn.Module], settings: LoraSettings, *, seed: int) -> None:
    """Freeze the model and put updates beside its linear layers; the head is trained as the settings say.

    A head that is some rows of the output matrix stays frozen. Raises ValueError for a name that no projection has,
    and for updates of such a head or of BGE-M3's, which are files of their own.
    """
    net: Any = trainable.model
    _check_targets(trainable, settings.targets)
    heads = [f"head.{name}.weight" for name, module in net.head.named_modules() if isinstance(module, Linear)]
    if settings.head == "low_rank" and not trainable.naming.blocks.keys() >= set(heads):
        raise ValueError(
            f"head is 'low_rank'; {trainable.checkpoint.name} has none that is a tensor of its own among its "
            "weights; leave --lora-head out"
        )
    net.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    positions = [(net.backbone.layers, "backbone.layers.")]
    if settings.head == "low_rank":
        positions.append((net.head, "head."))
    elif trainable.answers is None:
        net.head.requires_grad_(True)
    for root, prefix in positions:
        for name, module in list(root.named_modules()):
            if isinstance(module, Linear):
                targets = settings.targets if root is not net.head else "all"
                parts = _targeted(trainable, f"{prefix}{name}", targets)
                if parts:
                    scale = settings.alpha / settings.rank
                    module.fused = LowRank(module, parts, rank=settings.rank, scale=scale, generator=generator)


class FourBit:
    """The frozen matrix of a linear layer in NF4: blocks of 64 values, their scales in 8 bits, products in bfloat16.

    Dettmers et al. 2023, "QLoRA". The layer's own weight is left empty. Where a gradient goes through, the matrix is
    made whole once more.
    """

    def __init__(self, linear: Linear, device: torch.device) -> None:
        from bitsandbytes.functional import quantize_4bit

        weight = linear.weight.detach().to(device, torch.bfloat16)
        self._packed, self._state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        self._bias = None if linear.bias is None else linear.bias.detach().to(device)
        linear.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)

    def __call__(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        from bitsandbytes import matmul_4bit

        y: Tensor = matmul_4bit(x, self._packed.t(), quant_state=self._state)
        y = y if self._bias is None else y + self._bias
        if activation is not None:
            y = ACTIVATIONS[activation](y)
        return y if residual is None else y + residual

    def whole(self) -> Tensor:
        """The matrix as it is multiplied: what is saved and merged into."""
        from bitsandbytes.functional import dequantize_4bit

        found: Tensor = dequantize_4bit(self._packed, self._state)
        return found


def pack_base(trainable: Trainable[nn.Module]) -> None:
    """The frozen linear layers of the blocks in four bits on the model's device, the rest moved there as it is."""
    net: Any = trainable.model
    for module in net.backbone.layers.modules():
        if isinstance(module, Linear):
            base = FourBit(module, trainable.device)
            if isinstance(module.fused, LowRank):
                module.fused.base = base
            else:
                module.fused = base
    net.to(trainable.device)


def check_four_bits(device: torch.device) -> None:
    """Raises MissingExtra or TrainingError where a base in four bits cannot be computed."""
    if find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "qlora")
    if device.type != "cuda":
        raise TrainingError(f"a base in four bits needs a CUDA device, this is {device}; leave --lora-base out")


def _projections(trainable: Trainable[nn.Module]) -> Iterator[str]:
    """The checkpoint's names of the weights of linear layers in blocks."""
    for name, module in trainable.model.named_modules():
        if isinstance(module, Linear) and ".layers." in name:
            yield from (theirs for theirs, _ in trainable.naming.parts(f"{name}.weight"))


def _check_targets(trainable: Trainable[nn.Module], targets: str) -> None:
    names = {theirs.split(".")[-2] for theirs in _projections(trainable)}
    stored = (theirs for block in trainable.naming.blocks.values() for theirs, _ in block.values())
    known = {part for theirs in stored for part in theirs.split(".")}  # recipes name heads too
    asked = set(_named(targets))
    if targets not in GROUPS and not (asked & names and asked <= known):
        raise ValueError(f"targets is {targets!r}; there are attention, all, and of {', '.join(sorted(names))} any")


def _named(targets: str) -> list[str]:
    return [name.strip() for name in targets.split(",")]


def _targeted(trainable: Trainable[nn.Module], module: str, targets: str) -> list[slice]:
    """The rows of a linear layer that get an update: those of its projections that are named."""
    parts = list(trainable.naming.parts(f"{module}.weight"))
    if targets in GROUPS:
        return [rows for _, rows in parts] if GROUPS[targets].fullmatch(module.rpartition(".")[2]) else []
    return [rows for theirs, rows in parts if theirs.split(".")[-2] in _named(targets)]


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
    packed = {f"{name}.weight": module.fused for name, module in net.named_modules() if isinstance(module, Linear)}
    own |= {name: base.whole() for name, base in packed.items() if isinstance(base, FourBit)}
    with torch.no_grad():
        return own | {name: update.merged() for name, update in low_rank.items()}


def adapter_tensors(trainable: Trainable[nn.Module]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """What an adapter holds by PEFT's names, the modules that have updates, and those of the head saved whole."""
    naming, net = trainable.naming, trainable.model
    tensors: dict[str, Tensor] = {}
    changed: list[str] = []
    for name, update in updates(net):
        theirs = {rows.start: module for module, rows in naming.parts(name)}
        for rows, a, b in update.blocks():
            module = theirs[rows.start].removesuffix(".weight")
            changed.append(module)
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = b
    trained = [name for name in trainable.parameters if name.startswith("head.") and ".fused." not in name]
    head = naming.named({name: net.get_parameter(name) for name in trained})
    tensors |= {_PREFIX + name: tensor for name, tensor in head.items()}
    return tensors, changed, sorted({_saved_module(name) for name in head})


def save_adapter(
    trainable: Trainable[nn.Module], settings: LoraSettings, folder: Path, *, max_length: int | None
) -> None:
    """Updates and head in PEFT's layout, for the base that the run started from, read to the length of the run."""
    tensors, changed, whole = adapter_tensors(trainable)
    is_classifier = isinstance(trainable.model.head, Classifier)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if is_classifier else "CAUSAL_LM",
        "base_model_name_or_path": lasting(str(trainable.checkpoint.name)),
        "revision": trainable.checkpoint.revision,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": changed,
        "modules_to_save": whole or None,
        "inference_mode": True,
    }
    if trainable.config.get(BY_LAYER):
        config[BY_LAYER] = True  # the base alone may be read otherwise
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / ADAPTER_WEIGHTS[0], {name: tensor.detach().clone() for name, tensor in tensors.items()})
    if max_length is not None:
        write_text(folder / LENGTH, json.dumps({"max_seq_length": max_length}) + "\n")
    write_text(folder / ADAPTER, json.dumps(config, indent=2) + "\n")


def _saved_module(name: str) -> str:
    """The module that PEFT replaces as a whole: the outermost of the head, without the model's own prefix."""
    return next(part for part in name.split(".") if part in _WHOLE)
