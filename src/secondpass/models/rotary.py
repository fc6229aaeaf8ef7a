"""Rotary positions in the rotate-half form: Su et al. 2021, laid out as in GPT-NeoX and Hugging Face models."""

from __future__ import annotations

import torch
from torch import Tensor


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
