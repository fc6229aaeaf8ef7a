"""Learner: one step of gradient descent over groups, exact whatever the micro-batches and however many processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secondpass.errors import TrainingError
from secondpass.packed import plan
from secondpass.text.recipe import TRUNCATIONS, Limits
from secondpass.training.collators import Group
from secondpass.training.losses import Scores, group_losses
from secondpass.training.model import Trainable
from secondpass.training.processes import Processes, Stopping
from secondpass.training.settings import TrainingSettings
from secondpass.types import Row

DEFAULT_LENGTH = 512
# Tokens in one forward and backward pass. A group that is longer is a pass of its own.
TOKEN_BUDGETS = {"cpu": 4096, "cuda": 32768, "mps": 8192}
BETAS = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What one step did: the mean loss over its groups, the gradient's norm before it was cut, tokens read here.

    is_asked: one of the processes was asked to stop.
    """

    loss: float
    gradient_norm: float
    num_tokens: int
    is_asked: bool


class Learner:
    """A model, its optimiser, and how texts become rows. Raises ValueError for a length that is too long."""

    def __init__(self, trainable: Trainable, settings: TrainingSettings, processes: Processes) -> None:
        self._trainable, self._settings, self._processes = trainable, settings, processes
        self.limits = _limits(trainable, settings)
        self.parameters: Mapping[str, nn.Parameter] = trainable.parameters
        self.optimiser = _adamw(self.parameters, settings)
        self._device = trainable.device
        self._budget = settings.token_budget or TOKEN_BUDGETS[self._device.type]

    def rows(self, group: Group) -> list[Row]:
        return self._trainable.recipe.rows(self._trainable.tokenizer, group.query, group.passages, self.limits)

    def step(self, groups: Sequence[Group], *, rate: float, stopping: Stopping | None = None) -> Moved:
        """Move the weights once, by the mean loss over the groups; this process reads its share of them.

        stopping: whether this process was asked to stop. Raises TrainingError where the loss is no number any more.
        """
        own = groups[self._processes.rank :: self._processes.count]
        rows = [self.rows(group) for group in own]
        lengths = [sum(map(len, part)) for part in rows]
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)  # read once, at the end: reading waits for the device
        for batch in plan(lengths, token_budget=self._budget):
            part = self.losses([own[i] for i in batch], [rows[i] for i in batch]).sum() / len(groups)
            part.backward()  # type: ignore[no-untyped-call]
            total += part.detach()
        loss, is_asked = self._exchanged(total.item(), stopping is not None and stopping.is_asked)
        norm = float(nn.utils.clip_grad_norm_(list(self.parameters.values()), self._settings.max_gradient_norm))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingError(
                f"the loss is {loss}, the norm of its gradient {norm}; lower the learning rate, "
                "or look for teacher's scores out of all proportion in the data"
            )
        for setting in self.optimiser.param_groups:
            setting["lr"] = rate
        self.optimiser.step()
        return Moved(loss=loss, gradient_norm=norm, num_tokens=sum(lengths), is_asked=is_asked)

    def losses(self, groups: Sequence[Group], rows: Sequence[Sequence[Row]]) -> Tensor:
        """The loss of each group (G,), from one packed forward pass over all their rows."""
        flat = [row for part in rows for row in part]
        order = sorted(range(len(flat)), key=lambda place: len(flat[place]))  # rows of one length side by side
        width = max(map(len, rows))
        slots = torch.tensor([n * width + p for n, part in enumerate(rows) for p in range(len(part))])[order]
        slots = slots.to(self._device)
        logits = self._trainable.logits([flat[place] for place in order])
        empty = logits.new_zeros(len(rows) * width)
        scores = Scores(
            logits=empty.scatter(0, slots, logits).view(-1, width),
            is_there=empty.bool().scatter(0, slots, True).view(-1, width),
            teacher=self._teacher(groups, width) if self._settings.needs_teacher else None,
        )
        return group_losses(scores, self._settings.losses, temperature=self._settings.temperature)

    @torch.inference_mode()
    def score(self, query: str, documents: Sequence[str]) -> list[float]:
        """Logits in input order, of the model as it is."""
        rows = self.rows(Group(query=query, passages=tuple(documents)))
        scores = [0.0] * len(rows)
        for batch in plan([len(row) for row in rows], token_budget=self._budget):
            values = self._trainable.logits([rows[place] for place in batch]).tolist()
            for place, value in zip(batch, values, strict=True):
                scores[place] = value
        return scores

    def _teacher(self, groups: Sequence[Group], width: int) -> Tensor:
        padded = [[*(group.teacher or ()), *[0.0] * (width - len(group.passages))] for group in groups]
        return torch.tensor(padded, device=self._device)

    def _exchanged(self, loss: float, is_asked: bool) -> tuple[float, bool]:
        """Sums the gradients over all processes; returns the sum of the losses and whether any was asked to stop."""
        if self._processes.count == 1:
            return loss, is_asked
        gradients = []
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self._processes.sum(gradients)
        loss, votes = self._processes.sum_figures([loss, float(is_asked)], self._device)
        return loss, votes > 0


def _limits(trainable: Trainable, settings: TrainingSettings) -> Limits:
    longest = trainable.max_length
    length = min(longest, DEFAULT_LENGTH) if settings.max_length is None else settings.max_length
    if length > longest:
        raise ValueError(f"max_length is {length}; {trainable.checkpoint.name} reads up to {longest} tokens")
    truncation = trainable.recipe.truncation if settings.truncation is None else settings.truncation
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation is {truncation!r}; give {' or '.join(map(repr, TRUNCATIONS))}")
    return Limits(max_length=length, max_query_length=settings.max_query_length, truncation=truncation)


def _adamw(parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.AdamW:
    """Loshchilov and Hutter 2019; weight decay on matrices alone, not on biases and norms."""
    every = list(parameters.values())
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    has_fused = every[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=has_fused)
