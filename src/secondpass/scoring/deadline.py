"""Scoring within a time: the most promising candidates first, as many as fit, the first one whatever it takes.

An engine cannot be stopped inside of a run, so each portion is chosen by what it is expected to take. What that is
is learned from everything that runs.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from secondpass.text.reader import Reading

# A token of a row of this length costs twice as much as one alone: attention grows with the square of the length.
TURN = 1024
# A portion takes at most this part of the time that is left, unless it is the last: an error about it is made up for.
SHARE = 2 / 3
# How much longer than expected the last portion may take.
CAUTION = 1.2
# Of what is known of the pace this part remains after another run: a jump of speed counts for half after two runs.
KEPT = 0.7
# A portion has at most so many times the work of the largest run that is remembered so: what small runs say of the
# pace is mostly noise there, and an error is the whole list.
GROWTH = 8
# Pairs tokenised at a time; a long text takes milliseconds.
STEP = 8
# Seconds of rank() after the last score: a fixed part, and one for each document.
CLOSING, CLOSING_EACH = 5e-4, 4e-6


def work_of(readings: Iterable[Reading]) -> float:
    """What rows cost, in tokens of a short row."""
    return sum(len(each.row) * (1 + len(each.row) / TURN) for each in readings)


@dataclass(kw_only=True)
class Pace:
    """Seconds that work takes here: a fixed part and one for each unit. Safe to use from several threads.

    Both are fitted to what ran by least squares of relative errors; older runs count for less and less. waiting is
    what a run waited for other callers, which no work is to blame for. largest, the most work of a run, fades too.
    """

    sums: tuple[float, ...] = (0.0,) * 5  # of weights, works, seconds, works squared, works times seconds
    waiting: float = 0.0
    largest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def learn(self, work: float, seconds: float, share: float = 1.0) -> None:
        """From a run of so much work; a share was computed, and the rest was known, which takes some time too.

        Where that was most of it, a run says nothing but that the pace was thought to be too fast.
        """
        if share < 1 / 2:
            fixed, each = self.fit() or (0.0, 0.0)
            if seconds <= fixed + each * work:
                return
        work *= share
        weight = 1 / max(work, 1.0) ** 2
        run = (1.0, work, seconds, work * work, work * seconds)
        with self.lock:
            self.sums = tuple(KEPT * old + weight * new for old, new in zip(self.sums, run, strict=True))
            self.largest = max(KEPT * self.largest, work)

    def waited(self, seconds: float) -> None:
        with self.lock:
            self.waiting += (1 - KEPT) * (seconds - self.waiting)

    def fit(self) -> tuple[float, float] | None:
        """Seconds of a run, and of each unit of its work; None before anything was learned."""
        n, works, seconds, squares, products = self.sums
        if not n:
            return None
        spread = n * squares - works * works
        each = (n * products - works * seconds) / spread if spread > 1e-3 * n * squares else 0.0
        fixed = (seconds - each * works) / n
        if each <= 0 or fixed < 0:  # runs of one size, or noise: what is known is the mean
            fixed, each = 0.0, products / squares
        return fixed, each


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """When a ranking has to be there, on the clock of time.perf_counter."""

    at: float
    pace: Pace

    @classmethod
    def after(cls, started: float, budget_ms: float, num_documents: int, pace: Pace) -> Deadline:
        return cls(at=started + budget_ms / 1000 - CLOSING - CLOSING_EACH * num_documents, pace=pace)

    def room(self, share: float) -> float:
        """The work that is expected to take that share of the time left, as far as is known; 0 while nothing is."""
        fit = self.pace.fit()
        if fit is None:
            return 0.0
        left = self.at - time.perf_counter() - self.pace.waiting
        return min((share * left - fit[0]) / max(fit[1], 1e-12), GROWTH * self.pace.largest)


@dataclass(kw_only=True)
class Candidates:
    """Pairs that wait to be scored, best first, tokenised as they are needed; all windows of one go together."""

    portions: Iterator[list[Reading]]
    waiting: deque[tuple[float, list[Reading]]] = field(default_factory=deque)
    work: float = 0.0
    is_read: bool = False

    def fill(self, deadline: Deadline) -> None:
        """Read as many as fit, and one more."""
        while not self.is_read and (not self.waiting or self.work <= deadline.room(1.0)):
            portion = next(self.portions, None)
            self.is_read = portion is None
            for _, windows in groupby(portion or (), key=lambda reading: reading.pair):
                readings = list(windows)
                self.waiting.append((work_of(readings), readings))
                self.work += self.waiting[-1][0]

    def take(self, deadline: Deadline, *, is_first: bool) -> list[Reading]:
        """The next portion: all if they fit, else what fits in a share of the time left, else one or none."""
        self.fill(deadline)
        whole = deadline.room(1 / CAUTION)
        room = whole if self.is_read and self.work <= whole else deadline.room(SHARE)
        alone = math.inf if is_first else max(room, whole)
        taken: list[Reading] = []
        while self.waiting and self.waiting[0][0] <= (room if taken else alone):
            work, readings = self.waiting.popleft()
            taken += readings
            room -= work
            self.work -= work
        return taken


def score_within(
    portions: Iterator[list[Reading]], deadline: Deadline, score: Callable[[list[Reading]], float]
) -> None:
    """Call `score`, which says how many seconds it computed, for what fits before the deadline, from the first on.

    The first candidate is scored in any case, so that the pace is known to the next call. The deadline is missed by
    one portion at most.
    """
    candidates = Candidates(portions=portions)
    is_first = True
    while readings := candidates.take(deadline, is_first=is_first):
        started = time.perf_counter()
        seconds = score(readings)
        deadline.pace.waited(time.perf_counter() - started - seconds)
        is_first = False
