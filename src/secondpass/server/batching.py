"""Batcher: joins the rows of concurrent requests into batches for one engine, which one thread owns.

Knows rows and scores, no texts and no HTTP. A request is cut wherever a batch is full, so that a short one goes in
between the portions of a long one. What was cancelled or is past its deadline is dropped before it is computed. An
engine that fails for another reason than a request is opened anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secondpass.errors import EngineError, SecondpassError
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


log = logging.getLogger(__name__)

# How long a batch is: what a request waits that has just missed one. It grows to the longest as MANY requests wait,
# since the rows of many requests, sorted together, need less padding.
BATCH_SECONDS, LONGEST_BATCH_SECONDS = 0.2, 0.8
MANY = 16
MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 2048, 1 << 18
FIRST_RATE = 20_000.0  # tokens per second, before a batch was measured
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
LAST_BATCH_S = 5.0
CALM_S = 60.0  # after so long without a failure the back-off begins at the first again


class Runner(Protocol):
    """What a batcher needs of an engine."""

    def run(self, rows: Sequence[Row], run: Run) -> NDArray[np.float32]:
        """Scores (N, outputs) in the order of the rows."""
        ...


class QueueFull(SecondpassError):
    """More waits than the queue takes; there should be room in retry_after_s."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDown(SecondpassError):
    """The engine is being opened anew, or the batcher is closed."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Expired(SecondpassError):
    """The deadline passed before all rows were computed."""


class State(str, Enum):
    ready = "ready"
    restarting = "restarting"
    closed = "closed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One run of the engine; padded_tokens is what its rows would be as one rectangle."""

    requests: int
    rows: int
    tokens: int
    padded_tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What waits, how often the engine was opened anew and why last, and how long it has been at what it does."""

    state: State
    requests: int
    tokens: int
    restarts: int
    last_error: str | None
    busy_s: float


class Batcher:
    """One engine behind a queue; `reopen` opens it anew after a failure.

    max_requests and max_tokens bound what waits; a request larger than that is taken when nothing else waits.
    batch_tokens None follows the engine's speed, so that a batch takes BATCH_SECONDS or a little more. on_batch is
    called in the batcher's thread after every batch, before its requests are done. Safe to use from several threads.
    """

    def __init__(
        self,
        engine: Runner,
        reopen: Callable[[], Runner],
        *,
        max_requests: int = 512,
        max_tokens: int = 1_000_000,
        batch_tokens: int | None = None,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self._engine: Runner | None = engine
        self._reopen = reopen
        self._max_requests, self._max_tokens = max_requests, max_tokens
        self._batch_tokens, self._on_batch = batch_tokens, on_batch
        self._queue = Queue()
        self._rate = FIRST_RATE
        self._state, self._restarts = State.ready, 0
        self._last_error: str | None = None
        self._failed, self._backoff_s = 0.0, FIRST_BACKOFF_S
        self._busy_since: float | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(
        self, rows: Sequence[Row], run: Run | None = None, *, priority: int = 0, deadline: float | None = None
    ) -> Future[Outcome]:
        """The outcome of scoring the rows; cancel the future to take what still waits out of the queue.

        deadline is a time of time.monotonic(). Raises QueueFull and EngineDown; the future raises those, Expired,
        and EngineError or ValueError where the engine cannot score these rows.
        """
        request = Request(rows=rows, run=run or Run(), priority=priority, deadline=deadline, arrived=time.monotonic())
        if not rows:
            request.scores = np.empty((0, 1), np.float32)
            request.finish()
            return request.future
        with self._changed:
            self._check_open()
            self._check_room(request)
            self._queue.add(request)
            self._changed.notify()
        return request.future

    def status(self) -> Status:
        with self._changed:
            since = self._busy_since
            return Status(
                state=self._state,
                requests=len(self._queue),
                tokens=self._queue.tokens,
                restarts=self._restarts,
                last_error=self._last_error,
                busy_s=0.0 if since is None else time.monotonic() - since,
            )

    def abandon(self, reason: str = "the server is stopping") -> None:
        """Take no more, and fail what waits with EngineDown; does not wait for what is being computed."""
        with self._changed:
            self._state = State.closed
            rest = self._queue.clear()
            self._changed.notify_all()
        for request in rest:
            request.fail(EngineDown(reason, 5.0))

    def close(self, *, grace_s: float = 30.0) -> bool:
        """Take no more, compute what was taken for at most grace_s seconds, then fail the rest with EngineDown.

        False where the engine is still at a batch after that, and LAST_BATCH_S more: its thread goes on.
        """
        with self._changed:
            self._state = State.closed
            self._changed.notify_all()
        self._thread.join(grace_s)
        with self._changed:
            rest = self._queue.clear()
        for request in rest:
            request.fail(EngineDown("the server is stopping", 1.0))
        self._thread.join(LAST_BATCH_S)
        return not self._thread.is_alive()

    def _check_open(self) -> None:
        if self._state is not State.ready:
            why = "being restarted" if self._state is State.restarting else "stopping"
            raise EngineDown(f"the engine is {why}", max(self._backoff_s, 1.0))

    def _check_room(self, request: Request) -> None:
        waiting, tokens = len(self._queue), self._queue.tokens
        if waiting and (waiting >= self._max_requests or tokens + request.tokens > self._max_tokens):
            self._expire()
            waiting, tokens = len(self._queue), self._queue.tokens
        if waiting and (waiting >= self._max_requests or tokens + request.tokens > self._max_tokens):
            raise QueueFull(
                f"{waiting} requests with {tokens} tokens are waiting; the queue takes {self._max_requests} "
                f"requests and {self._max_tokens} tokens",
                max(tokens / self._rate, 1.0),
            )

    def _expire(self) -> None:
        for request in self._queue.drop(time.monotonic()):
            request.fail(Expired("the deadline passed while the request was waiting"))

    def _work(self) -> None:
        while portions := self._next():
            try:
                self._compute(portions)
            except Exception as error:  # whatever an engine may raise: it is not to be trusted any more
                log.exception("the engine failed; it is opened anew")
                self._restart(error, portions)
            self._busy_since = None

    def _next(self) -> list[Portion]:
        """The rows of the next batch, as soon as there are some; none: the end."""
        with self._changed:
            while True:
                self._expire()
                if len(self._queue):
                    self._busy_since = time.monotonic()
                    return self._queue.take(self._num_tokens(), seconds_per_token=1 / self._rate)
                if self._state is State.closed:
                    return []
                self._changed.wait()

    def _num_tokens(self) -> int:
        if self._batch_tokens is not None:
            return self._batch_tokens
        part = min(len(self._queue) / MANY, 1.0)
        seconds = BATCH_SECONDS + part * (LONGEST_BATCH_SECONDS - BATCH_SECONDS)
        return min(max(int(seconds * self._rate), MIN_BATCH_TOKENS), MAX_BATCH_TOKENS)

    def _compute(self, portions: Sequence[Portion]) -> None:
        rows = [row for portion in portions for row in portion.rows()]
        started = time.monotonic()
        assert self._engine is not None
        try:
            scores = self._engine.run(rows, portions[0].request.run)
        except (EngineError, ValueError) as error:
            self._blame(portions, error)
            return
        seconds = time.monotonic() - started
        self._learn(rows, len(portions), seconds)
        begin = 0
        for portion in portions:
            end = begin + len(portion.places)
            self._credit(portion, scores[begin:end], started, seconds)
            begin = end

    def _credit(self, portion: Portion, scores: NDArray[np.float32], started: float, seconds: float) -> None:
        request = portion.request
        request.started = started if request.started is None else request.started
        request.compute_s += seconds
        request.add_scores(portion.places, scores)
        if not request.pending:
            request.finish()

    def _blame(self, portions: Sequence[Portion], error: Exception) -> None:
        """Find the request that cannot be scored by running each alone, so that no other fails with it."""
        if len(portions) > 1:
            for portion in portions:
                self._compute([portion])
            return
        request = portions[0].request
        with self._changed:
            self._queue.discard(request)
        request.fail(error)

    def _learn(self, rows: Sequence[Row], num_requests: int, seconds: float) -> None:
        tokens = sum(map(len, rows))
        self._rate += 0.2 * (tokens / max(seconds, 1e-6) - self._rate)
        if self._on_batch is not None:
            padded = len(rows) * max(map(len, rows))
            self._on_batch(
                Batch(requests=num_requests, rows=len(rows), tokens=tokens, padded_tokens=padded, seconds=seconds)
            )

    def _restart(self, error: Exception, portions: Sequence[Portion]) -> None:
        """Fail what was being computed and what waits, then open the engine anew, with longer and longer pauses."""
        now = time.monotonic()
        self._backoff_s = (
            FIRST_BACKOFF_S if now - self._failed > CALM_S else min(2 * self._backoff_s, LONGEST_BACKOFF_S)
        )
        self._failed = now
        with self._changed:
            is_closed = self._state is State.closed
            self._state = State.closed if is_closed else State.restarting
            self._last_error = f"{type(error).__name__}: {error}"
            waiting = self._queue.clear()
        for request in [portion.request for portion in portions] + waiting:
            request.fail(EngineDown("the engine failed and is being restarted", max(self._backoff_s, 1.0)))
        self._engine = None  # its memory is free before the next one is loaded
        while not self._opened():
            self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)

    def _opened(self) -> bool:
        """Wait for the back-off, then open the engine; False where that fails. True also when closed meanwhile."""
        with self._changed:
            if self._changed.wait_for(lambda: self._state is State.closed, self._backoff_s):
                return True
        try:
            engine = self._reopen()
        except Exception as error:  # memory or a device that is still not there, say: tried again
            log.exception("the engine could not be opened")
            self._last_error = f"{type(error).__name__}: {error}"
            return False
        with self._changed:
            self._engine = engine
            self._restarts += 1
            self._state = State.closed if self._state is State.closed else State.ready
        return True
