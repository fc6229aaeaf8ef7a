"""CUDA graphs: the hundreds of kernels of a small batch are launched as one.

A GPU computes a few thousand tokens faster than Python launches what computes them. A graph repeats the launches of
one forward pass at fixed addresses and sizes. So a batch is filled up to a bucket's size with rows that mean nothing,
its tokens are copied to where the graph reads them, and the lengths of rows, which differ from batch to batch, are
read on the device alone.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from secondpass.engine.batches import Budget
from secondpass.models.attention.reference import Kernel
from secondpass.models.attention.varlen import attend_varlen
from secondpass.models.cross_encoder import CrossEncoderModel
from secondpass.models.late_interaction import LateInteraction
from secondpass.packed import Packed, pack
from secondpass.types import Row

logger = logging.getLogger(__name__)

# Above so many tokens the GPU computes for longer than Python launches.
MAX_TOKENS = 16384
# Part of the token budget that one graph may take, since its memory stays.
SHARE = 4
MAX_GRAPHS = 32
# Sizes of buckets: eight steps from a number of tokens to its double, so at most an eighth is computed in vain;
# rows and the longest of them cost little, and double.
STEPS, MIN_TOKENS, MIN_ROWS, MIN_LONGEST = 8, 64, 8, 64

Forward = Callable[[Packed], Tensor]  # scores (N, outputs) of a batch on the device


class Graph(Protocol):
    """A recorded forward pass."""

    def replay(self) -> Tensor:
        """Scores of what the inputs hold now; the next replay of any graph may overwrite them."""
        ...

    def release(self) -> None:
        """Give its memory back."""
        ...


Record = Callable[[Callable[[], Tensor]], Graph]


@dataclass(frozen=True)
class Bucket:
    """The size of a graph: tokens and rows in all, and the most tokens that a row may have."""

    tokens: int
    rows: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], *, max_length: int) -> Bucket:
        """The smallest with room for rows of these lengths, and for one row more at least, to hold what is left."""
        longest = max(min(_power_of_two(max(lengths), MIN_LONGEST), max_length), max(lengths))
        rows, total = _power_of_two(len(lengths) + 1, MIN_ROWS), sum(lengths)
        while True:
            num_free = rows - len(lengths)
            tokens = _stepped(total + num_free)
            if tokens - total <= num_free * longest:
                return cls(tokens, rows, longest)
            rows *= 2

    def filled(self, rows: Sequence[Row]) -> list[Row]:
        """The rows, and behind them others of zeros, at least one token each, up to the bucket's size."""
        left, count = self.tokens - sum(map(len, rows)), self.rows - len(rows)
        lengths = [left // count + (position < left % count) for position in range(count)]
        return [*rows, *(Row([0] * length, (0, length)) for length in lengths)]


def _power_of_two(number: int, least: int) -> int:
    return max(1 << (number - 1).bit_length(), least)


def _stepped(tokens: int) -> int:
    step = max(_power_of_two(tokens, MIN_TOKENS) // 2 // STEPS, MIN_TOKENS)
    return -(-tokens // step) * step


class Inputs:
    """A batch of a bucket's size at addresses that stay: one buffer, filled by one copy."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self._bucket = bucket
        self._sizes = [bucket.tokens] * 4 + [bucket.rows + 1]
        self._buffer = torch.zeros(sum(self._sizes), dtype=torch.long, device=device)

    def load(self, rows: Sequence[Row]) -> None:
        """Put rows there that the bucket is for; the copy does not block."""
        batch = pack(self._bucket.filled(rows))
        flat = torch.cat([batch.ids, batch.positions, batch.types, batch.rows, batch.starts])
        is_cuda = self._buffer.device.type == "cuda"
        self._buffer.copy_(flat.pin_memory() if is_cuda else flat, non_blocking=is_cuda)

    def batch(self) -> Packed:
        """What is there, as a batch without figures on the host; a new one, since a batch keeps what it computes."""
        ids, positions, types, rows, starts = torch.split(self._buffer, self._sizes)
        return Packed(
            ids=ids,
            positions=positions,
            types=types,
            rows=rows,
            starts=starts,
            lengths=(),
            passages=(),
            limit=self._bucket.longest,
        )


class Graphs:
    """Scores of small batches from recorded forward passes, those least recently used forgotten.

    A size is recorded when it comes for the second time. Where one cannot be, or gives other scores than the plain
    path, there are no more graphs: the plain path goes on, and `reason` says why. For one thread at a time.
    """

    def __init__(
        self,
        forward: Forward,
        device: torch.device,
        record: Record,
        *,
        max_length: int,
        max_tokens: int,
        obstacle: str | None = None,
    ) -> None:
        self._forward, self._device, self._record = forward, device, record
        self._max_length, self._max_tokens = max_length, max_tokens
        self._seen: set[Bucket] = set()
        self._graphs: OrderedDict[Bucket, tuple[Inputs, Graph]] = OrderedDict()
        self._failure = obstacle

    @property
    def reason(self) -> str:
        if self._failure is not None:
            return f"no CUDA graphs: {self._failure}"
        return f"CUDA graphs up to {self._max_tokens} tokens"

    def scores(self, rows: Sequence[Row]) -> Tensor | None:
        """Scores (N, outputs) of the rows on the device, or None where the plain path is to run them."""
        if self._failure is not None or sum(map(len, rows)) > self._max_tokens or self._max_length < MIN_LONGEST:
            return None
        bucket = Bucket.of([len(row) for row in rows], max_length=self._max_length)
        if bucket not in self._graphs:
            if bucket in self._seen:
                self._add(bucket, rows)
            self._seen.add(bucket)
        if bucket not in self._graphs:
            return None
        self._graphs.move_to_end(bucket)
        return self._replayed(*self._graphs[bucket], rows)

    def stop(self, why: str) -> None:
        """Give all memory back, and record no more."""
        if self._failure is not None:
            return
        logger.warning("no CUDA graphs from now on: %s", why)
        self._failure = why
        while self._graphs:
            self._forget_oldest()

    def _add(self, bucket: Bucket, rows: Sequence[Row]) -> None:
        if len(self._graphs) == MAX_GRAPHS:
            self._forget_oldest()
        try:
            inputs = Inputs(bucket, self._device)
            inputs.load([])  # not the rows that it is tried on: what is read on the host would show
            graph = self._record(lambda: self._forward(inputs.batch()))
            self._graphs[bucket] = inputs, graph
            found = self._replayed(inputs, graph, rows)
            plain = self._forward(pack(rows).to(self._device))
        except (RuntimeError, ValueError, IndexError) as error:
            self.stop(f"a forward pass cannot be recorded ({str(error).splitlines()[0]})")
            return
        if not is_alike(found, plain):
            self.stop("recorded passes gave other scores")

    def _forget_oldest(self) -> None:
        _, (_, graph) = self._graphs.popitem(last=False)
        graph.release()

    @staticmethod
    def _replayed(inputs: Inputs, graph: Graph, rows: Sequence[Row]) -> Tensor:
        inputs.load(rows)
        return graph.replay()[: len(rows)].clone()


def is_alike(found: Tensor, plain: Tensor) -> bool:
    """Whether scores differ by rounding alone: products of another size are summed in another order."""
    apart = (found - plain).abs().mean()
    return bool(apart <= 0.02 + 0.05 * plain.abs().mean())


_RECORDING = threading.Lock()  # torch records one graph at a time in a process


class CudaGraphs:
    """Records on one stream into one pool of memory, which an engine's graphs share, since one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Callable[[], Tensor]) -> Graph:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        with _RECORDING, torch.cuda.device(self._device):
            try:
                self._rehearse(forward, current)
                # other threads may go on allocating and copying
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    scores = forward()
            finally:
                torch.cuda.set_stream(current)  # a recording that fails leaves its own stream behind
        return _CudaGraph(graph, scores, self._device)

    def _rehearse(self, forward: Callable[[], Tensor], current: torch.cuda.Stream) -> None:
        """Libraries choose kernels and allocate workspaces in a first run, which must not be part of the graph."""
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            forward()
        current.wait_stream(self._stream)


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, scores: Tensor, device: torch.device) -> None:
        self._graph, self._scores, self._device = graph, scores, device

    def replay(self) -> Tensor:
        self._graph.replay()
        return self._scores

    def release(self) -> None:
        torch.cuda.synchronize(self._device)  # it may be running
        self._graph.reset()


def open_graphs(model: CrossEncoderModel, kernel: Kernel, device: torch.device, budget: Budget) -> Graphs | None:
    """Graphs for a model that runs on this kernel, None off GPUs; given up where memory is short."""
    if device.type != "cuda":
        return None
    graphs = Graphs(
        model,
        device,
        CudaGraphs(device),
        max_length=model.backbone.config.max_length,
        max_tokens=min(MAX_TOKENS, budget.tokens // SHARE),
        obstacle=obstacle_of(model, kernel),
    )
    budget.release = lambda: graphs.stop("memory ran short")
    return graphs


def obstacle_of(model: CrossEncoderModel, kernel: Kernel) -> str | None:
    """Why a forward pass depends on figures of the host, which a graph would repeat; None where it seems not to."""
    if model.is_decoder:
        return "a decoder first computes what rows share"
    if isinstance(model.head, LateInteraction):
        return "where two texts part is known on the host"
    return None if kernel is attend_varlen else "attention goes row by row"
