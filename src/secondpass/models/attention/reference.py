"""Attention by its definition over packed rows: what every kernel must equal, and what the kernels have in common.

T tokens, N rows, H heads, K key-value heads, D head width; n rows of one shape with L queries and S keys each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from secondpass.packed import Packed

# Rows of one shape are attended to together up to this many logits, 32 MB in float32.
MAX_LOGITS = 1 << 23


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which keys a query sees, and how their logits are made.

    window: a token sees keys at a distance of at most `window` on either side (causal: behind it only).
    softcap: logits become softcap * tanh(logits / softcap).
    """

    scale: float
    is_causal: bool = False
    window: int | None = None
    softcap: float | None = None


class Bias(Protocol):
    """What a model adds to the logits beside content, such as DeBERTa's distances."""

    def of_rows(self, q: Tensor, k: Tensor, first: int = 0) -> Tensor:
        """(n, H, Q, L) for rows of one length, keys k (n, H, L, D), and Q queries q (n, H, Q, D) from `first` on."""
        ...

    def of_kept(self, q: Tensor, k: Tensor, batch: Packed, keep: Tensor) -> Tensor | None:
        """(T, H) for the one query q (N, H, D) of each row, that of the token at index `keep` (N,), and keys k."""
        ...


class Kernel(Protocol):
    """Attention (T, H, D) of each row's queries q (T, H, D) over its own keys and values k, v (T, K, D).

    keep (N,): only these tokens' outputs are wanted, one of each row: (N, H, D). Where `batch.shared` is set, keys
    and values are (S, K, D) of all keys of all rows. Vaswani et al. 2017; grouped heads as in Ainslie et al. 2023.
    """

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: Packed,
        *,
        rule: Rule,
        keep: Tensor | None = None,
        bias: Bias | None = None,
    ) -> Tensor: ...


# Attention (n, H, L, D) of q (n, H, L, D) over k and v (n, K, S, D) under a rule; the tensor is added to the logits.
# Where there are more keys than queries, the queries are the last of the row; where there are fewer (`visible`), the
# keys are the first of it.
RowKernel = Callable[[Tensor, Tensor, Tensor, Rule, Tensor | None], Tensor]


def attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Packed,
    *,
    rule: Rule,
    keep: Tensor | None = None,
    bias: Bias | None = None,
) -> Tensor:
    """The definition, in the precision of q: every logit is held."""
    if keep is not None:
        return attend_kept(q[keep], k, v, batch, rule=rule, keep=keep, bias=bias)
    return by_rows(_defined, q, k, v, batch, rule=rule, bias=bias)


def by_rows(
    attend: RowKernel, q: Tensor, k: Tensor, v: Tensor, batch: Packed, *, rule: Rule, bias: Bias | None
) -> Tensor:
    """Attention of all rows by a kernel for rows of one shape: those that lie side by side are run together."""
    if batch.mask is not None:
        n, length = batch.mask.shape
        seen = mask_bias(n, length, batch.mask, rule, like=q)
        if batch.sides is not None:
            seen = seen.masked_fill((batch.sides[:, :, None] != batch.sides[:, None, :])[:, None], float("-inf"))
        q, k, v = (by_head(x, n, length) for x in (q, k, v))
        seen = seen if bias is None else bias.of_rows(q, k) + seen
        return by_token(attend(q, k, v, replace(rule, is_causal=False, window=None), seen))
    groups = list(_groups(batch, q.shape[1]))
    # split and cat, not slices: the gradient of each slice would be as large as the whole batch
    queries = torch.split(q, [count * length for count, length, _, _ in groups])
    keys, values = (torch.split(x, [count * stored for count, _, stored, _ in groups]) for x in (k, v))
    outs = []
    for (count, length, stored, seen_keys), *parts in zip(groups, queries, keys, values, strict=True):
        rows = by_head(parts[0], count, length)
        row_keys, row_values = (by_head(x, count, stored)[:, :, :seen_keys] for x in parts[1:])
        if bias is None:
            # what follows the keys by more than the window sees none of them, and is 0
            reach = length if rule.window is None or seen_keys == stored else min(seen_keys + rule.window, length)
            found = attend(rows[:, :, :reach], row_keys, row_values, rule, None)
            found = found if reach == length else torch.nn.functional.pad(found, (0, 0, 0, length - reach))
        else:
            found = _biased(attend, rows, row_keys, row_values, rule, bias)
        outs.append(by_token(found))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _biased(attend: RowKernel, q: Tensor, k: Tensor, v: Tensor, rule: Rule, bias: Bias) -> Tensor:
    """As many queries at once as MAX_LOGITS allows: a bias is as large as the logits, of 8,192 tokens gigabytes."""
    step = max(MAX_LOGITS // (q.shape[0] * q.shape[1] * k.shape[2]), 1)
    blocks = [(first, q[:, :, first : first + step]) for first in range(0, q.shape[2], step)]
    outs = [attend(block, k, v, rule, bias.of_rows(block, k, first)) for first, block in blocks]
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)


def _groups(batch: Packed, num_heads: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows of one shape side by side: how many, and of each its queries, its keys, and how many of these are seen."""
    stored = batch.lengths if batch.shared is None else batch.shared.lengths
    seen = stored if batch.visible is None else batch.visible
    for (length, keys, visible), run in groupby(zip(batch.lengths, stored, seen, strict=True)):
        count = len(list(run))
        most = max(1, MAX_LOGITS // (num_heads * length * keys))
        for done in range(0, count, most):
            yield min(most, count - done), length, keys, visible


def by_head(x: Tensor, n: int, length: int) -> Tensor:
    """(n * L, H, D) -> (n, H, L, D), a view."""
    return x.reshape(n, length, x.shape[1], x.shape[2]).transpose(1, 2)


def by_token(x: Tensor) -> Tensor:
    """(n, H, L, D) -> (n * L, H, D)."""
    return x.transpose(1, 2).flatten(0, 1)


def repeated(x: Tensor, num_heads: int) -> Tensor:
    """Keys or values, (n, K, L, D) or (T, K, D), for each of so many heads of queries."""
    repeats = num_heads // x.shape[1]
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def mask_bias(n: int, length: int, mask: Tensor, rule: Rule, *, like: Tensor) -> Tensor:
    """What is added to the logits (n, 1, L, L) of padded rows: 0 where a query may look, -inf elsewhere.

    A query always sees itself: padding that sees nothing would become NaN, and NaN reaches real tokens through
    the next block's values.
    """
    index = torch.arange(length, device=like.device)
    distance = index[:, None] - index[None, :]
    seen = _seen(distance, rule)[None, None].expand(n, 1, length, length)
    seen = seen & (mask[:, None, None, :] > 0) | (distance == 0)
    return torch.zeros(1, dtype=like.dtype, device=like.device).masked_fill(~seen, float("-inf"))


def _seen(distance: Tensor, rule: Rule) -> Tensor:
    """Whether a query sees a key, by the query's index minus the key's."""
    seen = torch.ones_like(distance, dtype=torch.bool)
    if rule.is_causal:
        seen = seen & (distance >= 0)
    if rule.window is not None:
        seen = seen & (distance.abs() <= rule.window)
    return seen


def band_bias(shape: tuple[int, int], ahead: int, rule: Rule, *, like: Tensor) -> Tensor:
    """0 where query i, which stands at key i + ahead, may look, -inf elsewhere: (queries, keys).

    Triangles are written in one pass each; comparing distances takes eight, half of the time of a short attention.
    """
    hidden = like.new_full(shape, float("-inf"))
    if rule.window is None:
        return hidden.triu_(ahead + 1)
    right = hidden.triu(ahead + 1 + (0 if rule.is_causal else rule.window))
    return right + hidden.tril_(ahead - rule.window - 1)


def is_banded(rule: Rule, length: int, num_keys: int) -> bool:
    """Whether some of `length` queries of a row of so many keys does not see all of them."""
    return rule.is_causal or (rule.window is not None and rule.window < max(length, num_keys) - 1)


def _defined(q: Tensor, k: Tensor, v: Tensor, rule: Rule, added: Tensor | None) -> Tensor:
    length, num_keys = q.shape[2], k.shape[2]
    if is_banded(rule, length, num_keys):
        band = band_bias((length, num_keys), max(num_keys - length, 0), rule, like=q)
        added = band if added is None else added + band
    return masked_attention(q, k, v, added, scale=rule.scale, softcap=rule.softcap)


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor:
    """softmax(cap(q k^T * scale) + bias) v, with q (n, H, L, D), k and v (n, K, S, D)."""
    k, v = (repeated(x, q.shape[1]) for x in (k, v))
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
    q: Tensor, k: Tensor, v: Tensor, batch: Packed, *, rule: Rule, keep: Tensor, bias: Bias | None = None
) -> Tensor:
    """Attention (N, H, D) of one query token per row, q (N, H, D) at indices `keep`, over all keys of its row.

    In float32, by sums over the rows that tokens belong to. The last block of a reranker needs no other token's
    output, which saves most of that block.
    """
    added = _window_bias(batch, keep, rule.window)
    if bias is not None and (more := bias.of_kept(q, k, batch, keep)) is not None:
        added = more if added is None else added + more
    if batch.mask is not None:
        return _attend_kept_padded(q, k, v, batch.mask, rule=rule, added=added)
    k, v = (repeated(x, q.shape[1]) for x in (k, v))
    rows = batch.rows if batch.shared is None else batch.shared.rows
    logits = (q[rows].float() * k.float()).sum(-1) * rule.scale  # (T, H)
    if rule.softcap is not None:
        logits = torch.tanh(logits / rule.softcap) * rule.softcap
    if added is not None:
        logits = logits + added
    top = logits.new_full((q.shape[0], q.shape[1]), float("-inf"))
    index = rows[:, None].expand_as(logits)
    top = top.scatter_reduce(0, index, logits.detach(), "amax")
    weights = torch.exp(logits - top[rows])
    total = torch.zeros_like(top).index_add_(0, rows, weights)
    mixed = q.new_zeros(q.shape, dtype=torch.float32)
    mixed.index_add_(0, rows, weights[..., None] * v.float())
    return (mixed / total[..., None]).to(q.dtype)


def _attend_kept_padded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, rule: Rule, added: Tensor | None) -> Tensor:
    n, length = mask.shape
    seen = torch.zeros(1, dtype=q.dtype, device=q.device).masked_fill(mask == 0, float("-inf"))
    seen = seen[:, None, None, :]
    if added is not None:
        seen = seen + added.reshape(n, length, -1).transpose(1, 2)[:, :, None]
    k, v = by_head(k, n, length), by_head(v, n, length)
    return masked_attention(q[:, :, None], k, v, seen, scale=rule.scale, softcap=rule.softcap).flatten(1, 2)


def _window_bias(batch: Packed, keep: Tensor, window: int | None) -> Tensor | None:
    """What the window adds (T, 1) where the tokens at `keep` (N,) see keys within it only."""
    if window is None:
        return None
    keys = batch if batch.shared is None else batch.shared
    distance = batch.positions[keep][keys.rows] - keys.positions
    return torch.zeros(1, device=distance.device).masked_fill(distance.abs()[:, None] > window, float("-inf"))
