"""How long the parts of a row may be: the rules by which the references cut a query and a passage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long the parts of a row may be, in tokens. max_length counts the special tokens of a pair."""

    max_length: int
    max_query_length: int | None = None
    truncation: str = "longest_first"


Truncation = Callable[[int, int, int, Limits], tuple[int, int]]


def longest_first(query: int, passage: int, num_special: int, limits: Limits) -> tuple[int, int]:
    """Lengths kept of (query, passage): the rule of the `tokenizers` library.

    The longer side is cut first, and both to halves when the shorter is too long by itself. Where both are
    equally long, the query counts as the shorter.
    """
    if limits.max_query_length is not None:
        query = min(query, limits.max_query_length)
    room = max(limits.max_length - num_special, 0)
    if query + passage <= room:
        return query, passage
    short, long = sorted((query, passage))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if query <= passage else (long, short)


def only_second(query: int, passage: int, num_special: int, limits: Limits) -> tuple[int, int]:
    """Lengths kept of (query, passage): FlagEmbedding's rule.

    The query keeps at most max_query_length tokens, three quarters of max_length by default, and is never cut
    for the passage's sake.
    """
    cap = limits.max_query_length
    query = min(query, limits.max_length * 3 // 4 if cap is None else cap)
    room = max(limits.max_length - num_special - query, 0)
    return query, min(passage, room)


TRUNCATIONS: dict[str, Truncation] = {"longest_first": longest_first, "only_second": only_second}
