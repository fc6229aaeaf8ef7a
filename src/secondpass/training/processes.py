"""One process or several: what `accelerate launch` or `torchrun` started, and how their gradients become one.

Each process reads its own share of a step's groups, in as many micro-batches as it needs; sums are exchanged once a
step. A wrapper that exchanges in every backward pass would wait for processes that have fewer micro-batches.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

# Gradients are joined up to so many values before they are exchanged: 100 MB.
BUCKET = 25_000_000
Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process, of how many, and the device that it was given, if any.

    has_shards: each has its share of the weights, so that all have to make the same passes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device | None = None
    has_shards: bool = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over all processes."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            joined = torch.cat([tensor.detach().flatten() for tensor in bucket])
            torch.distributed.all_reduce(joined)
            parts = torch.split(joined, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every process, in order, whatever their shapes; this one's is `tensor` itself."""
        if self.count == 1:
            return [tensor]
        shape = torch.tensor(tensor.shape, device=tensor.device)
        shapes = [torch.empty_like(shape) for _ in range(self.count)]
        torch.distributed.all_gather(shapes, shape)
        longest = max(int(one.prod()) for one in shapes)
        flat = tensor.detach().flatten()
        flat = torch.cat([flat, flat.new_zeros(longest - len(flat))])
        found = [torch.empty_like(flat) for _ in range(self.count)]
        torch.distributed.all_gather(found, flat)
        parts = [x[: int(one.prod())].view(one.tolist()) for x, one in zip(found, shapes, strict=True)]
        parts[self.rank] = tensor
        return parts

    def sum_figures(self, figures: Sequence[float], device: torch.device) -> list[float]:
        """The sums over all processes."""
        if self.count == 1:
            return list(figures)
        told = torch.tensor(figures, device=device)
        self.sum([told])
        return [float(value) for value in told]

    def evened(self, batches: Sequence[Batch]) -> list[tuple[float, Batch]]:
        """The passes of this process, of weight 1, and some of weight 0 where others have more and all must come."""
        more = 0
        if self.has_shards:
            most = torch.tensor(len(batches), device=self.device)
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
            more = int(most) - len(batches)
        return [*((1.0, batch) for batch in batches), *((0.0, batches[0]) for _ in range(more))]

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole of a tensor of which each process may have a share; all must ask."""
        if not self.has_shards:
            return tensor
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def own(self, tensor: Tensor) -> Tensor | None:
        """What this process has to save of a tensor: its share, and all of what is not shared out if it is first."""
        from torch.distributed.tensor import DTensor

        if self.has_shards and isinstance(tensor, DTensor):
            return tensor.to_local()
        return tensor if self.is_first else None

    def shared_as(self, whole: Tensor, weight: Tensor) -> Tensor:
        """This process's share of a whole tensor, as it has one of a weight of the same shape."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not self.has_shards or not isinstance(weight, DTensor) or whole.shape != weight.shape:
            return whole
        return distribute_tensor(whole.to(weight.device), weight.device_mesh, weight.placements)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()


def open_processes(device: str) -> Processes:
    """The processes of this run; one where nothing else was launched or `accelerate` is not installed."""
    if find_spec("accelerate") is None:
        return Processes()
    from accelerate import PartialState

    is_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    state = PartialState(cpu=True) if is_cpu else PartialState()
    if state.num_processes == 1:
        return Processes()
    return Processes(rank=state.process_index, count=state.num_processes, device=state.device)


def shard(net: nn.Module, blocks: Sequence[nn.Module], processes: Processes) -> None:
    """Each process keeps its share of every weight (FSDP), and has a block's whole ones while that is computed.

    Gradients become the sums over all processes, each of its share. Zhao et al. 2023, "PyTorch FSDP".
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(processes.device.type if processes.device else "cpu", (processes.count,))
    for module in (*blocks, net):
        sharded = fully_shard(module, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other
    for block in blocks:
        register_fsdp_forward_method(block, "project")  # is called by itself, before the block


@contextmanager
def whole_weights(net: nn.Module, processes: Processes) -> Iterator[None]:
    """While it is entered, the first process has all of a sharded model's weights, on the host; all must enter it."""
    held = [(module, name, weight) for module in net.modules() for name, weight in module._parameters.items()]
    if processes.has_shards:
        for module, name, weight in held:
            whole = None if weight is None else processes.whole(weight.detach()).cpu()
            if whole is not None and processes.is_first:
                module._parameters[name] = nn.Parameter(whole, requires_grad=False)
    try:
        yield
    finally:
        for module, name, weight in held:
            module._parameters[name] = weight


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not buckets or tensor.numel() > room:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(tensor)
        room -= tensor.numel()
    return buckets


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """While it is entered, the first signal is noted and told; the second does what it did before."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.signal = 0  # that asked; 0 for none
        self._say = say
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *raised: object) -> None:
        self._restore()

    @property
    def is_asked(self) -> bool:
        return self.signal != 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        self._say("stopping after this step; once more stops at once, and what was done since the last save is lost")

    def _restore(self) -> None:
        """A signal that comes meanwhile is noted, and restores the rest by itself."""
        while self._before:
            signal.signal(*self._before.popitem())
