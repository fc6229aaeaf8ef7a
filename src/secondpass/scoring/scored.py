"""What was read of pairs, and what the model said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from secondpass.text.reader import Pair, Reading
from secondpass.types import Usage


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of a pair: `length` tokens of its text, or of the window `span` of its characters.

    query_length of the tokens stand before the passage.
    """

    pair: Pair
    span: tuple[int, int] | None
    length: int
    query_length: int
    cut: tuple[int, int]


@dataclass(kw_only=True)
class Scored:
    """What was read with its scores, one list per output of the model, and what it took.

    With early exit the second output is the layer that a score is from.
    """

    reads: list[Read] = field(default_factory=list)
    outputs: list[list[float]] = field(default_factory=list)
    tokenize_seconds: float = 0.0
    compute_seconds: float = 0.0

    def add(self, readings: Sequence[Reading], outputs: Sequence[list[float]]) -> None:
        self.reads += [
            Read(each.pair, each.span, len(each.row), each.row.passage[0], each.row.cut) for each in readings
        ]
        self.outputs = self.outputs or [[] for _ in outputs]
        for scores, more in zip(self.outputs, outputs, strict=True):
            scores += more

    def of(self, pairs: Sequence[Pair], output: int = 0) -> list[float]:
        """Each pair's score, which is that of its best reading."""
        if not pairs:
            return []
        scores, best = self.outputs[output], self.best(output)
        return [scores[best[pair]] for pair in pairs]

    def best(self, output: int = 0) -> dict[Pair, int]:
        """For each pair the index of its best reading; the first of equals."""
        scores = self.outputs[output] if self.outputs else []
        best: dict[Pair, int] = {}
        for index, read in enumerate(self.reads):
            if read.pair not in best or scores[index] > scores[best[read.pair]]:
                best[read.pair] = index
        return best

    def sort_key(self, pair: Pair, best: Mapping[Pair, int]) -> tuple[float, ...]:
        """What sorts pairs best first: the unscored are last; with early exit those of later layers are first."""
        return tuple(-each[best[pair]] for each in reversed(self.outputs)) if pair in best else (math.inf,)

    def by_query(self) -> dict[str, Scored]:
        """The same, each query's for itself."""
        found: dict[str, Scored] = {}
        for index, read in enumerate(self.reads):
            own = found.setdefault(read.pair[0], Scored(outputs=[[] for _ in self.outputs]))
            own.reads.append(read)
            for scores, values in zip(own.outputs, self.outputs, strict=True):
                scores.append(values[index])
        return found

    def usage(self, seconds: float, unscored: int = 0) -> Usage:
        return Usage(
            rows=len(self.reads),
            tokens=sum(read.length for read in self.reads),
            truncated=sum(any(read.cut) for read in self.reads),
            seconds=seconds,
            tokenize_seconds=self.tokenize_seconds,
            unscored=unscored,
        )
