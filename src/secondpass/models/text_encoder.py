"""A backbone that says vectors: one per row, one per token, and a weight per token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secondpass.models import Backbone, build_backbone
from secondpass.models.heads import mean_by_row
from secondpass.models.late_interaction import LateInteractionConfig
from secondpass.models.layers import Linear
from secondpass.packed import Packed


def _max_by_row(states: Tensor, batch: Packed) -> Tensor:
    index = batch.rows[:, None].expand_as(states)
    lowest = states.new_full((len(batch.starts) - 1, states.shape[1]), float("-inf"))
    return lowest.scatter_reduce(0, index, states, "amax")


def _root_of_lengths(batch: Packed) -> Tensor:
    return (batch.starts[1:] - batch.starts[:-1])[:, None].float().sqrt()


def _late_mean_by_row(states: Tensor, batch: Packed) -> Tensor:
    """Means in which the n-th token counts n times (Muennighoff 2022)."""
    weights = (batch.positions + 1)[:, None].float()
    return mean_by_row(states * weights, batch) / mean_by_row(weights, batch)


# In the order in which sentence-transformers joins several
POOLINGS: dict[str, Callable[[Tensor, Packed], Tensor]] = {
    "cls": lambda states, batch: states[batch.first()],
    "max": lambda states, batch: _max_by_row(states.float(), batch),
    "mean": lambda states, batch: mean_by_row(states.float(), batch),
    "mean_sqrt_len": lambda states, batch: mean_by_row(states.float(), batch) * _root_of_lengths(batch),
    "weightedmean": lambda states, batch: _late_mean_by_row(states.float(), batch),
    "last": lambda states, batch: states[batch.last()],
}


class Dense(nn.Module):
    """A linear layer over a pooled vector, and its activation."""

    def __init__(self, num_in: int, num_out: int, *, has_bias: bool, activation: str | None) -> None:
        super().__init__()
        self.linear = Linear(num_in, num_out, has_bias=has_bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x, activation=self.activation)
        return y


class TextEncoder(nn.Module):
    """Hidden states of a backbone, pooled by row, projected by token, or both.

    pooling: one of POOLINGS, or several joined by "+". The heads are None until there are weights for them: `tokens`
    projects a state to a token vector, `weights` to how much a token matters, `pooled` what was pooled. They stay
    float32 in every precision.
    """

    def __init__(self, config: Mapping[str, Any], *, pooling: str, token_width: int | None = None) -> None:
        super().__init__()
        architecture = build_backbone(config)
        self.backbone: Backbone = architecture.backbone
        self.pooling = pooling
        self.head = nn.ModuleDict()
        if token_width is not None:
            self.head["tokens"] = Linear(architecture.config.width, token_width, has_bias=False)
        # A checkpoint's pooler is of its pre-training; ColBERT's projection lies beside its backbone.
        self.renames: tuple[tuple[str, str], ...] = (*architecture.renames, (r"linear\.(.*)", r"head.tokens.\1"))
        self.ignored: tuple[str, ...] = (*architecture.ignored, r"(?:\w+\.)?pooler\..*", r"lm_head\.weight")
        if LateInteractionConfig.from_hf(config) is not None:  # a reranker that is this encoder and a head
            self.ignored += (r"head\.(scale|bias)", r"word_match\..*")

    def forward(self, batch: Packed, outputs: Collection[str]) -> dict[str, Tensor]:
        """Of "pooled" (N, C), "tokens" (T, D) and "weights" (T, 1) those that are asked for, in float32."""
        if set(outputs) == {"pooled"} and self.pooling in ("cls", "last"):
            kept = self.backbone(batch, keep="first" if self.pooling == "cls" else "last")
            return {"pooled": self._projected(kept.float())}
        states = self.backbone(batch, keep="all")
        found = {name: self.head[name](states.float()) for name in outputs if name != "pooled"}
        if "pooled" in outputs:
            parts = [POOLINGS[name](states, batch).float() for name in self.pooling.split("+")]
            found["pooled"] = self._projected(torch.cat(parts, dim=1))
        if "weights" in found:
            found["weights"] = found["weights"].relu()
        return found

    def _projected(self, pooled: Tensor) -> Tensor:
        projected: Tensor = self.head["pooled"](pooled) if "pooled" in self.head else pooled
        return projected
