"""What one call asks of a reranker's reader: pairs and budgets in, rows out, and rows' scores back to pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from secondpass.reranker import Reranker
from secondpass.text.documents import clean_query
from secondpass.text.reader import Pair, Reader, Reading
from secondpass.text.recipe import Limits
from secondpass.text.tokenizer import Tokenizer
from secondpass.wire.calls import Budgets, Cost, Fault, Item, Refusal


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The pairs of a call as rows: readings are of the pairs as they were shortened, `pairs` in the call's order."""

    readings: list[Reading]
    pairs: list[Pair]
    shortened: frozenset[Pair]  # cut before the pair was written
    characters: int

    def items(self, logits: Sequence[float], reranker: Reranker) -> list[Item]:
        """One item per pair, in the call's order; the best window of a pair wins."""
        best: dict[Pair, int] = {}
        tokens: dict[Pair, int] = {}
        for place, reading in enumerate(self.readings):
            tokens[reading.pair] = tokens.get(reading.pair, 0) + len(reading.row)
            if reading.pair not in best or logits[place] > logits[best[reading.pair]]:
                best[reading.pair] = place
        return [
            Item(
                index=index,
                logit=logits[best[pair]],
                probability=reranker.probability(logits[best[pair]]),
                tokens=tokens[pair],
                is_cut=pair in self.shortened or any(self.readings[best[pair]].row.cut),
            )
            for index, pair in enumerate(self.pairs)
        ]

    def cost(self) -> Cost:
        return Cost(
            tokens=sum(len(reading.row) for reading in self.readings),
            query_tokens=sum(reading.row.passage[0] for reading in self.readings),
            truncated=sum(any(reading.row.cut) or reading.pair in self.shortened for reading in self.readings),
            rows=len(self.readings),
            characters=self.characters,
        )


def read(reranker: Reranker, pairs: Sequence[Pair], budgets: Budgets, instruction: str | None) -> Asked:
    """Rows for (query, document) pairs. Raises Refusal for what the model cannot do, or may not cut."""
    parts = reranker.parts
    reader = _reader(parts.reader, budgets, instruction)
    limits = _limits(parts.limits, reader, budgets)
    cleaned = [(clean_query(query), clean_query(text)) for query, text in pairs]
    short = _shorten(reader, limits, cleaned, budgets)
    written = [short.get(pair, pair) for pair in cleaned]
    readings = reader.read(written, limits)
    shortened = frozenset(short.values())
    if budgets.max_windows is not None:
        readings, left = _first_windows(readings, budgets.max_windows)
        shortened |= left
    if not budgets.may_truncate:
        _check_whole(readings, shortened, limits)
    characters = sum(len(query) for query in {pair[0] for pair in pairs}) + sum(len(pair[1]) for pair in pairs)
    return Asked(readings=readings, pairs=written, shortened=shortened, characters=characters)


def _reader(reader: Reader, budgets: Budgets, instruction: str | None) -> Reader:
    if instruction:
        try:
            reader = replace(reader, recipe=reader.recipe.instructed(instruction))
        except ValueError as error:
            raise Refusal(Fault.unsupported, str(error), parameter="instruction") from error
    if budgets.in_windows is not None:
        reader = replace(reader, has_windows=budgets.in_windows)
    return reader


def _limits(limits: Limits, reader: Reader, budgets: Budgets) -> Limits:
    """The model's limits, lowered where the call asks for less: what is more than the model reads is no error."""
    if budgets.max_length is not None:
        limits = replace(limits, max_length=max(1, min(budgets.max_length, reader.longest)))
    if budgets.max_query_tokens is not None:
        known = limits.max_query_length
        cap = budgets.max_query_tokens if known is None else min(known, budgets.max_query_tokens)
        limits = replace(limits, max_query_length=cap)
    return limits


def _shorten(reader: Reader, limits: Limits, pairs: Sequence[Pair], budgets: Budgets) -> Mapping[Pair, Pair]:
    """Pairs whose document is over the call's own limit, and what is left of them."""
    if budgets.max_document_tokens is None and not budgets.keep_end:
        return {}
    room: dict[str, int] = {}
    short: dict[Pair, Pair] = {}
    for query, text in dict.fromkeys(pairs):
        if query not in room:
            room[query] = _room(reader, limits, query, budgets)
        kept = _cut(reader.tokenizer, text, room[query], keep_end=budgets.keep_end)
        if len(kept) < len(text):
            short[query, text] = (query, kept)
    return short


def _room(reader: Reader, limits: Limits, query: str, budgets: Budgets) -> int:
    cap = budgets.max_document_tokens
    if not budgets.keep_end or reader.has_windows:
        return 10**9 if cap is None else cap
    room = reader.recipe.frame(reader.tokenizer, query, limits).room(reader.tokenizer)
    return room if cap is None else min(cap, room)


def _cut(tokenizer: Tokenizer, text: str, max_tokens: int, *, keep_end: bool) -> str:
    """The first or the last max_tokens tokens of a text, as text."""
    if len(text.encode()) <= max_tokens:  # a token is a byte at least
        return text
    offsets = tokenizer.encode_with_offsets(text)[1]
    if len(offsets) <= max_tokens:
        return text
    if max_tokens < 1:
        return ""
    return text[offsets[-max_tokens][0] :] if keep_end else text[: offsets[max_tokens - 1][1]]


def _first_windows(readings: Sequence[Reading], count: int) -> tuple[list[Reading], set[Pair]]:
    """The first windows of each pair, and the pairs that have more."""
    seen: dict[Pair, int] = {}
    kept: list[Reading] = []
    for reading in readings:
        seen[reading.pair] = seen.get(reading.pair, 0) + 1
        if seen[reading.pair] <= count:
            kept.append(reading)
    return kept, {pair for pair, found in seen.items() if found > count}


def _check_whole(readings: Sequence[Reading], shortened: frozenset[Pair], limits: Limits) -> None:
    cut = sum(any(reading.row.cut) or reading.pair in shortened for reading in readings)
    if cut:
        raise Refusal(
            Fault.too_large,
            f"{cut} of {len(readings)} inputs are longer than {limits.max_length} tokens and truncation is off; "
            "shorten them or allow truncation",
            parameter="input_tokens",
        )
