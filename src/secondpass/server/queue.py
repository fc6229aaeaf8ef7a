"""Requests that wait for one engine, and which of their rows come next. Knows rows and scores, no texts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secondpass.types import Row, Run

PATIENCE = 4.0  # a request is overtaken for so many times the seconds that it takes
PRIORITY_S = 0.2  # what a step of a client's priority is worth, as if it had come that much earlier or later
MAX_PRIORITY = 10  # steps; no client can keep another waiting for more than these


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Scores (N, outputs) in the order of the rows; seconds until the first row was taken, and in the engine.

    own_s is the part of the engine's seconds that was for these rows.
    """

    scores: NDArray[np.float32]
    queue_s: float
    compute_s: float
    own_s: float = 0.0


@dataclass(eq=False, kw_only=True, slots=True)
class QueuedRequest:
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
    own_s: float = 0.0
    pending: int = 0  # rows not yet scored
    tokens: int = 0  # of the rows not yet taken
    _waiting: list[int] = field(default_factory=list)  # indices of the rows not yet taken; the longest is last

    def __post_init__(self) -> None:
        self._waiting = sorted(range(len(self.rows)), key=lambda index: len(self.rows[index]))
        self.tokens = sum(map(len, self.rows))
        self.pending = len(self.rows)

    @property
    def is_whole(self) -> bool:
        """Whether its rows are compared with each other while they run, so that they run together and alone."""
        return self.run.early_exit is not None

    def due(self, seconds_per_token: float) -> float:
        """What sorts requests: how long this one may be overtaken, and not so long that its deadline passes."""
        work = self.tokens * seconds_per_token
        steps = max(-MAX_PRIORITY, min(self.priority, MAX_PRIORITY))
        due = self.arrived + PATIENCE * work + PRIORITY_S * steps
        return due if self.deadline is None else min(due, max(self.deadline - 2 * work, self.arrived))

    def take(self, room: int, *, at_least_one: bool) -> list[int]:
        """Indices of rows of at most `room` tokens in all, longest first."""
        taken: list[int] = []
        while self._waiting:
            length = len(self.rows[self._waiting[-1]])
            if length > room and (taken or not at_least_one) and not self.is_whole:
                break
            taken.append(self._waiting.pop())
            room -= length
            self.tokens -= length
        return taken

    def add_scores(self, indices: Sequence[int], scores: NDArray[np.float32]) -> None:
        if self.scores is None:
            self.scores = np.empty((len(self.rows), scores.shape[1]), np.float32)
        self.scores[indices] = scores
        self.pending -= len(indices)

    def finish(self) -> None:
        """Give the scores to whoever waits, unless nobody does."""
        if self.scores is None or self.future.done():
            return
        if self.future.set_running_or_notify_cancel():
            queue_s = (self.started or self.arrived) - self.arrived
            self.future.set_result(
                Outcome(scores=self.scores, queue_s=queue_s, compute_s=self.compute_s, own_s=self.own_s)
            )

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class RequestSlice:
    """Rows of one request that are computed together."""

    request: QueuedRequest
    indices: list[int]

    def rows(self) -> list[Row]:
        return [self.request.rows[index] for index in self.indices]


class Queue:
    """Requests with rows that wait. For one thread at a time."""

    def __init__(self) -> None:
        self._requests: list[QueuedRequest] = []

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def tokens(self) -> int:
        return sum(request.tokens for request in self._requests)

    def add(self, request: QueuedRequest) -> None:
        self._requests.append(request)

    def before(self, request: QueuedRequest, *, seconds_per_token: float) -> int:
        """Tokens of the requests that come before this one."""
        due = request.due(seconds_per_token)
        return sum(other.tokens for other in self._requests if other.due(seconds_per_token) <= due)

    def take(self, max_tokens: int, *, seconds_per_token: float) -> list[RequestSlice]:
        """The most urgent rows of at most max_tokens, all of one kind of run; one longer row comes alone."""
        order = sorted(self._requests, key=lambda request: request.due(seconds_per_token))
        portions: list[RequestSlice] = []
        room = max_tokens
        for request in order:
            if request.run != order[0].run or (portions and request.is_whole):
                continue
            indices = request.take(room, at_least_one=not portions)
            if indices:
                portions.append(RequestSlice(request, indices))
                room -= sum(len(request.rows[index]) for index in indices)
        self._requests = [request for request in self._requests if request.tokens]
        return portions

    def drop(self, now: float) -> list[QueuedRequest]:
        """Take out what was cancelled or is past its deadline; the latter are returned."""
        late = [r for r in self._requests if r.deadline is not None and r.deadline <= now]
        gone = set(map(id, late)) | {id(r) for r in self._requests if r.future.done()}
        if gone:
            self._requests = [request for request in self._requests if id(request) not in gone]
        return late

    def discard(self, request: QueuedRequest) -> None:
        """Take out a request that failed, whatever of it still waits."""
        self._requests = [other for other in self._requests if other is not request]

    def clear(self) -> list[QueuedRequest]:
        requests, self._requests = self._requests, []
        return requests
