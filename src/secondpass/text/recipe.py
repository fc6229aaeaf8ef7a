"""Recipes: how one family writes a (query, passage) pair as tokens, cuts it, and what its score means.

Everything here is exact: the same ids as the family's reference code, or the scores are not the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secondpass.text.tokenizer import Tokenizer
from secondpass.types import Row


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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One family's way with a pair. probability = sigmoid(score - midpoint)."""

    family: str
    truncation: str = "longest_first"
    template: str = "pair"
    midpoint: float = 0.0
    max_length: int | None = None  # None: as long as the checkpoint allows

    def rows(self, tokenizer: Tokenizer, query: str, passages: Sequence[str], limits: Limits) -> list[Row]:
        """One row per passage; the query is tokenised once."""
        return TEMPLATES[self.template](tokenizer, query, passages, limits)

    def room(self, tokenizer: Tokenizer, query: str, limits: Limits) -> int:
        """Tokens that a passage may have beside this query before it is cut."""
        template = tokenizer.pair_template
        length = len(tokenizer.encode(query))
        return TRUNCATIONS[limits.truncation](length, 10**9, template.num_special, limits)[1]


def pair_rows(tokenizer: Tokenizer, query: str, passages: Sequence[str], limits: Limits) -> list[Row]:
    """`[CLS] query [SEP] passage [SEP]` and its kin; an empty passage is still a pair."""
    template = tokenizer.pair_template
    cut = TRUNCATIONS[limits.truncation]
    query_ids = tokenizer.encode(query)
    rows = []
    for passage_ids in tokenizer.encode_batch(passages):
        kept = cut(len(query_ids), len(passage_ids), template.num_special, limits)
        before = [*template.before, *query_ids[: kept[0]], *template.between]
        stop = len(before) + kept[1]
        rows.append(
            Row(
                ids=[*before, *passage_ids[: kept[1]], *template.after],
                passage=(len(before), stop),
                cut=(len(query_ids) - kept[0], len(passage_ids) - kept[1]),
            )
        )
    return rows


RowsOf = Callable[[Tokenizer, str, Sequence[str], Limits], list[Row]]
TEMPLATES: dict[str, RowsOf] = {"pair": pair_rows}
