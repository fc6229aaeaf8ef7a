"""Queue: requests that wait for an engine, in the order in which their rows are computed.

The order is shortest remaining work first with ageing: a request counts as due PATIENCE times its own computing time
after it came, so that it is overtaken by shorter ones for so long and no longer. Stretch, the time in the system over
the time alone, is what this keeps low: Bender, Chakrabarti and Muthukrishnan 1998.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secondpass.types import Row, Run

PATIENCE = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Scores (N, outputs) in the order of the rows; seconds until the first row was taken, and in the engine."""

    scores: NDArray[np.float32]
    queue_s: float
    compute_s: float


@dataclass(eq=False, kw_only=True, slots=True)
class Request:
    """Rows that belong together, and what is known of them so far. Times are of time.monotonic()."""

    rows: Sequence[Row]
    run: Run = field(default_factory=Run)
    priority: int = 0  # lower is earlier
    deadline: float | None = None
    arrived: float = 0.0
    future: Future[Outcome] = field(default_factory=Future)
    scores: NDArray[np.float32] | None = None
    started: float | None = None
    compute_s: float = 0.0
    pending: int = 0  # rows not yet scored
    tokens: int = 0  # of the rows not yet taken
    _waiting: list[int] = field(default_factory=list)  # places of the rows not yet taken; the longest is last

    def __post_init__(self) -> None:
        self._waiting = sorted(range(len(self.rows)), key=lambda place: len(self.rows[place]))
        self.tokens = sum(map(len, self.rows))
        self.pending = len(self.rows)

    def take(self, room: int, *, at_least_one: bool) -> list[int]:
        """Places of rows of at most `room` tokens in all, longest first."""
        taken: list[int] = []
        while self._waiting:
            length = len(self.rows[self._waiting[-1]])
            if length > room and (taken or not at_least_one):
                break
            taken.append(self._waiting.pop())
            room -= length
            self.tokens -= length
        return taken

    def add_scores(self, places: Sequence[int], scores: NDArray[np.float32]) -> None:
        if self.scores is None:
            self.scores = np.empty((len(self.rows), scores.shape[1]), np.float32)
        self.scores[places] = scores
        self.pending -= len(places)

    def finish(self) -> None:
        """Give the scores to whoever waits, unless nobody does."""
        if self.scores is None or self.future.done():
            return
        if self.future.set_running_or_notify_cancel():
            queue_s = (self.started or self.arrived) - self.arrived
            self.future.set_result(Outcome(scores=self.scores, queue_s=queue_s, compute_s=self.compute_s))

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Portion:
    """Rows of one request that are computed together."""

    request: Request
    places: list[int]

    def rows(self) -> list[Row]:
        return [self.request.rows[place] for place in self.places]


class Queue:
    """Requests with rows that wait. For one thread at a time."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def tokens(self) -> int:
        return sum(request.tokens for request in self._requests)

    def add(self, request: Request) -> None:
        self._requests.append(request)

    def take(self, max_tokens: int, *, seconds_per_token: float) -> list[Portion]:
        """The most urgent rows of at most max_tokens, all of one kind of run; one longer row comes alone."""
        patience = PATIENCE * seconds_per_token
        order = sorted(self._requests, key=lambda r: (r.priority, r.arrived + patience * r.tokens))
        portions: list[Portion] = []
        room = max_tokens
        for request in order:
            if request.run != order[0].run:
                continue
            places = request.take(room, at_least_one=not portions)
            if places:
                portions.append(Portion(request, places))
                room -= sum(len(request.rows[place]) for place in places)
        self._requests = [request for request in self._requests if request.tokens]
        return portions

    def drop(self, now: float) -> list[Request]:
        """Take out what was cancelled or is past its deadline; the latter are returned."""
        late = [r for r in self._requests if r.deadline is not None and r.deadline <= now]
        gone = set(map(id, late)) | {id(r) for r in self._requests if r.future.done()}
        if gone:
            self._requests = [request for request in self._requests if id(request) not in gone]
        return late

    def discard(self, request: Request) -> None:
        """Take out a request that failed, whatever of it still waits."""
        self._requests = [other for other in self._requests if other is not request]

    def clear(self) -> list[Request]:
        requests, self._requests = self._requests, []
        return requests
