"""Attention in bfloat16 on a CPU: exponentials and their sums instead of a softmax, in blocks that fit the caches.

Torch's softmax finds each row's maximum first, which in bfloat16 takes twice as long as both matrix products: of the
679 us of a row of 180 tokens (12 heads of 32, one core) it was 412. Logits of a trained model are far from where
exp overflows, so the maximum is not needed; where sums show that it was, the definition is computed instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from secondpass.models.attention.reference import Bias, Rule, attend_kept, by_rows, masked_attention, repeated
from secondpass.models.attention.sdpa import BLOCK, visible_keys
from secondpass.models.attention.windows import is_plain, windows
from secondpass.packed import Packed

# Sums outside are too near to overflow, or to where keys that matter vanish.
LOWEST, HIGHEST = 1e-30, 1e30
# Logits that are held at once, 2 MB. A row of 512 tokens (12 heads of 32, one core) took 2.9 ms; with a quarter, a
# half, two and three times as many 3.6, 3.2, 3.2 and 3.5 ms.
MAX_LOGITS = 1 << 20
# With 8,192 keys (16 heads of 64, one core) 64 and 128 queries took 1.5 s in all, 32 took 1.5 to 1.9 s.
MIN_QUERIES = 64


def attend_cpu_bf16(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Packed,
    *,
    rule: Rule,
    keep: Tensor | None = None,
    bias: Bias | None = None,
) -> Tensor:
    """See `Kernel`; without gradients only, and not in a trace: it overwrites its logits and looks at their sums."""
    if keep is not None:
        return attend_kept(q[keep], k, v, batch, rule=rule, keep=keep, bias=bias)
    if not is_plain(batch, rule, bias):
        return by_rows(_attend_rows, q, k, v, batch, rule=rule, bias=bias)
    rule = replace(rule, window=None)  # which no row is longer than, but its window may be
    outs = []
    for window in windows(batch.groups, len(k)):
        seen = window.mask(k.dtype)
        outs.append(window.own(_attend_seen(window.of(q), window.of(k), window.of(v), rule, seen)))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, rule: Rule, added: Tensor | None) -> Tensor:
    if added is None:
        return _attend_seen(q, k, v, rule, None)
    k, v = (side_by_side(repeated(x, q.shape[1])) for x in (k, v))
    return _attend(q, k, v, added, rule)


def _attend_seen(q: Tensor, k: Tensor, v: Tensor, rule: Rule, seen: Tensor | None) -> Tensor:
    """A few rows, heads and queries at a time, so that their logits stay in the caches.

    seen (1, 1, 1, S), where set, is added to the logits of a rule under which every query sees all keys.
    """
    n, heads, length, width = q.shape
    k, v = (side_by_side(repeated(x, heads)) for x in (k, v))
    num_keys = k.shape[2]
    sees_all = rule.window is None or rule.window >= max(length, num_keys) - 1
    most_queries = None if sees_all and not rule.is_causal else BLOCK
    mixed = q.new_empty(n, length, heads, width).transpose(1, 2)
    for row, head, queries in blocks(n, heads, length, num_keys, most_queries):
        keys, band = visible_keys(queries, length, num_keys, rule, like=q)
        band = seen if band is None else band
        mixed[row, head, queries] = _attend(q[row, head, queries], k[row, head, keys], v[row, head, keys], band, rule)
    return mixed


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rule: Rule) -> Tensor:
    mixed = attend_unnormalised(q, k, v, bias, scale=rule.scale, softcap=rule.softcap)
    return masked_attention(q, k, v, bias, scale=rule.scale, softcap=rule.softcap) if mixed is None else mixed


def attend_unnormalised(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor | None:
    """softmax(cap(q k^T * scale) + bias) v, with q (n, H, L, D), k and v (n, H, S, D); None where exp is not safe.

    Keeps no graph: without gradients only. bias broadcasts to (n, H, L, S).
    """
    n, heads, length, _ = q.shape
    keys = side_by_side(k).flatten(0, 1).transpose(1, 2)
    logits = torch.baddbmm(q.new_empty(1), q.flatten(0, 1), keys, beta=0, alpha=scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    if bias is not None:
        logits.view(n, heads, length, -1).add_(bias)
    weights = logits.exp_()
    sums = weights.sum(-1, keepdim=True, dtype=torch.float32)
    low, high = torch.aminmax(sums)
    if not (float(low) > LOWEST and float(high) < HIGHEST):  # also where they are NaN
        return None
    mixed = torch.bmm(weights, v.flatten(0, 1)).div_(sums)
    return mixed.view(n, heads, length, -1)


def side_by_side(x: Tensor) -> Tensor:
    """x (n, H, S, D), copied where the vectors of a head are apart.

    They are multiplied up to twice as fast as every third vector of a joined product.
    """
    return x if x.stride(2) == x.shape[3] else x.contiguous()


def blocks(
    n: int, num_heads: int, num_queries: int, num_keys: int, most_queries: int | None = None
) -> Iterator[tuple[slice, slice, slice]]:
    """Rows, heads and queries that are attended to at once, so that logits are at most MAX_LOGITS or little more.

    Whole rows where they fit, then heads of a row, then queries of a head. most_queries: where not all queries see
    the same keys, fewer at once have fewer keys together.
    """
    queries = min(most_queries or max(MAX_LOGITS // num_keys, MIN_QUERIES), num_queries)
    fitting = max(MAX_LOGITS // (queries * num_keys), 1)
    heads, rows = min(fitting, num_heads), max(fitting // num_heads, 1)
    for row in range(0, n, rows):
        for head in range(0, num_heads, heads):
            for first in range(0, num_queries, queries):
                yield (
                    slice(row, min(row + rows, n)),
                    slice(head, min(head + heads, num_heads)),
                    slice(first, min(first + queries, num_queries)),
                )
