"""Learner: one step of gradient descent, exact whatever the micro-batches and however many processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from secondpass.errors import TrainingError
from secondpass.training.model import Trainable
from secondpass.training.processes import Processes, Stopping
from secondpass.training.reporting import Kind
from secondpass.training.settings import TrainingSettings
from secondpass.types import Row

DEFAULT_LENGTH = 512
# Tokens in one forward and backward pass. A group that is longer is a pass of its own.
TOKEN_BUDGETS = {"cpu": 4096, "cuda": 32768, "mps": 8192}
BETAS = (0.9, 0.999)
Item = TypeVar("Item", contravariant=True)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Which step it is, from 0, of how many items over all processes, and in how many tokens a pass."""

    index: int
    num_items: float
    token_budget: int
    processes: Processes


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What one step did: the mean loss over its items, the gradient's norm before it was cut, tokens read here.

    is_asked: one of the processes was asked to stop.
    """

    loss: float
    gradient_norm: float
    num_tokens: int
    is_asked: bool


class Objective(Protocol[Item]):
    """A way to train: how items are read, what their loss is, and what is left on disk."""

    @property
    def trainable(self) -> Trainable[Any]: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def reads_prompts(self) -> bool:
        """Whether an item's own instruction is read."""
        ...

    def rows(self, item: Item) -> list[Row]:
        """All that is read of an item."""
        ...

    def learn(self, items: Sequence[Item], step: Step) -> tuple[Tensor, int]:
        """Adds gradients; returns this process's share of the step's loss, and the tokens that were read.

        Shares and gradients of all processes add up to those of one process with all items.
        """
        ...

    def score(self, query: str, documents: Sequence[str]) -> list[float]:
        """Scores in input order, of the model as it is."""
        ...

    def save(self, folder: Path, texts: Mapping[str, str]) -> None:
        """Write the model as others load it, with other `texts` by file name."""
        ...


class Learner:
    """An objective, its optimiser, and one step at a time."""

    def __init__(self, objective: Objective[Any], settings: TrainingSettings, processes: Processes) -> None:
        self.objective, self._settings, self._processes = objective, settings, processes
        self._device = objective.trainable.device
        self.parameters: Mapping[str, nn.Parameter] = objective.trainable.parameters
        self.optimiser = _adamw(self.parameters, settings)
        self._budget = settings.token_budget or TOKEN_BUDGETS[self._device.type]

    def step(self, items: Sequence[Any], *, rate: float, index: int = 0, stopping: Stopping | None = None) -> Moved:
        """Move the weights once, by the mean loss over the items; this process reads its share of them.

        stopping: whether this process was asked to stop. Raises TrainingError where the loss is no number any more.
        """
        own = items[self._processes.rank :: self._processes.count]
        self.optimiser.zero_grad(set_to_none=True)
        num_items: float = len(items)
        if self._processes.has_shards and not own:  # all make the same passes; this one counts for nothing
            own, num_items = items[:1], math.inf
        step = Step(index=index, num_items=num_items, token_budget=self._budget, processes=self._processes)
        share, num_tokens = self.objective.learn(own, step)
        loss, is_asked = self._exchanged(share.item(), stopping is not None and stopping.is_asked)
        found = nn.utils.clip_grad_norm_(list(self.parameters.values()), self._settings.max_gradient_norm)
        norm = float(self._processes.whole(found))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingError(
                f"the loss is {loss}, the norm of its gradient {norm}; lower the learning rate, "
                "or look for teacher's scores out of all proportion in the data"
            )
        for setting in self.optimiser.param_groups:
            setting["lr"] = rate
        self.optimiser.step()
        return Moved(loss=loss, gradient_norm=norm, num_tokens=num_tokens, is_asked=is_asked)

    def _exchanged(self, loss: float, is_asked: bool) -> tuple[float, bool]:
        """Sums the gradients over all processes; returns the sum of the losses and whether any was asked to stop."""
        if self._processes.count == 1:
            return loss, is_asked
        gradients = []
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if not self._processes.has_shards:  # else they are summed where they are made
            self._processes.sum(gradients)
        loss, votes = self._processes.sum_figures([loss, float(is_asked)], self._device)
        return loss, votes > 0


def _adamw(parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.AdamW:
    """Loshchilov and Hutter 2019; weight decay on matrices alone, not on biases and norms."""
    every = list(parameters.values())
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    has_fused = every[0].device.type in ("cpu", "cuda") and not settings.has_shards
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=has_fused)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU the same sums in the same order, so that a run that goes on ends in the same weights, bit by bit."""
    if device.type != "cpu":
        yield
        return
    before, filling = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic
    is_filled = filling.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    filling.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        filling.fill_uninitialized_memory = is_filled  # type: ignore[attr-defined]
