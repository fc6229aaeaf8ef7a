"""What an engine is, and what every engine is held by: turns for its callers, and a way to open it anew."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from secondpass.errors import EngineError
from secondpass.types import Advance, Info, Row, Run

Vectors = NDArray[np.float32]
# A caller that runs more tokens than this lets others in between.
TURN_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What runs a model. reason says in words why this precision and kernel; lengths are in tokens.

    max_length is the longest row, token_budget what is run at once; it may become less while running, where that
    did not fit in memory. keeps_passages: what was read of a passage is kept, so that a later query costs less.
    """

    name: str
    device: str
    dtype: str
    reason: str
    max_length: int
    token_budget: int
    keeps_passages: bool = False

    def info(self, *, model: str, revision: str | None, family: str, max_length: int, truncation: str) -> Info:
        """What a public class says of itself; max_length is the one that it reads with."""
        return Info(
            model=model,
            revision=revision,
            family=family,
            engine=self.name,
            device=self.device,
            dtype=self.dtype,
            reason=self.reason,
            max_length=max_length,
            truncation=truncation,
        )


class Engine(Protocol):
    """Scores rows; knows nothing of texts. Safe to call from several threads, which take turns."""

    @property
    def facts(self) -> EngineFacts: ...

    def check(self, run: Run) -> None:
        """Raises ValueError where the model cannot be run like that."""
        ...

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        """Logits (N, outputs) in the order of the rows.

        progress hears of rows that are done and of the seconds that were computed for them, without waiting for
        other callers. Raises ValueError as `check`, EngineError for what went wrong.
        """
        ...


@runtime_checkable
class PassageEngine(Protocol):
    """An engine that reads passages apart, and whose states of them can be kept elsewhere, as bytes."""

    @property
    def states_mark(self) -> str:
        """Names what the states depend on: those of another mark are of no use."""
        ...

    def states(self, rows: Sequence[Row]) -> list[bytes]:
        """The states of each row's passage."""
        ...

    def keep(self, states: Iterable[bytes]) -> None:
        """Have states at hand that `states` gave before: passages are then not read again."""
        ...


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What a checkpoint of an encoder has above its backbone.

    token_width: the width D of a projection without bias among the backbone's weights (ColBERT). layers: folders of
    linear layers that make token vectors one after the other (PyLate). dense: folders of layers, each with its
    activation, that a pooled vector goes through. files: linear layers that lie beside the
    weights, by the output that they make ("tokens", "weights"), as BGE-M3 has.
    """

    pooling: str = "cls"
    token_width: int | None = None
    layers: Sequence[Path] = ()
    dense: Sequence[Path] = ()
    files: Mapping[str, Path] | None = None


class Encoder(Protocol):
    """Vectors of rows that hold single texts. Safe to call from several threads, which take turns."""

    width: int  # of a pooled vector

    @property
    def fingerprint(self) -> str:
        """Of the weights, whatever the precision."""
        ...

    @property
    def facts(self) -> EngineFacts: ...

    def run(
        self, rows: Sequence[Row], outputs: Collection[str], visible: Sequence[int] | None = None
    ) -> dict[str, Vectors]:
        """Of "pooled" (N, C), "tokens" (T, D) and "weights" (T, 1) those asked for, in the order of the rows.

        visible: only so many first tokens of each row are seen, though all have an output.
        """
        ...


class Turn:
    """The time in which one caller alone computes."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the turn began, or since the last call."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds


class Turns:
    """A lock that goes to its callers in the order of their arrival.

    Who has much to do takes several turns, so that nobody waits for a whole list. Raises EngineError where a thread
    waits for itself, as a progress callback does that calls its own engine.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._is_held = False
        self._holder: int | None = None  # a thread
        self._waiting: deque[threading.Event] = deque()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def __enter__(self) -> Turn:
        mine = threading.Event()
        with self._mutex:
            if self._holder == threading.get_ident():
                raise EngineError("the engine was called while it runs for this thread; do not score in `progress`")
            if self._is_held:
                self._waiting.append(mine)
            else:
                self._is_held = True
                mine.set()
        try:
            mine.wait()
            self._holder = threading.get_ident()
        except BaseException:  # Ctrl-C while waiting
            self._give_up(mine)
            raise
        return Turn()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._mutex:
            self._holder = None
            if self._waiting:
                self._waiting.popleft().set()  # held without a gap, so that nobody comes in between
            else:
                self._is_held = False

    def _give_up(self, mine: threading.Event) -> None:
        with self._mutex:
            if mine in self._waiting:
                self._waiting.remove(mine)
                return
        self.__exit__(None, None, None)


E = TypeVar("E", bound="Engine | Encoder")


class Reopening(Generic[E]):
    """An engine or an encoder with what opens it, so that it can be opened anew after a failure.

    In a forked process it is opened anew at the first use, where that can be: threads do not survive a fork.
    """

    def __init__(self, opens: Callable[[], E]) -> None:
        self._opens = opens
        current = opens()
        self._current: E | None = current
        self._facts = current.facts
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._why = ""

    @property
    def current(self) -> E:
        """What is open. Raises EngineError while it is being opened anew, after that failed, and after `close`."""
        if self._process != os.getpid():
            self._open_after_fork()
        current = self._current
        if current is None:
            raise EngineError(self._why)
        return current

    @property
    def facts(self) -> EngineFacts:
        """Those of what is open, or of the last that was."""
        if (current := self._current) is not None:
            self._facts = current.facts
        return self._facts

    def reopen(self) -> None:
        """Open it anew; may be tried again where that fails. The memory of the old one is free before."""
        self._why = "the engine failed and is being opened anew"
        self._current = None
        try:
            self._current = self._opens()
        except Exception as error:
            self._why = f"the engine could not be opened anew: {error}"
            raise

    def _open_after_fork(self) -> None:
        with self._lock:
            if self._process != os.getpid():
                self.reopen()
                self._process = os.getpid()

    def close(self) -> None:
        """Give back the memory; what is running goes on to its end."""
        self._why = "the model was closed; open it again"
        self._current = None


class ReopeningEngine:
    """An engine that can be opened anew."""

    def __init__(self, opens: Callable[[], Engine]) -> None:
        self._held = Reopening(opens)

    @property
    def facts(self) -> EngineFacts:
        return self._held.facts

    @property
    def current(self) -> Engine:
        """What is open. Raises EngineError while it is being opened anew, and after that failed."""
        return self._held.current

    def check(self, run: Run) -> None:
        self._held.current.check(run)

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        return self._held.current.run(rows, run, progress)

    def reopen(self) -> None:
        """Load the model anew; may be tried again where that fails. The memory of the old one is free before."""
        self._held.reopen()

    def close(self) -> None:
        """Give back the memory; what is running goes on to its end."""
        self._held.close()
