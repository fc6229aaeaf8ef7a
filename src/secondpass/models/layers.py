"""The layers that every backbone is made of.

`Linear` is the one place where a faster kernel can be put: the engine sets `fused`, and the plain path below is
what it must equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondpass.errors import UnknownModel


def inverse_frequencies(width: int, theta: float, *, device: torch.device | None = None) -> Tensor:
    """theta^(-2i/D) (D/2,) in float32.

    Computed where it is needed, not kept in a buffer: a model is built on the meta device, which holds no values.
    """
    return 1.0 / theta ** (torch.arange(0, width, 2, device=device).float() / width)


def rotary_table(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, 1, D/2) in float32 of the angles positions (T,) * inv_freq (D/2,); one for all heads.

    Angles are products in float32, as in the references: a more exact product differs at positions in the thousands.
    """
    angles = positions.float()[:, None, None] * inv_freq
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, H, D) turned by its position: channel i and channel i + D/2 are one plane."""
    first, second = x.chunk(2, dim=-1)
    # The tables are float32, so half precision is widened here and rounded once at the end.
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact, with erf
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
# Hugging Face's names of activations -> ours.
HF_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def activation_of(name: str) -> str:
    """Our name of an activation that config.json names. Raises UnknownModel where there is none."""
    if name not in HF_ACTIVATIONS:
        raise UnknownModel(f"config.json: no activation {name!r}; there are {', '.join(HF_ACTIVATIONS)}")
    return HF_ACTIVATIONS[name]


class LinearKernel(Protocol):
    """A faster way to compute one linear layer with its activation or its residual."""

    def __call__(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor: ...


class Linear(nn.Module):
    """activation(x W^T + b) + residual, x (T, in), W (out, in)."""

    def __init__(self, num_in: int, num_out: int, *, has_bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in))
        self.bias = nn.Parameter(torch.empty(num_out)) if has_bias else None
        self.fused: LinearKernel | None = None

    def forward(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        if self.fused is not None:
            return self.fused(x, activation, residual)
        y = F.linear(x, self.weight, self.bias)
        if activation is not None:
            y = ACTIVATIONS[activation](y)
        return y if residual is None else y + residual


class LayerNorm(nn.Module):
    """Layer normalisation over the width (Ba et al. 2016), with or without bias.

    Its weights stay float32 in every precision: rounding them costs more than all else that is cheap to keep.
    """

    def __init__(self, width: int, *, epsilon: float, has_bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if has_bias else None
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype or x.device.type == "cpu":  # the CPU kernel takes mixed precision
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.epsilon).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + weight) (Zhang and Sennrich 2019), in float32 in every precision.

    Gemma's weights are kept less one: offset is 1 there.
    """

    def __init__(self, width: int, *, epsilon: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.offset if self.offset else self.weight
        return F.rms_norm(x.float(), weight.shape, weight, self.epsilon).to(x.dtype)


class EmbeddingTable(nn.Module):
    """Rows of a table (V, C)."""

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)
