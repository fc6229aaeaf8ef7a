"""Attention over packed rows in one kernel on a GPU, without padding: FlashAttention's variable-length form.

Dao 2023, "FlashAttention-2". torch's name for it is `torch.nn.attention.varlen`; where that is missing, or the GPU
or the precision is none of its own, attention goes row by row, which gives the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from secondpass.packed import Packed

MAX_HEAD_WIDTH = 256
HALF = (torch.bfloat16, torch.float16)


@cache
def kernel() -> Callable[..., Any] | None:
    """torch's variable-length attention, or None where this torch has none."""
    try:
        found = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return found if callable(found) else None


@cache
def _has_flash(device: torch.device) -> bool:
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def is_usable(q: Tensor) -> bool:
    """Whether the kernel takes queries (T, H, D) of this device, precision and width."""
    if q.device.type != "cuda" or q.dtype not in HALF or q.requires_grad:
        return False
    return q.shape[2] % 8 == 0 and q.shape[2] <= MAX_HEAD_WIDTH and kernel() is not None and _has_flash(q.device)


def attend_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Packed,
    *,
    scale: float,
    is_causal: bool = False,
    window: int | None = None,
    has_one_query: bool = False,
) -> Tensor:
    """Each row's queries (T, H, D) over its own keys and values, (T, K, D), or (S, K, D) where rows share.

    has_one_query: there is one query for each row, q (N, H, D), and it sees all keys of its row.
    The longest row is known on the host, so nothing waits for the device. Where a row has more keys than queries, its
    queries are the last of it, which is how the kernel lines up causal and windowed rows.
    """
    run = kernel()
    assert run is not None
    keys = batch if batch.shared is None else batch.shared
    behind = -1 if window is None else window
    query_starts = batch.cumulative
    if has_one_query:
        query_starts = torch.arange(len(batch.lengths) + 1, dtype=torch.int32, device=q.device)
    out: Tensor = run(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        query_starts,
        keys.cumulative,
        1 if has_one_query else max(batch.lengths),
        max(keys.lengths),
        scale=scale,
        window_size=(behind, 0 if is_causal else behind),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out
