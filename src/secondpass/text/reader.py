"""Reader: (query, text) pairs to rows, each pair once; several rows for a text that is read in windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from secondpass.text.recipe import TRUNCATIONS, Frame, Limits, Recipe
from secondpass.text.tokenizer import Tokenizer
from secondpass.text.windows import windows
from secondpass.types import Row

# Windows over a long document share this part of their length with the next one.
OVERLAP = 1 / 8
# Texts tokenised at a time; a portion ends at one of these steps.
STEP = 128

Pair = tuple[str, str]  # query, text


@dataclass(frozen=True, slots=True)
class Reading:
    """One row of a pair: all of its text, or the window `span` of its characters."""

    pair: Pair
    span: tuple[int, int] | None
    row: Row


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Writes pairs as rows by a recipe. longest is what the model can read, in tokens."""

    recipe: Recipe
    tokenizer: Tokenizer
    longest: int
    max_query_length: int | None = None
    has_windows: bool = False

    def limits(self, max_length: int, truncation: str) -> Limits:
        """Limits for rows of at most max_length tokens. Raises ValueError for what is not there."""
        if truncation not in TRUNCATIONS:
            raise ValueError(f"truncation is {truncation!r}; give {' or '.join(map(repr, TRUNCATIONS))}")
        if not 1 <= max_length <= self.longest:
            raise ValueError(f"max_length is {max_length}; this model reads 1 to {self.longest} tokens")
        return Limits(max_length=max_length, max_query_length=self.max_query_length, truncation=truncation)

    def read(self, pairs: Sequence[Pair], limits: Limits) -> list[Reading]:
        """Readings of the different pairs; each query is tokenised once."""
        return list(chain.from_iterable(self.portions(pairs, limits, tokens=None)))

    def portions(
        self, pairs: Sequence[Pair], limits: Limits, *, tokens: int | None, step: int = STEP
    ) -> Iterator[list[Reading]]:
        """The same, in portions of about `tokens` tokens, None for one; `step` pairs are tokenised at a time."""
        by_query: dict[str, list[str]] = {}
        for query, text in dict.fromkeys(pairs):
            by_query.setdefault(query, []).append(text)
        portion: list[Reading] = []
        size = 0
        for query, texts in by_query.items():
            frame = self.recipe.frame(self.tokenizer, query, limits)
            for start in range(0, len(texts), step):
                more = self._read(frame, query, texts[start : start + step])
                portion += more
                size += sum(len(reading.row) for reading in more)
                if tokens is not None and size >= tokens:
                    yield portion
                    portion, size = [], 0
        if portion:
            yield portion

    def _read(self, frame: Frame, query: str, texts: Sequence[str]) -> list[Reading]:
        rows = frame.rows(self.tokenizer, texts)
        if not self.has_windows:
            return [Reading((query, text), None, row) for text, row in zip(texts, rows, strict=True)]
        room = frame.room(self.tokenizer)
        readings: list[Reading] = []
        for text, row in zip(texts, rows, strict=True):
            if not row.cut[1] or not room:
                readings.append(Reading((query, text), (0, len(text)), row))
                continue
            spans = windows(text, self.tokenizer, max_tokens=room, overlap=int(room * OVERLAP))
            parts = frame.rows(self.tokenizer, [text[start:end] for start, end in spans])
            readings += [Reading((query, text), span, part) for span, part in zip(spans, parts, strict=True)]
        return readings
