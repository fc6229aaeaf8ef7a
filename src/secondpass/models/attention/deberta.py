"""What DeBERTa adds to the logits of attention: content and relative position apart.

Both position terms depend on the distance i - j only. So each is one product with a table that has a row for every
distance, and the logits are its diagonals, read as a view: no gather of L * L indices. He et al. 2021, equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secondpass.packed import Packed


def log_buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket of each distance: itself below num_buckets / 2, then logarithmic up to max_distance.

    In float32 step by step as in transformers: ceil() of another rounding would be another bucket.
    """
    if num_buckets <= 0:
        return distances
    middle = num_buckets // 2
    size = distances.abs().clamp(min=middle - 1)
    growth = torch.log(size / middle) / torch.log(torch.tensor((max_distance - 1) / middle))
    far = torch.ceil(growth * (middle - 1)) + middle
    return torch.where(size <= middle, distances, (far * distances.sign()).long())


@dataclass(frozen=True)
class DistanceBias:
    """One layer's keys of the distances L to -L and queries of -L to L, (H, 2L + 1, D), times the scale; a `Bias`."""

    keys: Tensor | None
    queries: Tensor | None

    def of_rows(self, q: Tensor, k: Tensor) -> Tensor:
        """What the distances add to the logits (n, H, L, L)."""
        bias = q.new_zeros(1)
        if self.keys is not None:
            bias = bias + diagonals(torch.matmul(q, _near(self.keys, q.shape[2])))
        if self.queries is not None:
            bias = bias + diagonals(torch.matmul(k, _near(self.queries, k.shape[2]))).transpose(-1, -2)
        return bias

    def of_kept(self, q: Tensor, k: Tensor, batch: Packed, keep: Tensor) -> Tensor | None:
        """What the distances add (T, H) for the one query token q (N, H, D) of each row, at indices `keep`."""
        distance = batch.positions[keep][batch.rows] - batch.positions
        bias: Tensor | None = None
        if self.keys is not None:
            products = torch.matmul(q.transpose(0, 1), self.keys.transpose(-1, -2))  # (H, N, 2L + 1)
            bias = products[:, batch.rows, self.keys.shape[1] // 2 - distance].transpose(0, 1)
        if self.queries is not None:
            found = (k * self.queries[:, self.queries.shape[1] // 2 + distance].transpose(0, 1)).sum(-1)
            bias = found if bias is None else bias + found
        return bias


def _near(table: Tensor, length: int) -> Tensor:
    """The 2L columns (H, D, 2L) of a table that a row of `length` tokens needs."""
    start = table.shape[1] // 2 - (length - 1)
    return table[:, start : start + 2 * length].transpose(-1, -2)


def diagonals(products: Tensor) -> Tensor:
    """(..., L, 2L) -> (..., L, L): row i of the result begins at column L - 1 - i; a view."""
    length = products.shape[-2]
    start = length - 1
    flat = products.flatten(-2)[..., start : start + length * (2 * length - 1)]
    return flat.reshape(*products.shape[:-1], 2 * length - 1)[..., :length]
