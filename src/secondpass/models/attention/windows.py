"""Rows seen through windows of few lengths, so that kernels are made for few shapes and tiles are full.

A kernel is given a row with the tokens that lie behind it in the batch, up to the next multiple of WINDOW: nothing is
copied, a mask hides the other rows' keys, and the outputs of their queries are dropped. For each length torch and
oneDNN make kernels of half a megabyte and more, and the fused kernel's are never freed; and AMX multiplies tiles of
16 x 32 values, so that a row of 180 tokens (12 heads of 32) takes 584 us and one of 192 tokens 460.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from secondpass.models.attention.reference import Bias, Rule, is_banded
from secondpass.packed import Packed

WINDOW = 32


def is_plain(batch: Packed, rule: Rule, bias: Bias | None) -> bool:
    """Whether every token sees all of its row, and nothing else."""
    is_whole = batch.mask is None and batch.visible is None and batch.shared is None and batch.limit is None
    return is_whole and bias is None and not is_banded(rule, batch.longest, batch.longest)


@dataclass(frozen=True, kw_only=True)
class Window:
    """`count` rows of `length` tokens that lie side by side, the `first` of the batch and at token `start`.

    Each is seen with the tokens around it: `size` in all, of which `before` lie before the row.
    """

    first: int
    count: int
    start: int
    length: int
    before: int
    size: int

    def of(self, x: Tensor) -> Tensor:
        """(count, H, size, D), a view of x (T, H, D)."""
        token, head, channel = x.stride()
        shape, offset = (self.count, x.shape[1], self.size, x.shape[2]), (self.start - self.before) * token
        return x.as_strided(shape, (self.length * token, head, token, channel), x.storage_offset() + offset)

    def own(self, x: Tensor) -> Tensor:
        """The rows' own part (count * length, H, D) of x (count, H, size, D)."""
        x = x.transpose(1, 2)
        if self.size > self.length:
            x = x[:, self.before : self.before + self.length]
        return x.flatten(0, 1)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """What is added to the logits, so that the rows see their own keys; None where there are no others."""
        return None if self.size == self.length else _mask(self.before, self.length, self.size, dtype)


@lru_cache(4096)
def _mask(before: int, length: int, size: int, dtype: torch.dtype) -> Tensor:
    mask = torch.full((1, 1, 1, size), float("-inf"), dtype=dtype)
    mask[..., before : before + length] = 0
    return mask


def windows(groups: Sequence[tuple[int, int]], num_tokens: int) -> Iterator[Window]:
    """Of each group of rows, (count, length); no window leaves the `num_tokens` tokens of the batch."""
    first, start = 0, 0
    for count, length in groups:
        size = -(-length // WINDOW) * WINDOW
        stop = start + (count - 1) * length + size
        before = max(stop - num_tokens, 0)
        if before > start:  # the batch is shorter than the window
            before, size = 0, length
        yield Window(first=first, count=count, start=start, length=length, before=before, size=size)
        first, start = first + count, start + count * length
