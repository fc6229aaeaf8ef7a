"""Heads: from hidden states to scores. `reads` says which tokens of a row a head wants to see.

A head works on one vector per row, so it costs nothing to compute it in float32 in every precision.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    norm_has_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class LogitConfig:
    """States that are read as logits of words, or by a linear head at each of `layers`.

    matrix is the tensor whose rows are read as the logits of words; copies match the names of tensors of a checkpoint
    that hold again what is read elsewhere. temperature divides the logit of a label.
    """

    width: int
    layers: tuple[int, ...]
    softcap: float | None
    matrix: str
    copies: tuple[str, ...]
    temperature: float = 1.0


class Classifier(nn.Module):
    """Scores (N,) from the pooled state of each row: out(norm(activation(dense(pooled))))."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.reads: Keep = config.pooling
        self.dense = Linear(config.width, config.width, has_bias=config.has_bias)
        epsilon, has_bias = config.norm_epsilon, config.norm_has_bias
        self.norm = None if epsilon is None else LayerNorm(config.width, epsilon=epsilon, has_bias=has_bias)
        self.out = Linear(config.width, 1)

    def forward(self, states: Tensor, batch: Packed) -> Tensor:
        pooled = mean_by_row(states, batch) if self.reads == "all" else states
        x = self.dense(pooled.float(), activation=self.config.activation)
        x = x if self.norm is None else self.norm(x)
        scores: Tensor = self.out(x)
        return scores.squeeze(-1)


class TokenLogit(nn.Module):
    """Scores (N, 1): the logit of one word after the row's last token, less that of a second where there are two.

    Only these words' rows of the output matrix are kept.
    """

    reads: Keep = "last"

    def __init__(self, width: int, num_words: int, *, softcap: float | None = None) -> None:
        super().__init__()
        self.softcap = softcap
        self.out = Linear(width, num_words, has_bias=False)

    def forward(self, states: Tensor, batch: Packed) -> Tensor:
        logits = soft_capped(self.out(states.float()), self.softcap)
        return logits[:, :1] - logits[:, 1:].sum(1, keepdim=True)


class MeanLogit(TokenLogit):
    """Scores (N, 1): a linear head on the mean of a row's states, over a temperature: NVIDIA's rerankers."""

    reads: Keep = "all"

    def __init__(self, width: int, *, temperature: float) -> None:
        super().__init__(width, 1)
        self.temperature = temperature

    def forward(self, states: Tensor, batch: Packed) -> Tensor:
        scores: Tensor = self.out(mean_by_row(states.float(), batch)) / self.temperature
        return scores


class LayerHeads(nn.Module):
    """Scores (N, outputs) of the states (N, outputs, C) at some of `layers`, each of which has a head of its own.

    in_order: output j is read by head j, whatever its layer. bge-reranker-v2.5-gemma2-lightweight's reference code
    does so, and its published scores come from it: cutoff_layers=[28] is read by the head of layer 8.
    """

    reads: Keep = "last"

    def __init__(self, width: int, layers: Sequence[int], *, in_order: bool, softcap: float | None = None) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.in_order = in_order
        self.softcap = softcap
        self.out = Linear(width, len(layers), has_bias=False)

    def forward(self, states: Tensor, cutoffs: Sequence[int]) -> Tensor:
        heads = range(len(cutoffs)) if self.in_order else [self.layers.index(layer) for layer in cutoffs]
        logits = self.out(states.float())  # (N, outputs, heads), of which one each is wanted
        return soft_capped(torch.stack([logits[:, j, head] for j, head in enumerate(heads)], dim=1), self.softcap)


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else torch.tanh(logits / cap) * cap


def mean_by_row(states: Tensor, batch: Packed) -> Tensor:
    """Means (N, C) of the states (T, C) over each row, summed in float32."""
    if batch.mask is not None:
        n, length = batch.mask.shape
        weights = batch.mask.to(states.dtype)[..., None]
        return (states.reshape(n, length, -1) * weights).sum(1) / weights.sum(1)
    sums = torch.zeros(len(batch.starts) - 1, states.shape[1], device=states.device)
    sums.index_add_(0, batch.rows, states.float())
    return (sums / (batch.starts[1:] - batch.starts[:-1])[:, None]).to(states.dtype)
