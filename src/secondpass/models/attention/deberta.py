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

    def of_rows(self, q: Tensor, k: Tensor, first: int = 0) -> Tensor:
        """What the distances add to the logits (n, H, Q, L)."""
        num_queries, num_keys = q.shape[2], k.shape[2]
        bias = q.new_zeros(1)
        if self.keys is not None:
            near = _near(self.keys, 1 - first - num_queries, num_queries + num_keys)
            bias = bias + diagonals(torch.matmul(q, near), num_queries, num_keys)
        if self.queries is not None:
            near = _near(self.queries, 1 + first - num_keys, num_queries + num_keys)
            bias = bias + diagonals(torch.matmul(k, near), num_keys, num_queries).transpose(-1, -2)
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


def _near(table: Tensor, first: int, count: int) -> Tensor:
    """So many columns (H, D, count) of a table, from the place `first` of its middle on."""
    start = table.shape[1] // 2 + first
    return table[:, start : start + count].transpose(-1, -2)


def diagonals(products: Tensor, rows: int, columns: int) -> Tensor:
    """(..., R, R + M) -> (..., R, M): row r of the result begins at column R - 1 - r.

    R and M are given: in an ONNX graph the shape of a product with a slice is not always its own.
    """
    width = rows + columns - 1
    flat = products.flatten(-2)[..., rows - 1 : rows - 1 + rows * width]
    return flat.reshape(*products.shape[:-1], width)[..., :columns]
