"""How many tokens are run at once, and what happens when they do not fit: half as many are, and the work goes on."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from secondpass.errors import EngineError
from secondpass.packed import plan, rung
from secondpass.types import Row

logger = logging.getLogger(__name__)

# Tokens in one micro-batch. On a CPU more than a few thousand gain nothing and leave the cache; a GPU of today is
# busy with a fraction of its budget, which is lowered where its free memory is small.
TOKEN_BUDGETS = {"cpu": 4096, "cuda": 65536, "mps": 16384}
MIN_BUDGET = 1024
# Part of the free memory of a GPU that a batch may take.
USABLE = 0.5
# Values of a token that a block holds at its peak: of the model's width (residual, normed, queries, keys, values,
# mixed, and what norms hold in float32), and of the perceptron's (gate, up and their product).
WIDTHS, MLP_WIDTHS = 12, 3

T = TypeVar("T")


class OutOfMemory(EngineError):
    """A batch did not fit in memory. spoils_thread: oneDNN makes no kernel any more in the thread that ran it."""

    spoils_thread = False


class _Substitute(threading.local):
    """Calls functions in the thread itself, or in another one instead, once oneDNN has failed in it.

    Where there is no memory for a kernel, the assembler inside of oneDNN (Xbyak) keeps the error for the thread, and
    nothing takes it back: each kernel that is not made yet fails from then on, with all the memory in the world.
    """

    def __init__(self) -> None:
        self._is_needed, self._process = False, 0
        self._pool: ThreadPoolExecutor | None = None

    def call(self, function: Callable[[], T]) -> T:
        if not self._is_needed:
            return function()
        if self._pool is None or self._process != os.getpid():  # no thread survives a fork
            self._process, self._pool = os.getpid(), ThreadPoolExecutor(1, "secondpass-substitute")
        try:
            calling = self._pool.submit(_inferring, function, torch.get_num_threads())
        except RuntimeError as error:  # it can have no thread
            self._pool = None
            raise MemoryError(str(error)) from error
        return calling.result()

    def renew(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        self._is_needed, self._pool = True, None


def _inferring(function: Callable[[], T], num_threads: int) -> T:
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
    with torch.inference_mode():
        return function()


_substitute = _Substitute()


@dataclass
class Budget:
    """Tokens that are run at once; lowered for good when they did not fit. `release` gives back what it can."""

    tokens: int
    release: Callable[[], None] = lambda: None

    def halve(self, tokens: int) -> None:
        self.release()
        self.tokens = max(min(self.tokens, tokens) // 2, 1)
        logger.warning("out of memory with %d tokens at once; going on with %d", tokens, self.tokens)


def budget_of(device: torch.device, config: Any, dtype: torch.dtype) -> Budget:
    """What suits the device, and on a GPU the memory that is free now that the weights are there."""
    usual = TOKEN_BUDGETS[device.type]
    if device.type != "cuda":
        return Budget(usual)
    free, _ = torch.cuda.mem_get_info(device)
    return Budget(fitting(free, usual, width=config.width, mlp_width=config.mlp_width, itemsize=dtype.itemsize))


def fitting(free: int, usual: int, *, width: int, mlp_width: int, itemsize: int) -> int:
    """The usual number of tokens, or fewer where so many bytes of free memory hold no more."""
    each = (WIDTHS * width + MLP_WIDTHS * mlp_width) * itemsize
    return max(min(usual, int(free * USABLE) // each), MIN_BUDGET)


def in_batches(
    lengths: Sequence[int], budget: Budget, forward: Callable[[list[int]], T], *, most: int = sys.maxsize
) -> Iterator[tuple[list[int], T]]:
    """What `forward` makes of each batch of indices into `lengths`; batches that do not fit in memory are halved.

    Where the budget allows more than `most` tokens, a batch has no more than those, but for a longer row.
    Raises OutOfMemory where a single row does not fit, or no kernel, which are smaller than any batch, and leaves the
    budget as it was.
    """
    before = budget.tokens
    left = deque(plan(lengths, token_budget=min(budget.tokens, most)))
    while left:
        batch = left[0]
        try:
            values = computed(partial(forward, batch), sum(lengths[i] for i in batch))
        except OutOfMemory as error:
            if len(batch) == 1 or error.spoils_thread:
                budget.tokens = before
                raise
        else:
            left.popleft()
            yield batch, values
            continue
        budget.halve(sum(lengths[i] for i in batch))  # here, where the error and what it held are gone
        _free()
        positions = [i for each in left for i in each]
        again = plan([lengths[i] for i in positions], token_budget=min(budget.tokens, most))
        left = deque([positions[i] for i in each] for each in again)


def computed(forward: Callable[[], T], num_tokens: int) -> T:
    """What forward returns. Raises OutOfMemory, after which another call may succeed: memory comes and goes."""
    try:
        with memory_checked(num_tokens):
            return _substitute.call(forward)
    except OutOfMemory as error:
        if error.spoils_thread:
            _substitute.renew()
        raise


def filled(rows: Sequence[Row], longest: int) -> list[Row]:
    """The rows, and after them such of `longest` tokens or less that their tokens in all are a `rung`.

    A CPU's libraries compile and keep a kernel for each number of tokens, at 5 to 60 ms and a megabyte.
    """
    total = sum(map(len, rows))
    missing = rung(total) - total
    sizes = [longest] * (missing // longest) + [missing % longest] * (missing % longest > 0)
    return [*rows, *(Row([0] * size, passage=(0, size)) for size in sizes)]


_SIGNS = ("out of memory", "not enough memory", "can't allocate memory")
_NO_KERNEL = "could not create a primitive"  # oneDNN, where there is no memory for one


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host ran out of memory; on a CPU and on MPS torch says so in words alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        str(error) == _NO_KERNEL or any(sign in str(error) for sign in _SIGNS)
    )


@contextmanager
def memory_checked(num_tokens: int) -> Iterator[None]:
    """Running out of memory becomes an OutOfMemory that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = OutOfMemory(f"out of memory with {num_tokens} tokens at once; lower token_budget or max_length")
        found.spoils_thread = str(error) == _NO_KERNEL
        raise found from error


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
