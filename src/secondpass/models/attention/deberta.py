"""DeBERTa's attention over packed rows: content and relative position apart.

Both position terms depend on the distance i - j only. So each is one product with a table that has a row for every
distance, and the logits are its diagonals, read as a view: no gather of L * L indices. He et al. 2021, equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secondpass.models.attention.attention import Rule, attend, by_head, by_token, mask_bias
from secondpass.packed import Packed

# Rows of one length are attended to together up to this many products, 64 MB in float32.
MAX_PRODUCTS = 2**24


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
class Tables:
    """One layer's keys of the distances L to -L and queries of -L to L, (H, 2L + 1, D), times the scale."""

    keys: Tensor | None
    queries: Tensor | None


def disentangled_attention(q: Tensor, k: Tensor, v: Tensor, batch: Packed, tables: Tables, *, scale: float) -> Tensor:
    """Attention (T, H, D) of each row's queries over its own keys and values, all (T, H, D)."""
    rule = Rule(scale=scale)
    if batch.mask is not None:
        n, length = batch.mask.shape
        q, k, v = (by_head(x, n, length) for x in (q, k, v))
        seen = mask_bias(n, length, batch.mask, is_causal=False, window=None, like=q)
        return by_token(attend(q, k, v, _bias(q, k, tables) + seen, rule))
    groups = cut_groups(batch.groups, q.shape[1])
    # split and cat, not slices: the gradient of each slice would be as large as the whole batch
    parts = zip(*(torch.split(x, [n * length for n, length in groups]) for x in (q, k, v)), strict=True)
    outs = []
    for (count, length), part in zip(groups, parts, strict=True):
        heads = [by_head(x, count, length) for x in part]
        outs.append(by_token(attend(heads[0], heads[1], heads[2], _bias(heads[0], heads[1], tables), rule)))
    return torch.cat(outs)


def _bias(q: Tensor, k: Tensor, tables: Tables) -> Tensor:
    """What the distances add to the logits (n, H, L, L)."""
    bias = q.new_zeros(1)
    if tables.keys is not None:
        bias = bias + diagonals(torch.matmul(q, _near(tables.keys, q.shape[2])))
    if tables.queries is not None:
        bias = bias + diagonals(torch.matmul(k, _near(tables.queries, k.shape[2]))).transpose(-1, -2)
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


def kept_bias(q: Tensor, k: Tensor, batch: Packed, kept: Tensor, tables: Tables) -> Tensor | None:
    """What the distances add (T, H) for the one query token q (N, H, D) of each row, at places `kept`."""
    distance = batch.positions[kept][batch.rows] - batch.positions
    bias: Tensor | None = None
    if tables.keys is not None:
        products = torch.matmul(q.transpose(0, 1), tables.keys.transpose(-1, -2))  # (H, N, 2L + 1)
        bias = products[:, batch.rows, tables.keys.shape[1] // 2 - distance].transpose(0, 1)
    if tables.queries is not None:
        found = (k * tables.queries[:, tables.queries.shape[1] // 2 + distance].transpose(0, 1)).sum(-1)
        bias = found if bias is None else bias + found
    return bias


def cut_groups(groups: list[tuple[int, int]], num_heads: int) -> list[tuple[int, int]]:
    """The groups (count, length), cut so that none has more than MAX_PRODUCTS products, or one row."""
    parts = []
    for count, length in groups:
        step = max(1, MAX_PRODUCTS // (2 * num_heads * length * length))
        parts += [(min(step, count - done), length) for done in range(0, count, step)]
    return parts
