"""Batches without padding: rows sorted by length, cut under a token budget, laid end to end.

Packing tokens end to end spends no arithmetic on padding: Krell et al. 2021, "Efficient Sequence Packing
without Cross-contamination".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from secondpass.types import Row

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Which tokens of a row a head reads: a backbone computes no others in its last block.
Keep = Literal["all", "first", "last"]


# Lengths between a power of two and its double, and the least distance of two.
STEPS, MIN_STEP = 8, 16


def rung(length: int) -> int:
    """The length that so many tokens are padded to where shapes have to be few: at most an eighth or 15 more."""
    step = max((1 << (length - 1).bit_length()) // (2 * STEPS), MIN_STEP)
    return -(-length // step) * step


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
class Shared:
    """What rows begin with that was computed before: row n with the tokens spans[n] of `num_kept` kept ones.

    index, rows and positions are (S,), of all keys of all rows, end to end: their positions among the kept tokens
    followed by the batch's own, the row that sees them, and their positions in it. lengths are the keys per row,
    starts (N + 1,) is cumulative.
    """

    spans: tuple[tuple[int, int], ...]
    num_kept: int
    index: Tensor
    rows: Tensor
    positions: Tensor
    starts: Tensor
    lengths: tuple[int, ...]

    @cached_property
    def longest(self) -> int:
        """No row has more keys."""
        return max(self.lengths)

    @cached_property
    def cumulative(self) -> Tensor:
        """`starts` as kernels take it, in 32 bits."""
        return self.starts.int()


@dataclass(frozen=True, kw_only=True)
class Packed:
    """N rows of T tokens in all, without padding.

    ids, positions, types and rows are (T,): token ids, positions within the row from 0, token types, and the row
    that a token belongs to. starts is (N + 1,) cumulative. lengths and passages are the same facts on the host,
    so that no launch waits for the device. Rows of one length that lie side by side are one of `groups`,
    (count, length), and are attended to together. Where `mask` (N, L) is set, the batch is the padded form that
    is traced for export: every row has L tokens, and mask is 1 on the real ones; `sides` (N, L) then tells two
    texts of a row apart, whose tokens do not see each other. Where `visible` is set, only the
    first so many tokens of a row are keys: no token sees the others, they do not see themselves either, but all
    have an output (ColBERT's augmentation of queries). Where `shared` is set, a row holds only what comes after the
    tokens that it shares: positions count these, lengths and passages do not. Where `limit` is set, tokens and
    starts change while the shapes stay (`engine.graphs`): no row is longer than `limit`, and lengths and passages
    are empty, since no figure on the host may depend on them.
    weights (T,), where set, are how much a token counts in a mean of neighbours.
    """

    ids: Tensor
    positions: Tensor
    types: Tensor
    rows: Tensor
    starts: Tensor
    lengths: tuple[int, ...]
    passages: tuple[tuple[int, int], ...]
    mask: Tensor | None = None
    sides: Tensor | None = None
    visible: tuple[int, ...] | None = None
    weights: Tensor | None = None
    shared: Shared | None = None
    limit: int | None = None

    @cached_property
    def longest(self) -> int:
        """No row has more tokens."""
        return max(self.lengths) if self.limit is None else self.limit

    @property
    def groups(self) -> list[tuple[int, int]]:
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]

    @cached_property
    def cumulative(self) -> Tensor:
        """`starts` as kernels take it, in 32 bits."""
        return self.starts.int()

    def first(self) -> Tensor:
        """Indices (N,) of each row's first token."""
        return self.starts[:-1]

    def last(self) -> Tensor:
        """Indices (N,) of each row's last token."""
        return self.starts[1:] - 1

    def kept(self, keep: Keep) -> Tensor | None:
        """Indices (N,) of the tokens to keep, one of each row; None for all tokens."""
        return {"all": lambda: None, "first": self.first, "last": self.last}[keep]()

    def to(self, device: torch.device) -> Packed:
        """The same batch on `device`; copies from pinned memory do not block."""
        if device.type == "cpu":
            return self
        shared = None if self.shared is None else _moved(self.shared, _SHARED, device)
        return replace(_moved(self, ("ids", "positions", "types", "rows", "starts"), device), shared=shared)

    def resized(self, lengths: Sequence[int], passages: Sequence[tuple[int, int]]) -> Packed:
        """A batch of the same rows with other lengths, for states without ids: those of its tokens are 0."""
        rows = [Row([0] * length, passage) for length, passage in zip(lengths, passages, strict=True)]
        spans, num_kept = (None, 0) if self.shared is None else (self.shared.spans, self.shared.num_kept)
        return pack(rows, spans, num_kept=num_kept).to(self.ids.device)


_SHARED = ("index", "rows", "positions", "starts")
_Batch = TypeVar("_Batch", Packed, Shared)


def _moved(batch: _Batch, names: Sequence[str], device: torch.device) -> _Batch:
    moved: dict[str, Any] = {name: sent(getattr(batch, name), device) for name in names}
    return replace(batch, **moved)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; on a GPU by way of pinned memory, so that the host does not wait for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pack(rows: Sequence[Row], spans: Sequence[tuple[int, int]] | None = None, *, num_kept: int = 0) -> Packed:
    """The rows end to end. Raises ValueError for no rows or a row without tokens.

    spans: for each row the tokens, of `num_kept` computed before, that come before its own.
    """
    import torch

    lengths = tuple(len(row) for row in rows)
    if not lengths or min(lengths) == 0:
        raise ValueError("pack needs at least one row, and each row at least one token")
    row_index, positions, starts = _layout(lengths)
    typed_from = torch.tensor([row.passage[0] if row.is_typed else len(row) for row in rows])
    types = (positions >= typed_from[row_index]).long()
    shared = None if spans is None else _share(lengths, spans, num_kept)
    if spans is not None:
        positions = positions + torch.tensor([stop - start for start, stop in spans])[row_index]
    return Packed(
        ids=torch.tensor([token for row in rows for token in row.ids]),
        positions=positions,
        types=types,
        rows=row_index,
        starts=starts,
        lengths=lengths,
        passages=tuple(row.passage for row in rows),
        shared=shared,
    )


def _layout(lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The row (T,) and the position in it (T,) of each token, and where rows start (N + 1,)."""
    import torch

    starts = torch.tensor([0, *accumulate(lengths)])
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return rows, torch.arange(int(starts[-1])) - starts[rows], starts


def _share(lengths: Sequence[int], spans: Sequence[tuple[int, int]], num_kept: int) -> Shared:
    import torch

    num_keys = [length + stop - start for length, (start, stop) in zip(lengths, spans, strict=True)]
    rows, positions, starts = _layout(num_keys)
    first, before = (torch.tensor(column)[rows] for column in zip(*((a, b - a) for a, b in spans), strict=True))
    own = num_kept + torch.tensor([0, *accumulate(lengths)])[rows] + positions - before
    return Shared(
        spans=tuple(spans),
        num_kept=num_kept,
        index=torch.where(positions < before, first + positions, own),
        rows=rows,
        positions=positions,
        starts=starts,
        lengths=tuple(num_keys),
    )
