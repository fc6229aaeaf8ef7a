"""Attention over packed rows in one kernel on a GPU, without padding: FlashAttention's variable-length form.

Dao 2023, "FlashAttention-2". torch calls it `torch.nn.attention.varlen`. It is tried on a small product, with its
gradient where one is needed; where it is missing, differs, or the GPU or the precision is none of its own, attention
goes row by row, which gives the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from secondpass.models.attention.reference import Bias, Rule, attend_reference
from secondpass.models.attention.sdpa import attend_sdpa
from secondpass.packed import Packed, pack
from secondpass.types import Row

MAX_HEAD_WIDTH = 256
HALF = (torch.bfloat16, torch.float16)
# What is tried: rows of these lengths, in the forms that the backbones use.
TRIED_LENGTHS = (5, 2)
TRIED_RULES = (
    Rule(scale=0.1),
    Rule(scale=0.1, is_causal=True),
    Rule(scale=0.1, window=1),
    Rule(scale=0.1, is_causal=True, window=1),
)
# Heads of queries for each head of keys.
TRIED_REPEATS = (1, 2)


@cache
def kernel() -> Callable[..., Any] | None:
    """torch's variable-length attention, or None where this torch has none."""
    try:
        found = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return found if callable(found) else None


@cache
def is_usable(device: torch.device, dtype: torch.dtype, width: int, *, has_gradient: bool = False) -> bool:
    """Whether the kernel takes heads of this width on this device in this precision, with their gradient if asked."""
    if device.type != "cuda" or dtype not in HALF or width % 8 or width > MAX_HEAD_WIDTH:
        return False
    has_flash = torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    return has_flash and kernel() is not None and is_right(device, dtype, width, has_gradient=has_gradient)


def is_right(device: torch.device, dtype: torch.dtype, width: int, *, has_gradient: bool) -> bool:
    """Whether the kernel and, if asked for, its gradient say on two short rows what attention is by definition."""
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(has_gradient),
        torch.autocast(device.type, enabled=False),
    ):
        generator = torch.Generator().manual_seed(0)
        values = torch.randn((4, sum(TRIED_LENGTHS), 2, width), generator=generator).to(device, dtype)
        try:
            return all(
                _rule_is_right(values, rule, repeats, has_gradient=has_gradient)
                for rule in TRIED_RULES
                for repeats in TRIED_REPEATS
            )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError):  # not built in, not on this GPU, or an argument that this torch lacks
            return False


def _rule_is_right(values: Tensor, rule: Rule, repeats: int, *, has_gradient: bool) -> bool:
    batch = pack([Row([0] * length, (0, length)) for length in TRIED_LENGTHS]).to(values.device)
    given = values.detach().requires_grad_(has_gradient)
    exact = values.detach().float().requires_grad_(has_gradient)
    heads = values.shape[2] // repeats
    found, wanted = (
        attend(x[0], x[1][:, :heads], x[2][:, :heads], batch, rule=rule)
        for attend, x in ((attend_varlen, given), (attend_reference, exact))
    )
    if not has_gradient:
        return _is_near(found, wanted)
    slopes = [
        torch.autograd.grad((out.float() * values[3].float()).sum(), x)[0]
        for out, x in ((found, given), (wanted, exact))
    ]
    return _is_near(found, wanted) and _is_near(slopes[0], slopes[1])


def _is_near(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found.float(), wanted, atol=0.03, rtol=0.03)


def attend_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Packed,
    *,
    rule: Rule,
    keep: Tensor | None = None,
    bias: Bias | None = None,
) -> Tensor:
    """See `Kernel`; what torch's kernel has no form for goes row by row.

    The longest row is known on the host, so nothing waits for the device. Where a row has more keys than queries, its
    queries are the last of it, which is how the kernel lines up causal and windowed rows.
    """
    has_form = rule.softcap is None and bias is None and batch.mask is None and batch.visible is None
    if not has_form or (keep is not None and rule.window is not None):
        return attend_sdpa(q, k, v, batch, rule=rule, keep=keep, bias=bias)
    run = kernel()
    assert run is not None
    keys = batch if batch.shared is None else batch.shared
    behind = -1 if rule.window is None else rule.window
    query_starts, longest, ahead = batch.cumulative, batch.longest, 0 if rule.is_causal else behind
    if keep is not None:  # one query for each row, which sees all keys of its row
        q, longest, ahead = q[keep], 1, -1
        query_starts = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
    out: Tensor = run(
        *(_in_place(x) for x in (q, k, v)),
        query_starts,
        keys.cumulative,
        longest,
        keys.longest,
        scale=rule.scale,
        window_size=(behind, ahead),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out


def _in_place(x: Tensor) -> Tensor:
    """Tokens and heads may lie apart, as in a joined product of query, key and value; a head's channels may not."""
    return x if x.stride(-1) == 1 else x.contiguous()
