"""Scaled dot-product attention over packed rows.

One function for every backbone; each branch here is a kernel, and all must give what `masked_attention` gives
row by row. T tokens, N rows, H heads, K key-value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from secondpass.models.attention.cpu_bf16 import attend_unnormalised, blocks, side_by_side
from secondpass.models.attention.varlen import attend_varlen, is_usable
from secondpass.packed import Packed

# bf16 on a CPU with gradients: two matrix products and a softmax beat torch's fused kernel by two to one up to this
# length (228 against 109 GFLOP/s at 181 tokens, 171 against 65 at 64, equal at 512; AVX512-BF16, two cores). Without
# gradients `unnormalised` beats both at any length.
MAX_MATMUL_LENGTH = 384
# Longer rows that need a matrix of logits or of masks are attended to in blocks of this many queries, each with the
# keys that it can see: a window then costs L * (BLOCK + 2 * window), not L * L. With a window of 64 and 8192 tokens
# 128 took 55 ms, 256 71 ms, 512 215 ms (bf16, 12 heads of 64, one core).
BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which keys a query sees, and how their logits are made."""

    scale: float
    is_causal: bool = False
    window: int | None = None
    softcap: float | None = None


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
    rule = Rule(scale=scale, is_causal=is_causal, window=window, softcap=softcap)
    if batch.mask is not None:
        n, length = batch.mask.shape
        seen = mask_bias(n, length, batch.mask, is_causal=is_causal, window=window, like=q)
        q, k, v = (by_head(x, n, length) for x in (q, k, v))
        return by_token(attend(q, k, v, seen, rule))
    if batch.visible is not None:
        return _attend_visible(q, k, v, batch, rule)
    if softcap is None and is_usable(q):
        return attend_varlen(q, k, v, batch, scale=scale, is_causal=is_causal, window=window)
    if batch.shared is not None:
        return _attend_shared(q, k, v, batch, rule)
    groups = batch.groups
    # split and cat, not slices: the gradient of each slice would be as large as the whole batch
    parts = zip(*(torch.split(x, [n * length for n, length in groups]) for x in (q, k, v)), strict=True)
    outs = []
    for (count, length), part in zip(groups, parts, strict=True):
        heads = [by_head(x, count, length) for x in part]
        outs.append(by_token(_attend_rows(heads[0], heads[1], heads[2], rule)))
    return torch.cat(outs)


def _attend_visible(q: Tensor, k: Tensor, v: Tensor, batch: Packed, rule: Rule) -> Tensor:
    """Rows of which only the first tokens are keys; rows side by side that are alike are attended to together."""
    assert batch.visible is not None and rule.window is None and not rule.is_causal
    out = torch.empty_like(q)
    start = 0
    for (length, num_keys), alike in groupby(zip(batch.lengths, batch.visible, strict=True)):
        count = len(list(alike))
        part = slice(start, start + count * length)
        start = part.stop
        heads = [by_head(x[part], count, length) for x in (q, k, v)]
        out[part] = by_token(attend(heads[0], heads[1][:, :, :num_keys], heads[2][:, :, :num_keys], None, rule))
    return out


def _attend_shared(q: Tensor, k: Tensor, v: Tensor, batch: Packed, rule: Rule) -> Tensor:
    """Rows whose first tokens are keys but not queries: q is (T, H, D), k and v are (S, K, D)."""
    assert batch.shared is not None
    out = torch.empty_like(q)
    start = first_key = 0
    for (length, num_keys), run in groupby(zip(batch.lengths, batch.shared.lengths, strict=True)):
        count = len(list(run))
        rows, keys = slice(start, start + count * length), slice(first_key, first_key + count * num_keys)
        start, first_key = rows.stop, keys.stop
        seen_k, seen_v = by_head(k[keys], count, num_keys), by_head(v[keys], count, num_keys)
        out[rows] = by_token(_attend_rows(by_head(q[rows], count, length), seen_k, seen_v, rule))
    return out


def by_head(x: Tensor, n: int, length: int) -> Tensor:
    """(n * L, H, D) -> (n, H, L, D), a view."""
    return x.reshape(n, length, x.shape[1], x.shape[2]).transpose(1, 2)


def by_token(x: Tensor) -> Tensor:
    """(n, H, L, D) -> (n * L, H, D)."""
    return x.transpose(1, 2).flatten(0, 1)


def mask_bias(
    n: int, length: int, mask: Tensor | None, *, is_causal: bool, window: int | None, like: Tensor
) -> Tensor:
    """What is added to the logits (n, 1, L, L): 0 where a query may look, -inf elsewhere.

    A query always sees itself: padding that sees nothing would become NaN, and NaN reaches real tokens through
    the next block's values.
    """
    place = torch.arange(length, device=like.device)
    distance = place[:, None] - place[None, :]
    seen = _seen(distance, is_causal=is_causal, window=window)[None, None].expand(n, 1, length, length)
    if mask is not None:
        seen = seen & (mask[:, None, None, :] > 0) | (distance == 0)
    return torch.zeros(1, dtype=like.dtype, device=like.device).masked_fill(~seen, float("-inf"))


def _seen(distance: Tensor, *, is_causal: bool, window: int | None) -> Tensor:
    """Whether a query sees a key, by the query's place minus the key's."""
    seen = torch.ones_like(distance, dtype=torch.bool)
    if is_causal:
        seen = seen & (distance >= 0)
    if window is not None:
        seen = seen & (distance.abs() <= window)
    return seen


def _band_bias(shape: tuple[int, int], ahead: int, rule: Rule, *, like: Tensor) -> Tensor:
    """0 where query i, which stands at key i + ahead, may look, -inf elsewhere: (queries, keys).

    Triangles are written in one pass each; comparing distances takes eight, half of the time of a short attention.
    """
    hidden = like.new_full(shape, float("-inf"))
    if rule.window is None:
        return hidden.triu_(ahead + 1)
    right = hidden.triu(ahead + 1 + (0 if rule.is_causal else rule.window))
    return right + hidden.tril_(ahead - rule.window - 1)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
    """Rows of one length: q (n, H, L, D) over k and v (n, K, L, D), in blocks where that pays.

    Where there are more keys than queries, the queries are the last of the row.
    """
    length = q.shape[2]
    sees_all = (rule.window is None or rule.window >= length - 1) and length == k.shape[2]
    if _is_unnormalised(q):
        return _attend_in_blocks(q, k, v, rule, None if sees_all and not rule.is_causal else BLOCK)
    if sees_all and rule.softcap is None and not _matmul_is_faster(q):
        grouped = bool(q.shape[1] != k.shape[1])  # a traced size is no int
        return F.scaled_dot_product_attention(q, k, v, is_causal=rule.is_causal, scale=rule.scale, enable_gqa=grouped)
    step = length if length <= MAX_MATMUL_LENGTH else BLOCK
    parts = [_attend_queries(q, k, v, slice(s, min(s + step, length)), rule) for s in range(0, length, step)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, rule: Rule, most_queries: int | None) -> Tensor:
    """`_attend_rows` for the kernel that holds its logits, a few rows, heads and queries at a time."""
    n, heads, length, width = q.shape
    k, v = (side_by_side(_repeated(x, heads)) for x in (k, v))
    mixed = q.new_empty(n, length, heads, width).transpose(1, 2)
    for row, head, queries in blocks(n, heads, length, k.shape[2], most_queries):
        mixed[row, head, queries] = _attend_queries(q[row, head], k[row, head], v[row, head], queries, rule)
    return mixed


def _attend_queries(q: Tensor, k: Tensor, v: Tensor, block: slice, rule: Rule) -> Tensor:
    """What the queries of `block` get from the keys that at least one of them sees."""
    length = k.shape[2]
    window = length if rule.window is None else rule.window
    first, stop = (place + length - q.shape[2] for place in (block.start, block.stop))
    keys = slice(max(first - window, 0), stop if rule.is_causal else min(stop + window, length))
    bias: Tensor | None = None
    if rule.is_causal or window < length - 1:
        bias = _band_bias((stop - first, keys.stop - keys.start), first - keys.start, rule, like=q)
    return attend(q[:, :, block], k[:, :, keys], v[:, :, keys], bias, rule)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rule: Rule) -> Tensor:
    """`masked_attention` by the fastest kernel; which keys are seen is in the bias alone."""
    if _is_unnormalised(q):
        keys, values = (_repeated(x, q.shape[1]) for x in (k, v))
        mixed = attend_unnormalised(q, keys, values, bias, scale=rule.scale, softcap=rule.softcap)
        if mixed is not None:
            return mixed
    if rule.softcap is not None or _matmul_is_faster(q):
        return masked_attention(q, k, v, bias, scale=rule.scale, softcap=rule.softcap)
    grouped = bool(q.shape[1] != k.shape[1])  # a traced size is no int
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=rule.scale, enable_gqa=grouped)


def _repeated(x: Tensor, num_heads: int) -> Tensor:
    """Keys or values, (n, K, L, D) or (T, K, D), for each of so many heads of queries."""
    repeats = num_heads // x.shape[1]
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def _is_unnormalised(q: Tensor) -> bool:
    # it overwrites what a gradient would need, and looks at values, which a trace cannot
    is_plain = not (torch.is_grad_enabled() or torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]
    return is_plain and q.device.type == "cpu" and q.dtype == torch.bfloat16


def _matmul_is_faster(q: Tensor) -> bool:
    if _is_unnormalised(q):
        return True
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= MAX_MATMUL_LENGTH


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor:
    """The definition: softmax(cap(q k^T * scale) + bias) v, with q (n, H, L, D), k and v (n, K, L, D)."""
    k, v = (_repeated(x, q.shape[1]) for x in (k, v))
    left, right = q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)
    # scaled before the product is rounded: q * scale first would round twice where scale is no power of two
    logits = torch.baddbmm(q.new_empty(1), left, right, beta=0, alpha=scale)
    logits = logits.view(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if bias is not None:
        logits = logits + bias
    weights = torch.softmax(logits, dim=-1)  # summed in float32 inside, whatever the precision
    return torch.matmul(weights, v)


def attend_kept(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Packed,
    *,
    scale: float,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention (N, H, D) of one query token per row, q (N, H, D), over all keys of its row, k and v (T, K, D).

    bias (T, H) or (T, 1) is added to the logits of each key. The last block of a reranker needs no other token's
    output, which saves most of that block.
    """
    if batch.mask is not None:
        n, length = batch.mask.shape
        seen = torch.zeros(1, dtype=q.dtype, device=q.device).masked_fill(batch.mask == 0, float("-inf"))
        seen = seen[:, None, None, :]
        if bias is not None:
            seen = seen + bias.reshape(n, length, -1).transpose(1, 2)[:, :, None]
        k, v = by_head(k, n, length), by_head(v, n, length)
        return masked_attention(q[:, :, None], k, v, seen, scale=scale, softcap=softcap).flatten(1, 2)
    if bias is None and softcap is None and is_usable(q):
        return attend_varlen(q, k, v, batch, scale=scale, has_one_query=True)
    k, v = (_repeated(x, q.shape[1]) for x in (k, v))
    rows = batch.rows if batch.shared is None else batch.shared.rows
    logits = (q[rows].float() * k.float()).sum(-1) * scale  # (T, H)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if bias is not None:
        logits = logits + bias
    top = logits.new_full((q.shape[0], q.shape[1]), float("-inf"))
    index = rows[:, None].expand_as(logits)
    top = top.scatter_reduce(0, index, logits.detach(), "amax")
    weights = torch.exp(logits - top[rows])
    total = torch.zeros_like(top).index_add_(0, rows, weights)
    mixed = q.new_zeros(q.shape, dtype=torch.float32)
    mixed.index_add_(0, rows, weights[..., None] * v.float())
    return (mixed / total[..., None]).to(q.dtype)


def window_bias(batch: Packed, kept: Tensor, window: int | None) -> Tensor | None:
    """The bias (T, 1) of `attend_kept` where the kept tokens at places `kept` (N,) see keys within `window` only."""
    if window is None:
        return None
    keys = batch if batch.shared is None else batch.shared
    distance = batch.positions[kept][keys.rows] - keys.positions
    seen = _seen(distance, is_causal=False, window=window)[:, None]
    return torch.zeros(1, device=seen.device).masked_fill(~seen, float("-inf"))
