"""Scoring: pairs in, logits out, a portion at a time, so that a long list needs no more memory than a short one.

While the engine runs a portion, the next one is tokenised.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from secondpass.engine.engine import Engine
from secondpass.text.reader import Pair, Reader, Reading
from secondpass.text.recipe import Limits
from secondpass.types import Advance, Progress, Run, Usage

# Fewer pairs are tokenised in one go: a thread would cost more than it hides.
MIN_AHEAD = 256
# Tokens in a portion: many times what a CPU runs at once, so that sorting by length still pays.
PORTION = 65536


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of a pair: `length` tokens of its text, or of the window `span` of its characters."""

    pair: Pair
    span: tuple[int, int] | None
    length: int
    cut: tuple[int, int]


@dataclass(kw_only=True)
class Scored:
    """What was read with its scores, one list per output of the model, and what it took.

    With early exit the second output is the layer that a score is from.
    """

    reads: list[Read] = field(default_factory=list)
    outputs: list[list[float]] = field(default_factory=list)
    tokenize_seconds: float = 0.0

    def add(self, readings: Sequence[Reading], outputs: Sequence[list[float]]) -> None:
        self.reads += [Read(each.pair, each.span, len(each.row), each.row.cut) for each in readings]
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
        """For each pair the place of its best reading; the first of equals."""
        scores = self.outputs[output] if self.outputs else []
        best: dict[Pair, int] = {}
        for place, read in enumerate(self.reads):
            if read.pair not in best or scores[place] > scores[best[read.pair]]:
                best[read.pair] = place
        return best

    def place_of(self, pair: Pair, best: Mapping[Pair, int]) -> tuple[float, ...]:
        """What sorts pairs best first: the unscored are last; with early exit those of later layers are first."""
        return tuple(-each[best[pair]] for each in reversed(self.outputs)) if pair in best else (math.inf,)

    def usage(self, seconds: float, unscored: int = 0) -> Usage:
        return Usage(
            rows=len(self.reads),
            tokens=sum(read.length for read in self.reads),
            truncated=sum(any(read.cut) for read in self.reads),
            seconds=seconds,
            tokenize_seconds=self.tokenize_seconds,
            unscored=unscored,
        )


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A reader and an engine together."""

    reader: Reader
    engine: Engine

    def score(self, pairs: Sequence[Pair], limits: Limits, run: Run, progress: Progress | None = None) -> Scored:
        """The different pairs, each scored once."""
        pairs = list(dict.fromkeys(pairs))
        tokens = None if run.early_exit is not None else max(PORTION, 2 * self.engine.token_budget)
        portions = self.reader.portions(pairs, limits, tokens=tokens)
        scored = Scored()
        waited = time.perf_counter()
        for readings in ahead(portions) if len(pairs) > MIN_AHEAD else portions:
            scored.tokenize_seconds += time.perf_counter() - waited
            done = len(scored.reads)
            unread = len(pairs) - len({read.pair for read in scored.reads} | {each.pair for each in readings})
            self.run(scored, readings, run, _counter(progress, done, done + len(readings) + unread))
            waited = time.perf_counter()
        return scored

    def run(self, scored: Scored, readings: Sequence[Reading], run: Run, count: Advance | None = None) -> None:
        """Score the readings and add them to what is scored."""
        scores = self.engine.run([reading.row for reading in readings], run, count)
        scored.add(readings, scores.T.tolist())


def _counter(progress: Progress | None, done: int, total: int) -> Advance | None:
    if progress is None:
        return None

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return count


def ahead(portions: Iterator[list[Reading]]) -> Iterator[list[Reading]]:
    """The portions; while one is used, the next is made in a thread."""
    with ThreadPoolExecutor(1, "secondpass-reader") as pool:
        coming = pool.submit(next, portions, None)
        while (portion := coming.result()) is not None:
            coming = pool.submit(next, portions, None)
            yield portion
