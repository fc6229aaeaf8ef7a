"""Batches side by side on a CPU: each stream has a thread of its own and its share of the cores.

Most operators of a small model last some tens of microseconds, and threads that divide each of them wait for one
another at its end. Streams divide the batches instead, and meet once a list.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch

from secondpass.engine.batches import Budget, OutOfMemory, in_batches, memory_checked
from secondpass.engine.cpu.linear_onednn import BLOCK
from secondpass.engine.cpu.threads import usable_threads
from secondpass.errors import EngineError

# Each stream reads all weights, so more of them would ask more of the memory than they save in waiting.
MAX_STREAMS = 4
# Fewer tokens a stream are run by all threads together. MiniLM-L6 and two cores: 100 passages took 10 to 16 % less
# time in streams, 400 passages 7 to 20 %, 20 passages (3,500 tokens) as long; 3 passages took 17 % more.
MIN_TOKENS = 1024
# Tokens in a batch, whoever runs it: more than a product takes at once are joined in memory that the system has to
# give each time. Of 100 passages of MiniLM-L6 4,096 took 4 to 9 % more CPU time than 2,048, and 1,024 3 to 4 %.
MAX_TOKENS = BLOCK
# So are batches of which one takes longer than this many times a stream's fair share: the others would wait for it.
UNEVEN = 1.2

T = TypeVar("T")
Forward = Callable[[list[int]], T]


class Streams:
    """Runs batches side by side where that pays, else one after the other.

    width is the model's, by which a long row costs more than short ones of as many tokens. Threads are made when they
    are first needed, and anew where torch's number of threads has changed. For one caller at a time.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._team: Team | None = None

    def in_batches(
        self, lengths: Sequence[int], budget: Budget, forward: Forward[T]
    ) -> Iterator[tuple[list[int], T]]:
        """As `memory.in_batches`: what `forward` makes of each batch of indices into `lengths`.

        The streams divide the budget; rows that need more than a share come first, by all threads together.
        """
        threads = usable_threads(torch.get_num_threads())
        num_streams = min(threads, MAX_STREAMS)
        room = min(budget.tokens // num_streams, MAX_TOKENS)
        long = [position for position, length in enumerate(lengths) if length > room]
        short = [position for position, length in enumerate(lengths) if length <= room]
        batches = divide([lengths[position] for position in short], num_streams, room=room, width=self._width)
        if not batches or (team := self._ready(threads)) is None:
            yield from in_batches(lengths, budget, bounded(forward, threads), most=MAX_TOKENS)
            return
        yield from _of(long, lengths, budget, bounded(forward, threads))
        left = set(short)
        try:
            for batch, values in team.run([[short[i] for i in batch] for batch in batches], lengths, forward):
                left.difference_update(batch)
                yield batch, values
        except OutOfMemory as error:
            if error.spoils_thread:
                team.pool.shutdown(wait=False)
                self._team = None
                raise
            budget.halve(budget.tokens)
        yield from _of(sorted(left), lengths, budget, bounded(forward, threads))

    def _ready(self, threads: int) -> Team | None:
        if self._team is None or self._team.process != os.getpid() or self._team.threads != threads:
            self._team = start(threads)
        return self._team if self._team.is_divided else None


def bounded(forward: Forward[T], threads: int) -> Forward[T]:
    """`forward` on no more than so many threads; the caller's number is the same before and after."""

    def run(batch: list[int]) -> T:
        before = torch.get_num_threads()
        if before <= threads:
            return forward(batch)
        torch.set_num_threads(threads)
        try:
            return forward(batch)
        finally:
            torch.set_num_threads(before)

    return run


def threads_in_words() -> str:
    threads = usable_threads(torch.get_num_threads())
    return f"{threads} thread{'s' if threads > 1 else ''}"


@dataclass(frozen=True, kw_only=True)
class Team:
    """Threads of a process, one a stream; is_divided says whether each has just its share of `threads`."""

    process: int
    threads: int
    pool: ThreadPoolExecutor
    is_divided: bool

    def run(
        self, batches: Sequence[list[int]], lengths: Sequence[int], forward: Forward[T]
    ) -> Iterator[tuple[list[int], T]]:
        """What `forward` makes of each batch, in their order. After an error no other batch is begun or going on."""

        def run(batch: list[int]) -> T:
            with torch.inference_mode(), memory_checked(sum(lengths[position] for position in batch)):
                return forward(batch)

        futures = [self.pool.submit(run, batch) for batch in batches]
        try:
            for batch, future in zip(batches, futures, strict=True):
                yield batch, future.result()
        finally:
            wait([future for future in futures if not future.cancel()])


def start(threads: int) -> Team:
    """A team for so many threads of torch, which are left as they are for the caller.

    Raises EngineError where they cannot be started: OpenMP would end the process at that.
    """
    before = torch.get_num_threads()
    num_streams = min(threads, MAX_STREAMS)
    shares = [threads // num_streams + (index < threads % num_streams) for index in range(num_streams)]
    pool = ThreadPoolExecutor(num_streams, "secondpass-stream")
    is_divided = num_streams > 1 and "OpenMP" in torch.__config__.parallel_info()
    if is_divided:
        meeting = threading.Barrier(num_streams)
        try:
            taken = [pool.submit(_take, share, meeting) for share in shares]
        except RuntimeError as error:
            meeting.abort()  # else those that were started would wait for the others for ever
            pool.shutdown(wait=False, cancel_futures=True)
            torch.set_num_threads(before)
            raise EngineError(
                f"no {num_streams} threads can be started ({error}): the memory or the number of threads that this "
                "process may have is used up; raise it, or set OMP_NUM_THREADS=1"
            ) from error
        # OpenMP has a number for each thread; where those of others have changed ours, nothing is divided
        is_divided = all(each.result() for each in taken) and torch.get_num_threads() == before
        torch.set_num_threads(before)  # what threads that start later begin with, which the streams have changed
    return Team(process=os.getpid(), threads=threads, pool=pool, is_divided=is_divided)


def _take(share: int, meeting: threading.Barrier) -> bool:
    torch.get_num_threads()  # only now does a new thread take the number of the others
    torch.set_num_threads(share)
    meeting.wait()  # so that no thread of the pool takes two shares
    return torch.get_num_threads() == share


def divide(lengths: Sequence[int], num_streams: int, *, room: int, width: int) -> list[list[int]]:
    """Batches of indices into `lengths`, longest first, each of at most `room` tokens and of about the same cost.

    None at all where streams do not pay: too few tokens, or rows that cannot be divided evenly. No row is longer
    than room.
    """
    total = sum(lengths)
    if num_streams < 2 or total < num_streams * MIN_TOKENS:
        return []
    costs = [length * (width + length) for length in lengths]  # linear layers, and attention
    fair = sum(costs) / (num_streams * math.ceil(total / (num_streams * room)))
    batches: list[list[int]] = [[]]
    spent, tokens = 0, 0
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        is_full = spent + costs[position] / 2 > fair * len(batches) or tokens + lengths[position] > room
        if batches[-1] and is_full:
            batches.append([])
            tokens = 0
        batches[-1].append(position)
        spent += costs[position]
        tokens += lengths[position]
    longest = max(sum(costs[position] for position in batch) for batch in batches)
    is_even = len(batches) >= num_streams and longest <= UNEVEN * sum(costs) / num_streams
    return batches if is_even else []


def _of(
    positions: Sequence[int], lengths: Sequence[int], budget: Budget, forward: Forward[T]
) -> Iterator[tuple[list[int], T]]:
    """`in_batches` for these indices alone."""

    def of(batch: list[int]) -> tuple[list[int], T]:
        picked = [positions[index] for index in batch]
        return picked, forward(picked)  # which may put them in another order

    chosen = [lengths[position] for position in positions]
    for _, (picked, values) in in_batches(chosen, budget, of, most=MAX_TOKENS):
        yield picked, values
