"""The server's batches and an index in any order of events: hypothesis makes up the order, a model says what is.

`make fuzz` and FUZZ_EXAMPLES ask for more orders, a twentieth of the number; by default they are few.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from numpy.typing import NDArray

from secondpass.engine.engine import EngineFacts
from secondpass.errors import EngineError
from secondpass.retrieval.words import terms
from secondpass.search.stores.sqlite import SqliteStore
from secondpass.server import batching, pacing
from secondpass.server.batching import BatchedEngine, EngineDown, Expired, QueueFull, State
from secondpass.server.queue import Outcome
from secondpass.types import Advance, Row, Run
from tests.search.test_store import ANY, change, chunk, vector

EXAMPLES, STEPS = (int(os.environ["FUZZ_EXAMPLES"]) // 20 + 1, 40) if "FUZZ_EXAMPLES" in os.environ else (4, 12)
BAD = 13  # a row that begins with this token cannot be scored
SECONDS = 20
STATES = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Moody:
    """An engine that gives each row its length, and fails as it is told."""

    def __init__(self) -> None:
        self.is_dead = False
        self.failed_openings = 0
        self.pause = threading.Event()
        self.pause.set()

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(name="moody", device="none", dtype="none", reason="", max_length=512, token_budget=64)

    def check(self, run: Run) -> None:
        """It runs anything."""

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        assert self.pause.wait(SECONDS)
        if self.is_dead:
            raise MemoryError("no memory is left")
        if any(row.ids[0] == BAD for row in rows):
            raise EngineError("1 score is not finite")
        return np.array([[len(row)] for row in rows], np.float32)

    def reopen(self) -> None:
        if self.failed_openings:
            self.failed_openings -= 1
            raise OSError("still busy")
        self.is_dead = False


class Batches(RuleBasedStateMachine):
    """Every request that was accepted ends, once, with its own scores or for a reason that holds."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = pacing.FIRST_BACKOFF_S, batching.LAST_BATCH_S
        pacing.FIRST_BACKOFF_S, batching.LAST_BATCH_S = 0.001, 0.001
        self.engine = Moody()
        self.batched = BatchedEngine(self.engine, max_requests=6, max_tokens=200, batch_tokens=48)
        self.asked: list[tuple[list[int], bool, Future[Outcome]]] = []

    @rule(
        lengths=st.lists(st.integers(1, 40), max_size=4),
        is_bad=st.booleans(),
        priority=st.integers(-2, 2),
        patience=st.sampled_from([None, -1.0, 0.001, 60.0]),
    )
    def ask(self, lengths: list[int], is_bad: bool, priority: int, patience: float | None) -> None:
        rows = [Row([BAD if is_bad else 1] * length, (1, length)) for length in lengths]
        deadline = None if patience is None else time.monotonic() + patience
        try:
            future = self.batched.submit(rows, priority=priority, deadline=deadline)
        except (QueueFull, EngineDown) as refused:
            assert refused.retry_after_s > 0
            return
        self.asked.append((lengths, is_bad, future))

    @rule(index=st.integers(0, 30))
    def cancel(self, index: int) -> None:
        if index < len(self.asked):
            self.asked[index][2].cancel()

    @rule()
    def hold(self) -> None:
        self.engine.pause.clear()

    @rule()
    def go_on(self) -> None:
        self.engine.pause.set()

    @rule(failures=st.integers(0, 3))
    def die(self, failures: int) -> None:
        self.engine.failed_openings = failures
        self.engine.is_dead = True

    @invariant()
    def the_queue_is_bounded(self) -> None:
        status = self.batched.status()
        assert status.requests <= 6 + 1 and status.state in (State.ready, State.restarting)

    def teardown(self) -> None:
        self.engine.pause.set()
        try:
            for lengths, is_bad, future in self.asked:
                self.check(lengths, is_bad, future)
            end = time.monotonic() + SECONDS
            self.engine.is_dead = False
            while self.batched.status().state is not State.ready:
                assert time.monotonic() < end
                time.sleep(0.001)
            assert self.batched.submit([Row([1, 1], (1, 2))]).result(SECONDS).scores.tolist() == [[2.0]]
            assert self.batched.status().requests == 0
        finally:
            assert self.batched.close(grace_s=SECONDS)
            pacing.FIRST_BACKOFF_S, batching.LAST_BATCH_S = self.kept

    def check(self, lengths: list[int], is_bad: bool, future: Future[Outcome]) -> None:
        try:
            assert future.result(SECONDS).scores[:, 0].tolist() == lengths
            assert not is_bad or not lengths
        except EngineError:
            assert is_bad
        except (CancelledError, Expired, EngineDown):
            pass


WORDS = ("apple", "river", "bridge", "重排序", "Käse")
NAMES = st.sampled_from(["a", "b", "c", "d"])


class Notes(RuleBasedStateMachine):
    """What was written is found by its words and its vector, what was removed is not, whoever opens the index."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "notes.sqlite"
        self.stores = [SqliteStore(self.file)]
        self.texts: dict[str, list[str]] = {}

    @rule(name=NAMES, words=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), max_size=3))
    def write(self, name: str, words: list[list[str]]) -> None:
        texts = [f"{' '.join(each)} {name}{place}" for place, each in enumerate(words)]
        self.stores[-1].write([change(f"/notes/{name}", *map(chunk, texts))])
        self.texts[name] = texts

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        gone = self.stores[0].remove([f"/notes/{name}"])
        assert gone == len(self.texts.pop(name, []))

    @rule()
    def another_opens_it(self) -> None:
        self.stores.append(SqliteStore(self.file))

    @rule()
    def the_first_is_let_go_of(self) -> None:
        """Closed, as the end of a process closes it."""
        if len(self.stores) > 1:
            self.stores.pop(0).close()

    @rule()
    def finish(self) -> None:
        self.stores[-1].finish()

    @rule(content=st.binary(max_size=40))
    def the_copy_of_the_vectors_is_damaged(self, content: bytes) -> None:
        """Another file in its place: what is cut short while a process has it mapped ends the process."""
        damaged = self.file.with_name("damaged")
        damaged.write_bytes(content)
        damaged.replace(self.file.with_name("notes.sqlite-vectors"))

    @invariant()
    def all_find_what_is_there(self) -> None:
        every = [text for texts in self.texts.values() for text in texts]
        for store in (self.stores[0], self.stores[-1]):
            for word in WORDS[:3]:
                found = [
                    each.chunk.text for each in store.fetch([i for i, _ in store.search_text(terms(word), 99, ANY)])
                ]
                assert sorted(found) == sorted(text for text in every if word in text)
            near = store.search_vectors(vector("apple"), 99, ANY)
            assert sorted(each.chunk.text for each in store.fetch([i for i, _ in near])) == sorted(every)
            counts = store.counts()
            assert (counts.files, counts.chunks, counts.vectors) == (len(self.texts), len(every), len(every))

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self.folder.cleanup()


TestBatches = Batches.TestCase
TestBatches.settings = STATES
TestNotes = Notes.TestCase
TestNotes.settings = STATES
