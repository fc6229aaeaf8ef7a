"""Several devices: a replica of the model on each, in a process of its own, and the rows divided by tokens.

A replica takes the next batch when it has done one, so a slower device does less. What a replica fails with comes
back as an error with its traceback; a replica that dies is an error too, never a wait without end.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.errors import EngineError
from secondpass.packed import plan
from secondpass.types import Advance, Row, Run

WORKER = "secondpass.engine.replica_worker"
# Batches of a replica's budget in one message: the device does not wait for the next one between them.
BATCHES = 4
# Messages that a replica holds: it begins the second while the answer to the first is on its way.
IN_FLIGHT = 2


@dataclass(frozen=True, kw_only=True)
class Task:
    """Rows on their way to a replica, laid end to end; `number` tells its answer from that of a call given up."""

    number: int
    ids: NDArray[np.int32]
    lengths: tuple[int, ...]
    passages: tuple[tuple[int, int], ...]
    run: Run

    @classmethod
    def of(cls, number: int, rows: Sequence[Row], run: Run) -> Task:
        return cls(
            number=number,
            ids=np.array([token for row in rows for token in row.ids], np.int32),
            lengths=tuple(len(row) for row in rows),
            passages=tuple(row.passage for row in rows),
            run=run,
        )

    def rows(self) -> list[Row]:
        parts = np.split(self.ids, np.cumsum(self.lengths)[:-1])
        return [Row(ids.tolist(), passage) for ids, passage in zip(parts, self.passages, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a replica says: that it is ready, scores (N, outputs) of a task, or the traceback of what went wrong."""

    number: int = 0
    facts: dict[str, Any] | None = None
    scores: NDArray[np.float32] | None = None
    seen: str = ""  # the message of an error, "" for none
    traceback: str = ""
    is_value_error: bool = False  # the caller asked for what the model does not have


class Replica:
    """One process with one model. One thread may use it at a time."""

    def __init__(self, device: str, settings: dict[str, Any]) -> None:
        self.device = device
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=-1
        )
        weakref.finalize(self, _stop, self._process)
        self.send({**settings, "device": device})

    def send(self, message: object) -> None:
        try:
            _write(self._process.stdin, message)
        except OSError as error:
            raise self._death() from error

    def receive(self, number: int) -> Answer:
        """The next answer to call `number`; those of calls given up are passed over.

        Raises ValueError for what the model refuses, EngineError for what went wrong.
        """
        assert self._process.stdout is not None
        answer = Answer(number=number - 1)
        while answer.number != number:
            try:
                answer = pickle.load(self._process.stdout)
            except (EOFError, pickle.UnpicklingError, OSError) as error:
                raise self._death() from error
        if answer.is_value_error:
            raise ValueError(answer.seen)
        if answer.seen:
            raise EngineError(f"the replica on {self.device} failed: {answer.seen}\n{answer.traceback}")
        return answer

    def _death(self) -> EngineError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return EngineError(f"the replica on {self.device} died with exit code {code}; load the model again")


class ReplicaEngine:
    """A torch engine on several devices at once."""

    name = "torch"

    def __init__(
        self, checkpoint: Checkpoint, devices: Sequence[str], *, dtype: str = "auto", token_budget: int | None = None
    ) -> None:
        settings = {"checkpoint": checkpoint, "dtype": dtype, "token_budget": token_budget}
        self._replicas = [Replica(device, settings) for device in devices]
        facts = [replica.receive(0).facts or {} for replica in self._replicas]
        self.device = ",".join(str(each["device"]) for each in facts)
        self.dtype, self.reason = str(facts[0]["dtype"]), f"{len(facts)} replicas: {facts[0]['reason']}"
        self.max_length = min(int(each["max_length"]) for each in facts)
        self._budgets = [int(each["token_budget"]) for each in facts]
        self._lock = threading.Lock()  # one call at a time: each uses all devices already
        self._number = 0

    @property
    def token_budget(self) -> int:
        """Tokens that all replicas together have in hand."""
        return BATCHES * sum(self._budgets)

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        if run.early_exit is not None:
            raise ValueError("early_exit compares all candidates layer by layer; open the model on one device")
        with self._lock:
            self._number += 1
            lengths = [len(row) for row in rows]
            share = -(-sum(lengths) // len(self._replicas))
            batches = deque(plan(lengths, token_budget=max(min(BATCHES * min(self._budgets), share), 1)))
            if not rows:  # one of them says whether the model can run like that
                return self._drive(self._replicas[0], rows, run, deque([[]]), None)[0][1]
            with ThreadPoolExecutor(len(self._replicas), "secondpass-replica") as pool:
                work = [pool.submit(self._drive, each, rows, run, batches, progress) for each in self._replicas]
                try:
                    done = [part for each in work for part in each.result()]
                except BaseException:
                    batches.clear()  # the others stop after what they have
                    raise
        scores = np.empty((len(rows), done[0][1].shape[1]), np.float32)
        for batch, values in done:
            scores[batch] = values
        return scores

    def _drive(
        self,
        replica: Replica,
        rows: Sequence[Row],
        run: Run,
        batches: deque[list[int]],
        progress: Advance | None,
    ) -> list[tuple[list[int], NDArray[np.float32]]]:
        """Feed one replica until no batch is left."""
        number = self._number
        done: list[tuple[list[int], NDArray[np.float32]]] = []
        sent: deque[list[int]] = deque()
        while True:
            while len(sent) < IN_FLIGHT and (batch := _next(batches)) is not None:
                replica.send(Task.of(number, [rows[index] for index in batch], run))
                sent.append(batch)
            if not sent:
                return done
            scores = replica.receive(number).scores
            assert scores is not None
            done.append((sent.popleft(), scores))
            if progress is not None and done[-1][0]:
                progress(len(done[-1][0]))


def devices_of(device: str) -> list[str]:
    """The devices of "cuda:0,cuda:2", "cuda:0,2", "cpu,cpu" or "cuda:all"; one device is a list of one."""
    if device == "cuda:all":
        import torch

        return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cuda"]
    kind = ""
    devices = []
    for part in device.split(","):
        kind, name = (part.partition(":")[0], part) if not part.isdigit() else (kind, f"{kind}:{part}")
        devices.append(name.strip())
    return devices


def _next(batches: deque[list[int]]) -> list[int] | None:
    try:
        return batches.popleft()
    except IndexError:
        return None


def _write(stream: IO[bytes] | None, message: object) -> None:
    assert stream is not None
    pickle.dump(message, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End of input ends the worker; one that computes is not waited for."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                pass
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
