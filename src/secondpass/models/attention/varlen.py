"""Attention over packed rows in one kernel on a GPU, without padding: FlashAttention's variable-length form.

Dao 2023, "FlashAttention-2". torch calls it `torch.nn.attention.varlen`. It is tried on a small product, with its
gradient where one is needed; where it is missing, differs, or the GPU or the precision is none of its own, attention
goes row by row, which gives the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secondpass.packed import Packed, pack
from secondpass.types import Row

MAX_HEAD_WIDTH = 256
HALF = (torch.bfloat16, torch.float16)
# What is tried: rows of these lengths, in the forms that the backbones use.
TRIED_LENGTHS = (5, 2)
TRIED_FORMS: tuple[Mapping[str, Any], ...] = (
    {},
    {"is_causal": True},
    {"window": 1},
    {"is_causal": True, "window": 1},
)


@cache
def kernel() -> Callable[..., Any] | None:
    """torch's variable-length attention, or None where this torch has none."""
    try:
        found = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return found if callable(found) else None


def is_usable(q: Tensor) -> bool:
    """Whether the kernel takes queries (T, H, D) of this device, precision and width, with their gradient if any."""
    if q.device.type != "cuda" or q.dtype not in HALF or q.shape[2] % 8 or q.shape[2] > MAX_HEAD_WIDTH:
        return False
    return _works(q.device, q.dtype, q.shape[2], q.requires_grad)


@cache
def _works(device: torch.device, dtype: torch.dtype, width: int, has_gradient: bool) -> bool:
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
        shape = (4, sum(TRIED_LENGTHS), 2, width)
        values = torch.randn(shape, generator=generator).to(device, dtype)
        try:
            return all(_form_is_right(values, form, has_gradient=has_gradient) for form in TRIED_FORMS)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError):  # not built in, not on this GPU, or an argument that this torch lacks
            return False


def _form_is_right(values: Tensor, form: Mapping[str, Any], *, has_gradient: bool) -> bool:
    batch = pack([Row([0] * length, (0, length)) for length in TRIED_LENGTHS]).to(values.device)
    given = values.detach().requires_grad_(has_gradient)
    exact = values.detach().float().requires_grad_(has_gradient)
    found, wanted = attend_varlen(given[0], given[1], given[2], batch, scale=0.1, **form), _defined(exact, **form)
    if not has_gradient:
        return _is_near(found, wanted)
    slopes = [
        torch.autograd.grad((out.float() * values[3].float()).sum(), x)[0]
        for out, x in ((found, given), (wanted, exact))
    ]
    return _is_near(found, wanted) and _is_near(*slopes)


def _is_near(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found.float(), wanted, atol=0.03, rtol=0.03)


def _defined(values: Tensor, *, is_causal: bool = False, window: int | None = None) -> Tensor:
    """Attention (T, H, D) of the tried rows, by masks, with a scale of 0.1."""
    rows = torch.arange(len(TRIED_LENGTHS)).repeat_interleave(torch.tensor(TRIED_LENGTHS))
    place = torch.arange(len(rows))
    distance = place[:, None] - place
    seen = (rows[:, None] == rows) & (distance.abs() <= (len(rows) if window is None else window))
    seen = seen & (distance >= 0) if is_causal else seen
    q, k, v = (x.transpose(0, 1) for x in values[:3])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen.to(q.device), scale=0.1).transpose(0, 1)


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
        query_starts = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
    out: Tensor = run(
        *(_in_place(x) for x in (q, k, v)),
        query_starts,
        keys.cumulative,
        1 if has_one_query else batch.longest,
        keys.longest,
        scale=scale,
        window_size=(behind, 0 if is_causal else behind),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out


def _in_place(x: Tensor) -> Tensor:
    """Tokens and heads may lie apart, as in a joined product of query, key and value; a head's channels may not."""
    return x if x.stride(-1) == 1 else x.contiguous()
