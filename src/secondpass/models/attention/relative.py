"""What distances add to the logits of attention, the same in all layers: MPNet's buckets, and ALiBi."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secondpass.models.attention.deberta import diagonals
from secondpass.packed import Packed, sent

MAX_DISTANCE = 128  # farther keys share the last bucket


def distances_in(batch: Packed) -> Tensor:
    """The distances (2L) of a batch's longest row, key less query: 1 - L to L."""
    length = max(batch.lengths) if batch.mask is None else batch.mask.shape[1]
    return torch.arange(1 - length, length + 1, device=batch.ids.device)


def relative_buckets(distances: Tensor, num_buckets: int) -> Tensor:
    """The bucket of each distance: half of them before and half after; near ones alone, then logarithmic.

    Raffel et al. 2020 (T5), in float32 step by step as in transformers: another rounding would be another bucket.
    """
    half = num_buckets // 2
    exact = half // 2
    size = distances.abs()
    growth = torch.log(size.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact)
    far = exact + (growth * (half - exact)).long()
    return torch.where(size < exact, size, far.clamp(max=half - 1)) + (distances > 0) * half


def alibi(num_heads: int, distances: Tensor) -> Tensor:
    """What each distance takes off, (H, D): its size times the head's slope. Press et al. 2022, on both sides."""
    slopes = sent(torch.tensor(_slopes(num_heads)), distances.device)
    return -slopes[:, None] * distances.abs()


def _slopes(num_heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n) and so on; where n is no power of two, of the next lower one and of every other above."""
    n = 1 << (num_heads.bit_length() - 1)
    own = [2 ** (-8 * (head + 1) / n) for head in range(n)]
    return own if n == num_heads else own + _slopes(2 * n)[::2][: num_heads - n]


@dataclass(frozen=True)
class RelativeBias:
    """A bias by head and distance, (H, 2L) for the distances of `distances_in`; a `Bias`."""

    table: Tensor

    def of_rows(self, q: Tensor, k: Tensor, first: int = 0) -> Tensor:
        """(1, H, Q, L), see `Bias`."""
        num_queries, num_keys = q.shape[2], k.shape[2]
        start = self.table.shape[1] // 2 - first - num_queries
        near = self.table[:, start : start + num_queries + num_keys].to(q.dtype)
        return diagonals(near[None, :, None, :].expand(-1, -1, num_queries, -1), num_queries, num_keys)

    def of_kept(self, q: Tensor, k: Tensor, batch: Packed, keep: Tensor) -> Tensor:
        """(T, H), see `Bias`."""
        distance = batch.positions - batch.positions[keep][batch.rows]
        return self.table[:, distance + self.table.shape[1] // 2 - 1].T
