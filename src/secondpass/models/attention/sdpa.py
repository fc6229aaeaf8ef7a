"""Attention by torch's fused kernel, row by row: on any device, in any precision, with gradients and in traces."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secondpass.models.attention.reference import (
    Bias,
    Rule,
    attend_kept,
    band_bias,
    by_rows,
    is_banded,
    masked_attention,
)
from secondpass.packed import Packed

# bf16 on a CPU: two matrix products and a softmax beat torch's fused kernel by two to one up to this length (228
# against 109 GFLOP/s at 181 tokens, 171 against 65 at 64, equal at 512; AVX512-BF16, two cores). Without gradients
# `cpu_bf16` beats both at any length.
MAX_MATMUL_LENGTH = 384
# Longer rows that need a matrix of logits or of masks are attended to in blocks of this many queries, each with the
# keys that it can see: a window then costs L * (BLOCK + 2 * window), not L * L. With a window of 64 and 8192 tokens
# 128 took 55 ms, 256 71 ms, 512 215 ms (bf16, 12 heads of 64, one core).
BLOCK = 128


def attend_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Packed,
    *,
    rule: Rule,
    keep: Tensor | None = None,
    bias: Bias | None = None,
) -> Tensor:
    """See `Kernel`."""
    if keep is not None:
        return attend_kept(q[keep], k, v, batch, rule=rule, keep=keep, bias=bias)
    return by_rows(_attend_rows, q, k, v, batch, rule=rule, bias=bias)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, rule: Rule, added: Tensor | None) -> Tensor:
    length, num_keys = q.shape[2], k.shape[2]
    if added is not None:
        return _attend(q, k, v, added, rule)
    sees_all = rule.window is None or rule.window >= max(length, num_keys) - 1
    is_square = length == num_keys or not rule.is_causal
    if sees_all and is_square and rule.softcap is None and not _matmul_is_faster(q):
        grouped = bool(q.shape[1] != k.shape[1])  # a traced size is no int
        return F.scaled_dot_product_attention(q, k, v, is_causal=rule.is_causal, scale=rule.scale, enable_gqa=grouped)
    step = length if length <= MAX_MATMUL_LENGTH else BLOCK
    parts = []
    for start in range(0, length, step):
        block = slice(start, min(start + step, length))
        keys, band = visible_keys(block, length, num_keys, rule, like=q)
        parts.append(_attend(q[:, :, block], k[:, :, keys], v[:, :, keys], band, rule))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def visible_keys(
    block: slice, length: int, num_keys: int, rule: Rule, *, like: Tensor
) -> tuple[slice, Tensor | None]:
    """The keys that at least one query of `block` sees, and what hides others of them from some; None if nothing.

    The `length` queries are the last of the row, or the keys the first of it.
    """
    ahead = max(num_keys - length, 0)
    first, stop = block.start + ahead, block.stop + ahead
    if not is_banded(rule, length, num_keys):
        return slice(0, num_keys), None
    window = num_keys if rule.window is None else rule.window
    keys = slice(max(first - window, 0), stop if rule.is_causal else min(stop + window, num_keys))
    return keys, band_bias((stop - first, keys.stop - keys.start), first - keys.start, rule, like=like)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rule: Rule) -> Tensor:
    if rule.softcap is not None or _matmul_is_faster(q):
        return masked_attention(q, k, v, bias, scale=rule.scale, softcap=rule.softcap)
    grouped = bool(q.shape[1] != k.shape[1])  # a traced size is no int
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=rule.scale, enable_gqa=grouped)


def _matmul_is_faster(q: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= MAX_MATMUL_LENGTH
