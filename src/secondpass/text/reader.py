"""Reader: (query, text) pairs to rows, each pair once; several rows for a text that is read in windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Integral

from secondpass.text.han import has_other, simplified
from secondpass.text.recipe import TRUNCATIONS, Frame, Limits, Recipe
from secondpass.text.tokenizer import Tokenizer
from secondpass.types import Row

# Windows over a long document share this part of their length with the next one.
OVERLAP = 1 / 8
# Texts tokenised at a time; a portion ends at one of these steps.
STEP = 128
# Of a long text so many characters are tokenised for each token that can be used, then four times as many.
CHARACTERS = 8
LEAST = 3000
SLACK = 16  # tokens more than that, since those at a border may be other ones
NEAR = 64  # characters in which a border between words is looked for

Pair = tuple[str, str]  # query, text


@dataclass(frozen=True, slots=True)
class Reading:
    """One row of a pair: all of its text, or the window `span` of its characters."""

    pair: Pair
    span: tuple[int, int] | None
    row: Row


@dataclass(frozen=True, slots=True)
class Part:
    """What is read of a text, where it starts there, and how many tokens were left out, at least."""

    text: str
    start: int = 0
    num_lost: int = 0


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Writes pairs as rows by a recipe. longest is what the model can read, in tokens.

    max_document_length: tokens of each text, before it is written; keeps_end: a text that is too long loses its
    beginning. max_windows: of each text; the others are not made. folds_han: a Chinese pair is read in simplified
    characters. A row's cut counts what is known to be left out.
    """

    recipe: Recipe
    tokenizer: Tokenizer
    longest: int
    max_query_length: int | None = None
    has_windows: bool = False
    max_document_length: int | None = None
    keeps_end: bool = False
    max_windows: int | None = None
    folds_han: bool = False

    def limits(self, max_length: int, truncation: str) -> Limits:
        """Limits for rows of at most max_length tokens. Raises ValueError for what is not there."""
        if truncation not in TRUNCATIONS:
            raise ValueError(f"truncation is {truncation!r}; give {' or '.join(map(repr, TRUNCATIONS))}")
        if not isinstance(max_length, Integral):
            raise TypeError(f"max_length is a {type(max_length).__name__}; give a whole number of tokens")
        if not 1 <= max_length <= self.longest:
            raise ValueError(f"max_length is {max_length}; this model reads 1 to {self.longest} tokens")
        limits = Limits(max_length=max_length, max_query_length=self.max_query_length, truncation=truncation)
        if not self.recipe.frame(self.tokenizer, "a", limits).room(self.tokenizer):
            raise ValueError(f"max_length is {max_length}; what stands around the texts leaves no room for any")
        return limits

    def read(self, pairs: Sequence[Pair], limits: Limits) -> list[Reading]:
        """Readings of the different pairs; each query is tokenised once."""
        return list(chain.from_iterable(self.portions(pairs, limits, tokens=None)))

    def portions(
        self, pairs: Sequence[Pair], limits: Limits, *, tokens: int | None, step: int = STEP
    ) -> Iterator[list[Reading]]:
        """The same, in portions of about `tokens` tokens, None for one; `step` pairs are tokenised at a time."""
        by_query: dict[str, list[tuple[Pair, bool]]] = {}  # as it is read -> pairs, and whether they are folded
        for pair in dict.fromkeys(pairs):
            is_folded = self.folds_han and not any(map(has_other, pair))
            by_query.setdefault(simplified(pair[0]) if is_folded else pair[0], []).append((pair, is_folded))
        portion: list[Reading] = []
        size = 0
        for query, asked in by_query.items():
            frame = self.recipe.frame(self.tokenizer, query, limits)
            for start in range(0, len(asked), step):
                more = self._read(frame, asked[start : start + step])
                portion += more
                size += sum(len(reading.row) for reading in more)
                if tokens is not None and size >= tokens:
                    yield portion
                    portion, size = [], 0
        if portion:
            yield portion

    def _read(self, frame: Frame, asked: Sequence[tuple[Pair, bool]]) -> list[Reading]:
        room = frame.room(self.tokenizer) if self.has_windows or self.keeps_end else 0
        parts = [self._part(frame, pair[1], room) for pair, _ in asked]
        parts = [
            replace(part, text=simplified(part.text)) if is_folded else part
            for part, (_, is_folded) in zip(parts, asked, strict=True)
        ]
        rows = frame.rows(self.tokenizer, [part.text for part in parts])
        readings: list[Reading] = []
        for (pair, _), part, row in zip(asked, parts, rows, strict=True):
            if not self.has_windows or not row.cut[1] or not room:
                span = (part.start, part.start + len(part.text)) if self.has_windows else None
                readings.append(Reading(pair, span, _cut(row, part.num_lost)))
            else:
                readings += self._in_windows(frame, pair, part, room)
        return readings

    def _in_windows(self, frame: Frame, pair: Pair, part: Part, room: int) -> list[Reading]:
        from secondpass.text.windows import windows  # whose regular expressions take 6 ms

        spans = windows(part.text, self.tokenizer, max_tokens=room, overlap=int(room * OVERLAP))
        kept = spans[: self.max_windows]
        lost = part.num_lost + len(spans) - len(kept)
        rows = frame.rows(self.tokenizer, [part.text[start:end] for start, end in kept])
        found = zip(kept, rows, strict=True)
        return [Reading(pair, (part.start + s, part.start + e), _cut(row, lost)) for (s, e), row in found]

    def _part(self, frame: Frame, text: str, room: int) -> Part:
        """What is read of a text: no more of it goes to the tokenizer than can be used."""
        most = self.max_document_length
        if self.keeps_end and not self.has_windows:
            most = room if most is None else min(most, room)
        if most is not None and len(text.encode()) > most:  # a token is a byte at least
            return part_of(text, self.tokenizer, most, keeps_end=self.keeps_end)
        if not self.has_windows:
            usable = max(frame.limits.max_length, frame.kept(10**9)[1]) + SLACK
            return Part((end if frame.keeps_end else beginning)(text, self.tokenizer, usable))
        if self.max_windows is None:
            return Part(text)
        used = beginning(text, self.tokenizer, (self.max_windows + 1) * max(room, 1))
        return Part(used, num_lost=int(len(used) < len(text)))


def _cut(row: Row, num_lost: int) -> Row:
    return replace(row, cut=(row.cut[0], row.cut[1] + num_lost)) if num_lost else row


def part_of(text: str, tokenizer: Tokenizer, max_tokens: int, *, keeps_end: bool) -> Part:
    """The first or the last max_tokens tokens of a text."""
    near = end(text, tokenizer, max_tokens) if keeps_end else beginning(text, tokenizer, max_tokens)
    offsets = tokenizer.encode_with_offsets(near)[1]
    lost = max(len(offsets) - max_tokens, 0)
    if not lost:
        return Part(near, start=len(text) - len(near) if keeps_end else 0)
    if max_tokens < 1:
        return Part("", num_lost=lost)
    if not keeps_end:
        return Part(near[: offsets[max_tokens - 1][1]], num_lost=lost)
    kept = near[offsets[-max_tokens][0] :]
    return Part(kept, start=len(text) - len(kept), num_lost=lost)


def beginning(text: str, tokenizer: Tokenizer, max_tokens: int) -> str:
    """The text, or as much of a long one as has more than max_tokens tokens."""
    return _enough(text, tokenizer, max_tokens, lambda size: text[: _space(text, size)])


def end(text: str, tokenizer: Tokenizer, max_tokens: int) -> str:
    """The same, from the end."""
    return _enough(text, tokenizer, max_tokens, lambda size: text[_space(text, len(text) - size) :])


def _enough(text: str, tokenizer: Tokenizer, max_tokens: int, part: Callable[[int], str]) -> str:
    size = max(CHARACTERS * (max_tokens + SLACK), LEAST)
    while 2 * size < len(text):
        found = part(size)
        if len(tokenizer.encode(found)) > max_tokens + SLACK:
            return found
        size *= 4  # a word of thousands of letters may be one token
    return text


def _space(text: str, index: int) -> int:
    """Where a text may be parted near an index: before white space if there is some, so that no word is cut."""
    found = text.find(" ", index, index + NEAR)
    return index if found < 0 else found
