"""Heads: from hidden states to scores. `reads` says which tokens of a row a head wants to see.

A head works on one vector per row, so it costs nothing to compute it in float32 in every precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secondpass.models.layers import LayerNorm, Linear
from secondpass.packed import Keep, Packed


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A dense layer, its activation, perhaps a norm, and one label."""

    width: int
    activation: str = "tanh"
    pooling: Keep = "first"  # "all": the mean over the row
    has_bias: bool = True
    norm_epsilon: float | None = None


class Classifier(nn.Module):
    """Scores (N,) from the pooled state of each row: out(norm(activation(dense(pooled))))."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.reads: Keep = config.pooling
        self.dense = Linear(config.width, config.width, has_bias=config.has_bias)
        epsilon = config.norm_epsilon
        self.norm = None if epsilon is None else LayerNorm(config.width, epsilon=epsilon, has_bias=False)
        self.out = Linear(config.width, 1)

    def forward(self, states: Tensor, batch: Packed) -> Tensor:
        pooled = mean_by_row(states, batch) if self.reads == "all" else states
        x = self.dense(pooled.float(), activation=self.config.activation)
        x = x if self.norm is None else self.norm(x)
        scores: Tensor = self.out(x)
        return scores.squeeze(-1)


def mean_by_row(states: Tensor, batch: Packed) -> Tensor:
    """Means (N, C) of the states (T, C) over each row, summed in float32."""
    if batch.mask is not None:
        n, length = batch.mask.shape
        weights = batch.mask.to(states.dtype)[..., None]
        return (states.reshape(n, length, -1) * weights).sum(1) / weights.sum(1)
    sums = torch.zeros(len(batch.lengths), states.shape[1], device=states.device)
    sums.index_add_(0, batch.rows, states.float())
    return (sums / (batch.starts[1:] - batch.starts[:-1])[:, None]).to(states.dtype)
