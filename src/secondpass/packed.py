"""Batches without padding: rows sorted by length, cut under a token budget, laid end to end.

Packing tokens end to end spends no arithmetic on padding: Krell et al. 2021, "Efficient Sequence Packing
without Cross-contamination".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Literal

from secondpass.types import Row

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def plan(lengths: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Micro-batches of indices into `lengths`, longest first, each of at most `token_budget` tokens.

    A row that is longer than the budget is a batch of its own. Every index appears exactly once.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}, it must be at least 1")
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or lengths[index] > room:
            batches.append([])
            room = token_budget
        batches[-1].append(index)
        room -= lengths[index]
    return batches


@dataclass(frozen=True, kw_only=True)
class Packed:
    """N rows of T tokens in all, without padding.

    ids, positions, types and rows are (T,): token ids, places within the row from 0, token types, and the row
    that a token belongs to. starts is (N + 1,) cumulative. lengths and passages are the same facts on the host,
    so that no launch waits for the device. Rows of one length that lie side by side are one of `groups`,
    (count, length), and are attended to together. Where `mask` (N, L) is set, the batch is the padded form that
    is traced for export: every row has L tokens, and mask is 1 on the real ones. Where `visible` is set, only the
    first so many tokens of a row are keys: no token sees the others, they do not see themselves either, but all
    have an output (ColBERT's augmentation of queries).
    """

    ids: Tensor
    positions: Tensor
    types: Tensor
    rows: Tensor
    starts: Tensor
    lengths: tuple[int, ...]
    passages: tuple[tuple[int, int], ...]
    mask: Tensor | None = None
    visible: tuple[int, ...] | None = None

    @property
    def groups(self) -> list[tuple[int, int]]:
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]

    def first(self) -> Tensor:
        """Places (N,) of each row's first token."""
        return self.starts[:-1]

    def last(self) -> Tensor:
        """Places (N,) of each row's last token."""
        return self.starts[1:] - 1

    def to(self, device: torch.device) -> Packed:
        """The same batch on `device`; copies from pinned memory do not block."""
        if device.type == "cpu":
            return self
        names = ("ids", "positions", "types", "rows", "starts")
        pin = device.type == "cuda"
        tensors = {name: getattr(self, name) for name in names}
        moved = {k: (t.pin_memory() if pin else t).to(device, non_blocking=pin) for k, t in tensors.items()}
        return replace(self, **moved)


def pack(rows: Sequence[Row]) -> Packed:
    """The rows end to end. Raises ValueError for no rows or a row without tokens."""
    import torch

    lengths = tuple(len(row) for row in rows)
    if not lengths or min(lengths) == 0:
        raise ValueError("pack needs at least one row, and each row at least one token")
    sizes = torch.tensor(lengths)
    starts = torch.tensor([0, *accumulate(lengths)])
    places = torch.arange(len(lengths)).repeat_interleave(sizes)
    positions = torch.arange(int(starts[-1])) - starts[places]
    passage_starts = torch.tensor([row.passage[0] for row in rows])
    return Packed(
        ids=torch.tensor([token for row in rows for token in row.ids]),
        positions=positions,
        types=(positions >= passage_starts[places]).long(),
        rows=places,
        starts=starts,
        lengths=lengths,
        passages=tuple(row.passage for row in rows),
    )


Keep = Literal["all", "first", "last"]
