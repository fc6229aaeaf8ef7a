"""Scaled dot-product attention over packed rows.

One function for every backbone; each branch here is a kernel, and all must give what `masked_attention` gives
row by row. T tokens, N rows, H heads, K key-value heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secondpass.packed import Packed

# bf16 on a CPU: two matrix products and a softmax beat torch's fused kernel by two to one up to this length
# (228 against 109 GFLOP/s at 181 tokens, 171 against 65 at 64, equal at 512; AVX512-BF16, two cores).
MAX_MATMUL_LENGTH = 384


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Packed,
    *,
    scale: float,
    is_causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention (T, H, D) of each row's queries (T, H, D) over its own keys and values (T, K, D).

    window: a token sees keys at a distance of at most `window` on either side (causal: behind it only).
    softcap: logits become softcap * tanh(logits / softcap). Vaswani et al. 2017; grouped heads as in Ainslie et
    al. 2023.
    """
    if batch.mask is not None:
        n, length = batch.mask.shape
        seen = mask_bias(n, length, batch.mask, is_causal=is_causal, window=window, like=q)
        return _padded(q, k, v, (n, length), seen, scale=scale, softcap=softcap)
    out = torch.empty_like(q)
    start = 0
    for count, length in batch.groups:
        part = slice(start, start + count * length)
        start = part.stop
        bias: Tensor | None = None
        if is_causal or (window is not None and window < length - 1):
            bias = mask_bias(1, length, None, is_causal=is_causal, window=window, like=q)
        out[part] = _padded(q[part], k[part], v[part], (count, length), bias, scale=scale, softcap=softcap)
    return out


def mask_bias(
    n: int, length: int, mask: Tensor | None, *, is_causal: bool, window: int | None, like: Tensor
) -> Tensor:
    """What is added to the logits (n, 1, L, L): 0 where a query may look, -inf elsewhere."""
    place = torch.arange(length, device=like.device)
    distance = place[:, None] - place[None, :]
    seen = torch.ones_like(distance, dtype=torch.bool)
    if is_causal:
        seen = seen & (distance >= 0)
    if window is not None:
        seen = seen & (distance.abs() <= window)
    seen = seen[None, None].expand(n, 1, length, length)
    if mask is not None:
        seen = seen & (mask[:, None, None, :] > 0)
    return torch.zeros(1, dtype=like.dtype, device=like.device).masked_fill(~seen, float("-inf"))


def _padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: tuple[int, int],
    bias: Tensor | None,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Rows of one length, (n * L, H, D) in and out."""
    n, length = shape
    heads, kv_heads, width = q.shape[1], k.shape[1], q.shape[2]
    q = q.reshape(n, length, heads, width).transpose(1, 2)  # (n, H, L, D)
    k = k.reshape(n, length, kv_heads, width).transpose(1, 2)
    v = v.reshape(n, length, kv_heads, width).transpose(1, 2)
    if softcap is not None or _matmul_is_faster(q):
        out = masked_attention(q, k, v, bias, scale=scale, softcap=softcap)
    else:
        grouped = heads != kv_heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).reshape(n * length, heads, width)


def _matmul_is_faster(q: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= MAX_MATMUL_LENGTH


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor:
    """The definition: softmax(cap(q k^T * scale) + bias) v, with q (n, H, L, D), k and v (n, K, L, D)."""
    if q.shape[1] != k.shape[1]:
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    logits = torch.matmul(q * scale, k.transpose(-1, -2))
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if bias is not None:
        logits = logits + bias
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, v)


def attend_kept(
    q: Tensor, k: Tensor, v: Tensor, batch: Packed, *, scale: float, softcap: float | None = None
) -> Tensor:
    """Attention (N, H, D) of one query token per row, q (N, H, D), over all keys of its row, k and v (T, K, D).

    The last block of a reranker needs no other token's output, which saves most of that block.
    """
    if batch.mask is not None:
        n, length = batch.mask.shape
        heads, width = q.shape[1:]
        k, v = (x.reshape(n, length, -1, width).transpose(1, 2) for x in (k, v))
        bias = mask_bias(n, length, batch.mask, is_causal=False, window=None, like=q)[:, :, :1]
        out = masked_attention(q[:, :, None], k, v, bias, scale=scale, softcap=softcap)
        return out.reshape(n, heads, width)
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    logits = (q[batch.rows].float() * k.float()).sum(-1) * scale  # (T, H)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    top = logits.new_full((len(batch.lengths), q.shape[1]), float("-inf"))
    index = batch.rows[:, None].expand_as(logits)
    top = top.scatter_reduce(0, index, logits, "amax")
    weights = torch.exp(logits - top[batch.rows])
    total = torch.zeros_like(top).index_add_(0, batch.rows, weights)
    mixed = q.new_zeros(q.shape, dtype=torch.float32)
    mixed.index_add_(0, batch.rows, weights[..., None] * v.float())
    return (mixed / total[..., None]).to(q.dtype)
