"""Scoring within a time: the most promising candidates first, as many as fit.

An engine cannot be stopped inside of a batch, so each portion is chosen by what it is expected to take, and takes
at most a part of the time that is left: the last portions are short, and an error about them is small.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from secondpass.text.reader import Reading

# A token of a row of this length costs twice as much as one alone: attention grows with the square of the length.
TURN = 1024
# A portion takes at most this part of the time that is left, unless it is the last.
SHARE = 0.5
# The first pair of a call that nothing else fits is tried where it takes at most this part.
FIRST_SHARE = 2 / 3
# How much longer than the slowest of the last portions a portion may take.
CAUTION = 1.1
REMEMBERED = 16
# So many of those runs, or one, may be slow without being the rule.
SLOW = 0.25
# Of the calls in which nothing fits, one in so many tries a pair, so that a machine that became faster is noticed.
RETRY = 128
# Pairs tokenised at a time; a long text takes milliseconds.
STEP = 8
# Seconds of rank() after the last score: a fixed part, and one for each document.
CLOSING, CLOSING_EACH = 5e-4, 4e-6


def work_of(readings: Iterable[Reading]) -> float:
    """What rows cost, in tokens of a short row."""
    return sum(len(each.row) * (1 + len(each.row) / TURN) for each in readings)


@dataclass(kw_only=True)
class Pace:
    """Seconds that work takes on this machine, learned from what ran. Safe to use from several threads.

    What ran is remembered by its size, in powers of two. Between the sizes the time is taken as a line from what the
    smallest ever took, which bounds the part that does not depend on the work.
    """

    seen: dict[int, deque[tuple[float, float]]] = field(default_factory=dict)  # (work, seconds)
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def learn(self, work: float, seconds: float) -> None:
        with self.lock:
            self.seen.setdefault(_size(work), deque(maxlen=REMEMBERED)).append((work, seconds))

    def seconds(self, work: float) -> float | None:
        """What the work is expected to take, on the safe side; None before anything was learned."""
        return CAUTION * max(taken) if (taken := self._taken(work)) else None

    def ventures(self, work: float, seconds: float) -> bool:
        """Whether to try work that may not fit: if it did in most remembered runs, or after many refusals.

        Some slow runs say little, and where nothing runs they would be remembered for ever. Many may be the rule on
        this machine.
        """
        taken = sorted(self._taken(work))
        if not taken:
            return False
        few = max(int(len(taken) * SLOW), 1)
        if CAUTION * taken[max(len(taken) - 1 - few, 0)] <= seconds:
            return True
        with self.lock:
            self.refused += 1
            return self.refused % RETRY == 0 and min(taken) <= seconds

    def _taken(self, work: float) -> list[float]:
        """What the work would have taken in each remembered run of about its size."""
        with self.lock:
            if not self.seen:
                return []
            size = _size(work)
            nearest = min(self.seen, key=lambda known: (abs(known - size), known))
            fixed = max(seconds for _, seconds in self.seen[min(self.seen)])
            return [_expected(work, *ran, fixed) for ran in self.seen[nearest]]

    def room(self, seconds: float) -> float | None:
        """The work that fits in so many seconds; None before anything was learned."""
        low, high = 0.0, 2.0**40
        for _ in range(48):
            middle = (low * high) ** 0.5 if low else high / 2**20
            expected = self.seconds(middle)
            if expected is None:
                return None
            low, high = (middle, high) if expected <= seconds else (low, middle)
            if low and high / low < 1.01:
                break
        return low


def _expected(work: float, known: float, seconds: float, fixed: float) -> float:
    """What the work takes when `known` took so many seconds, of which at most `fixed` for no work at all."""
    if work >= known:
        return seconds * work / known
    fixed = min(fixed, seconds)
    return fixed + (seconds - fixed) * work / known


def _size(work: float) -> int:
    return max(int(work), 1).bit_length() - 1


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """When a ranking has to be there, on the clock of time.perf_counter."""

    at: float
    pace: Pace

    @classmethod
    def after(cls, started: float, budget_ms: float, num_documents: int, pace: Pace) -> Deadline:
        return cls(at=started + budget_ms / 1000 - CLOSING - CLOSING_EACH * num_documents, pace=pace)

    def room(self, share: float = 1.0) -> float | None:
        """The work that fits in that share of the time left: 0 when it is over, None before anything was learned."""
        left = self.at - time.perf_counter()
        return self.pace.room(left * share) if left > 0 else 0.0


@dataclass(kw_only=True)
class Queue:
    """Pairs that wait to be scored, best first, tokenised as they are needed."""

    portions: Iterator[list[Reading]]
    waiting: deque[tuple[float, list[Reading]]] = field(default_factory=deque)
    work: float = 0.0
    is_read: bool = False

    def fill(self, work: float) -> None:
        """Read until at least so much work waits, or all pairs are read."""
        while not self.is_read and (not self.waiting or self.work < work):
            portion = next(self.portions, None)
            self.is_read = portion is None
            for _, same in groupby(portion or (), key=lambda reading: reading.pair):
                readings = list(same)
                self.waiting.append((work_of(readings), readings))
                self.work += self.waiting[-1][0]

    def take(self, work: float) -> list[Reading]:
        """The first pairs that are no more work together."""
        taken: list[Reading] = []
        while self.waiting and self.waiting[0][0] <= work:
            one, readings = self.waiting.popleft()
            work -= one
            self.work -= one
            taken += readings
        return taken


def score_within(
    portions: Iterator[list[Reading]], deadline: Deadline, score: Callable[[list[Reading]], float]
) -> None:
    """Call `score`, which says how many seconds it computed, for what fits before the deadline, from the first on."""
    queue = Queue(portions=portions)
    is_first = True
    while readings := _next(queue, deadline) or (_first(queue, deadline) if is_first else []):
        deadline.pace.learn(work_of(readings), score(readings))
        is_first = False


def _next(queue: Queue, deadline: Deadline) -> list[Reading]:
    """The next portion: all if it fits, else what fits in a share of the time left, else one pair or none."""
    room = deadline.room(SHARE)
    if room == 0.0:
        return []
    queue.fill(room or 0.0)
    if room is None:  # the first one of all shows the pace
        return queue.take(queue.waiting[0][0]) if queue.waiting else []
    whole = deadline.room() or 0.0
    if queue.is_read and queue.work <= whole:
        return queue.take(whole)
    if not queue.waiting:
        return []
    return queue.take(deadline.room(SHARE) or 0.0) or queue.take(min(whole, queue.waiting[0][0]))


def _first(queue: Queue, deadline: Deadline) -> list[Reading]:
    """The first pair where it mostly fits well: else one slow run could keep all later calls from scoring anything.

    One scored pair stays where it was, so nothing but the pace is learned from it, and a risk is not worth it.
    """
    left = deadline.at - time.perf_counter()
    if left <= 0:
        return []
    queue.fill(0.0)
    if not queue.waiting or not deadline.pace.ventures(queue.waiting[0][0], left * FIRST_SHARE):
        return []
    return queue.take(queue.waiting[0][0])
