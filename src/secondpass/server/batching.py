"""BatchedEngine: an engine that joins the rows of concurrent calls into batches for another, which one thread owns.

A request is cut wherever a batch is full, so that a short one goes in between the portions of a long one. What was
cancelled or is past its deadline is dropped before it is computed, and what cannot be done in time is not accepted.
An engine that fails for another reason than a request is opened anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secondpass.engine.engine import EngineFacts
from secondpass.errors import EngineError, SecondpassError
from secondpass.server.pacing import LONGEST_BACKOFF_S, Backoff, Throughput
from secondpass.server.queue import Outcome, Queue, QueuedRequest, RequestSlice
from secondpass.types import Advance, Row, Run

log = logging.getLogger(__name__)

LAST_BATCH_S = 5.0
STOPPING = "the server is stopping"


class Reopenable(Protocol):
    """An engine that can be opened anew after a failure."""

    @property
    def facts(self) -> EngineFacts: ...

    def check(self, run: Run) -> None: ...

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]: ...

    def reopen(self) -> None: ...


class Refused(SecondpassError):
    """What was not accepted, or is not computed; trying again makes sense in retry_after_s."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Refused):
    """More waits than the queue takes, or than can be computed before the request's deadline."""


class EngineDown(Refused):
    """The engine is being opened anew, or is closed."""


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
    waiting_s: float  # to compute the tokens that wait


class BatchedEngine:
    """An engine behind a queue. Safe to call from several threads, whose rows are computed together.

    max_requests and max_tokens bound what waits; a request larger than that is taken when nothing else waits.
    batch_tokens None follows the engine's speed, so that a batch takes BATCH_SECONDS or a little more. on_batch is
    called in the batches' thread after each of them, before its requests are done.
    """

    def __init__(
        self,
        engine: Reopenable,
        *,
        max_requests: int = 512,
        max_tokens: int = 1_000_000,
        batch_tokens: int | None = None,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self._engine = engine
        self._max_requests, self._max_tokens = max_requests, max_tokens
        self._on_batch = on_batch
        self._queue = Queue()
        self._throughput = Throughput(batch_tokens)
        self._state, self._restarts = State.ready, 0
        self._reason = STOPPING  # why it is closed, once it is
        self._last_error: str | None = None
        self._backoff = Backoff()
        self._probe: tuple[Row, Run] | None = None  # what the engine has scored before
        self._busy_since: float | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def facts(self) -> EngineFacts:
        return self._engine.facts

    def check(self, run: Run) -> None:
        self._engine.check(run)

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        """As an engine's; waits for its turn as long as it takes."""
        return self.for_call().run(rows, run, progress)

    def for_call(self, *, deadline: float | None = None, priority: int = 0) -> BatchedCall:
        """The engine as one call sees it. deadline is a time of time.monotonic(), lower priority is earlier."""
        return BatchedCall(self, deadline=deadline, priority=priority)

    def submit(
        self, rows: Sequence[Row], run: Run | None = None, *, priority: int = 0, deadline: float | None = None
    ) -> Future[Outcome]:
        """The outcome of scoring the rows; cancel the future to take what still waits out of the queue.

        Raises QueueFull and EngineDown; the future raises those, Expired, and EngineError or ValueError where the
        engine cannot score these rows.
        """
        request = QueuedRequest(
            rows=rows, run=run or Run(), priority=priority, deadline=deadline, arrived=time.monotonic()
        )
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
                waiting_s=self._throughput.seconds_for(self._queue.tokens),
            )

    def abandon(self, reason: str = STOPPING) -> None:
        """Take no more, and fail what waits with EngineDown; does not wait for what is being computed."""
        with self._changed:
            self._close(reason)
            rest = self._queue.clear()
        for request in rest:
            request.fail(EngineDown(self._reason, LAST_BATCH_S))

    def close(self, *, grace_s: float = 30.0, reason: str = STOPPING) -> bool:
        """Take no more, compute what was taken for at most grace_s seconds, then fail the rest with EngineDown.

        False where the engine is still at a batch after that, and LAST_BATCH_S more: its thread goes on.
        """
        with self._changed:
            self._close(reason)
        self._thread.join(grace_s)
        self.abandon(reason)
        self._thread.join(LAST_BATCH_S)
        return not self._thread.is_alive()

    def _close(self, reason: str) -> None:
        if self._state is not State.closed:
            self._state, self._reason = State.closed, reason
        self._changed.notify_all()

    def _check_open(self) -> None:
        if self._state is State.restarting:
            raise EngineDown("the engine is being restarted", max(self._backoff.seconds, 1.0))
        if self._state is State.closed:
            raise EngineDown(self._reason, LAST_BATCH_S)

    def _check_room(self, request: QueuedRequest) -> None:
        if len(self._queue) and self._lacks_room(request):
            self._expire()
        if not len(self._queue) or not self._lacks_room(request):
            return
        waiting, tokens = len(self._queue), self._queue.tokens
        late = self._seconds_late(request)
        over = self._throughput.seconds_for(tokens + request.tokens - self._max_tokens)
        # There is room as soon as a batch is done, or as what is too much has been computed.
        retry_s = min(max(over, late, 1.0), LONGEST_BACKOFF_S)
        message = f"{waiting} requests with {tokens} tokens are waiting; the queue takes {self._max_requests} "
        message += f"requests and {self._max_tokens} tokens"
        if late > 0:
            message = f"{waiting} requests with {tokens} tokens are waiting; this one would be done too late"
        raise QueueFull(message, retry_s)

    def _lacks_room(self, request: QueuedRequest) -> bool:
        waiting, tokens = len(self._queue), self._queue.tokens
        is_full = waiting >= self._max_requests or tokens + request.tokens > self._max_tokens
        return is_full or self._seconds_late(request) > 0

    def _seconds_late(self, request: QueuedRequest) -> float:
        """How long after its deadline a request would be done, by the speed that was measured."""
        speed = self._throughput
        if request.deadline is None or not speed.is_measured:
            return 0.0
        tokens = self._queue.before(request, seconds_per_token=speed.seconds_for(1)) + request.tokens
        return time.monotonic() + speed.seconds_for(tokens) - request.deadline

    def _expire(self) -> None:
        for request in self._queue.drop(time.monotonic()):
            request.fail(Expired("the deadline passed while the request was waiting"))

    def _work(self) -> None:
        while portions := self._next():
            failure = self._failure(portions)
            if failure is not None:
                self._restart(failure, portions)
            self._busy_since = None

    def _failure(self, portions: Sequence[RequestSlice]) -> str | None:
        """Compute them; in words what the engine failed of. The error itself would keep the engine in memory."""
        try:
            self._compute(portions)
        except Exception as error:  # whatever an engine may raise: it is not to be trusted any more
            log.exception("the engine failed; it is opened anew")
            return f"{type(error).__name__}: {error}"
        return None

    def _next(self) -> list[RequestSlice]:
        """The rows of the next batch, as soon as there are some; none: the end."""
        with self._changed:
            while True:
                self._expire()
                if len(self._queue):
                    self._busy_since = time.monotonic()
                    tokens = self._throughput.batch_tokens(len(self._queue))
                    return self._queue.take(tokens, seconds_per_token=self._throughput.seconds_for(1))
                if self._state is State.closed:
                    return []
                self._changed.wait()

    def _compute(self, portions: Sequence[RequestSlice]) -> None:
        rows = [row for portion in portions for row in portion.rows()]
        run = portions[0].request.run
        started = time.monotonic()
        try:
            scores = self._engine.run(rows, run)
        except (EngineError, ValueError) as error:
            self._blame(portions, error)
            return
        seconds = time.monotonic() - started
        self._learn(rows, len(portions), seconds)
        if self._probe is None and not portions[0].request.is_whole:
            self._probe = (min(rows, key=len), run)
        begin, per_token = 0, seconds / max(sum(map(len, rows)), 1)
        for portion in portions:
            end = begin + len(portion.indices)
            portion.request.own_s += per_token * sum(map(len, rows[begin:end]))
            self._credit(portion, scores[begin:end], started, seconds)
            begin = end

    def _credit(self, portion: RequestSlice, scores: NDArray[np.float32], started: float, seconds: float) -> None:
        request = portion.request
        request.started = started if request.started is None else request.started
        request.compute_s += seconds
        request.add_scores(portion.indices, scores)
        if not request.pending:
            request.finish()

    def _blame(self, portions: Sequence[RequestSlice], error: Exception) -> None:
        """Find the request that cannot be scored by running each alone, so that no other fails with it.

        Raises the error where the engine cannot score either what it has scored before: it is dead, then.
        """
        if len(portions) > 1:
            for portion in portions:
                self._compute([portion])
            return
        if isinstance(error, EngineError) and self._probe is not None:
            row, run = self._probe
            self._engine.run([row], run)
        request = portions[0].request
        with self._changed:
            self._queue.discard(request)
        request.fail(error)

    def _learn(self, rows: Sequence[Row], num_requests: int, seconds: float) -> None:
        tokens = sum(map(len, rows))
        self._throughput.learn(tokens, seconds)
        if self._on_batch is not None:
            padded = len(rows) * max(map(len, rows))
            self._on_batch(
                Batch(requests=num_requests, rows=len(rows), tokens=tokens, padded_tokens=padded, seconds=seconds)
            )

    def _restart(self, failure: str, portions: Sequence[RequestSlice]) -> None:
        """Fail what was being computed and what waits, then open the engine anew, with longer and longer pauses."""
        self._backoff.failed()
        with self._changed:
            self._state = State.closed if self._state is State.closed else State.restarting
            self._last_error = failure
            waiting = self._queue.clear()
        for request in [portion.request for portion in portions] + waiting:
            request.fail(EngineDown("the engine failed and is being restarted", max(self._backoff.seconds, 1.0)))
        while not self._opened():
            self._backoff.grow()

    def _opened(self) -> bool:
        """Wait for the back-off, then open the engine; False where that fails. True also when closed meanwhile."""
        with self._changed:
            if self._changed.wait_for(lambda: self._state is State.closed, self._backoff.seconds):
                return True
        try:
            self._engine.reopen()
        except Exception as error:  # memory or a device that is still not there, say: tried again
            log.exception("the engine could not be opened")
            self._last_error = f"{type(error).__name__}: {error}"
            return False
        with self._changed:
            self._restarts += 1
            self._state = State.closed if self._state is State.closed else State.ready
        return True


class BatchedCall:
    """A batched engine as one call sees it: with its deadline and priority, and what it has cost so far."""

    def __init__(self, engine: BatchedEngine, *, deadline: float | None, priority: int) -> None:
        self._engine, self._deadline, self._priority = engine, deadline, priority
        self.queue_s = self.compute_s = 0.0
        self._lock = threading.Lock()
        self._future: Future[Outcome] | None = None
        self.is_cancelled = False

    @property
    def facts(self) -> EngineFacts:
        return self._engine.facts

    def check(self, run: Run) -> None:
        self._engine.check(run)

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        """As an engine's. Raises what `submit` and its future do, and CancelledError."""
        with self._lock:
            if self.is_cancelled:
                raise CancelledError
            self._future = self._engine.submit(rows, run, priority=self._priority, deadline=self._deadline)
        outcome = self._future.result()
        self.queue_s += outcome.queue_s
        self.compute_s += outcome.compute_s
        if progress is not None:
            progress(len(rows), outcome.own_s)
        return outcome.scores

    def cancel(self) -> None:
        """Take what waits out of the queue; nothing is computed for this call any more."""
        with self._lock:
            self.is_cancelled = True
            if self._future is not None:
                self._future.cancel()
