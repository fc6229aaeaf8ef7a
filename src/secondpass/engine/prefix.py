"""What rows share: the tokens before the passage are the same for all candidates of a query.

In a causal model they do not see what follows, so their keys and values are computed once and give the same scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from secondpass.packed import plan
from secondpass.types import Row

# A shorter beginning costs more in calls than it saves.
MIN_SHARED = 8
# Tokens whose keys and values are kept at a time: of the largest models here some 150 kB each.
MAX_KEPT = 4096


@dataclass(kw_only=True)
class SharedRows:
    """Rows to be scored, by their indices in the whole; where they share, what comes after what they share.

    row i begins with the tokens spans[i] of the `shared` rows laid end to end.
    """

    indices: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    shared: list[Row] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


def share(rows: Sequence[Row]) -> list[SharedRows]:
    """The rows in portions; those of one query are together where two or more of them are to be scored."""
    by_start: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        by_start.setdefault(tuple(row.ids[: row.passage[0]]), []).append(index)
    starts = [start for start, indices in by_start.items() if len(indices) > 1 and len(start) >= MIN_SHARED]
    together = {index for start in starts for index in by_start[start]}
    alone = [index for index in range(len(rows)) if index not in together]
    portions = [SharedRows(indices=alone, rows=[rows[index] for index in alone])] if alone else []
    for batch in plan([len(start) for start in starts], token_budget=MAX_KEPT):
        portions.append(_portion(rows, [(starts[index], by_start[starts[index]]) for index in batch]))
    return portions


def _portion(rows: Sequence[Row], groups: Sequence[tuple[tuple[int, ...], list[int]]]) -> SharedRows:
    portion = SharedRows()
    begin = 0
    for start, indices in groups:
        length = len(start)
        portion.shared.append(Row(list(start), (length, length)))
        portion.indices += indices
        portion.spans += [(begin, begin + length)] * len(indices)
        portion.rows += [_rest(rows[index], length) for index in indices]
        begin += length
    return portion


def _rest(row: Row, length: int) -> Row:
    return Row(row.ids[length:], (0, row.passage[1] - length), row.cut)
