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
class Portion:
    """Rows to be scored, by their places in the whole; where they share, what comes after what they share.

    row i begins with the tokens spans[i] of the `shared` rows laid end to end.
    """

    places: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    shared: list[Row] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


def share(rows: Sequence[Row]) -> list[Portion]:
    """The rows in portions; those of one query are together where two or more of them are to be scored."""
    by_start: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        by_start.setdefault(tuple(row.ids[: row.passage[0]]), []).append(place)
    starts = [start for start, places in by_start.items() if len(places) > 1 and len(start) >= MIN_SHARED]
    together = {place for start in starts for place in by_start[start]}
    alone = [place for place in range(len(rows)) if place not in together]
    portions = [Portion(places=alone, rows=[rows[place] for place in alone])] if alone else []
    for batch in plan([len(start) for start in starts], token_budget=MAX_KEPT):
        portions.append(_portion(rows, [(starts[index], by_start[starts[index]]) for index in batch]))
    return portions


def _portion(rows: Sequence[Row], groups: Sequence[tuple[tuple[int, ...], list[int]]]) -> Portion:
    portion = Portion()
    begin = 0
    for start, places in groups:
        length = len(start)
        portion.shared.append(Row(list(start), (length, length)))
        portion.places += places
        portion.spans += [(begin, begin + length)] * len(places)
        portion.rows += [_rest(rows[place], length) for place in places]
        begin += length
    return portion


def _rest(row: Row, length: int) -> Row:
    return Row(row.ids[length:], (0, row.passage[1] - length), row.cut)
