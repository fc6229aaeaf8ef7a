"""A model on the CPU: its threads and its kernels."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import nn

from secondpass.engine.cpu.linear_int8 import quantize_linears
from secondpass.engine.cpu.linear_onednn import fuse_linears
from secondpass.engine.cpu.threads import usable_threads


def prepare(model: nn.Module, *, is_int8: bool = False) -> str:
    """Give `model` the fastest kernels that work, and torch no more threads than cores; says what was chosen."""
    current = torch.get_num_threads()
    threads = usable_threads(current)
    if threads < current:
        torch.set_num_threads(threads)
    words = quantize_linears(model) if is_int8 else fuse_linears(model)
    _give_back()
    return f"{words}, {threads} thread{'s' if threads > 1 else ''}"


def _give_back() -> None:
    """Weights in their old order are freed one by one, and glibc keeps that memory (350 MB of v2-m3 in int8)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
