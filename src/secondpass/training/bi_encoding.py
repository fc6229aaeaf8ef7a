"""Training of models that read queries and passages apart: embedders and late interaction.

Vectors of all texts of a step, of all processes, are compared. Where they do not fit into one pass, they are computed
without a graph first, and again, pass by pass, with the gradients that the loss gave them (Gao et al. 2021, "Scaling
Deep Contrastive Learning Batch Size under Memory Limited Setup"); there is no dropout, so that is exact. Each process
has the loss of the whole step and the gradient of its own texts; their sum is that of one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from secondpass.engine.batches import memory_checked
from secondpass.models.text_encoder import TextEncoder
from secondpass.packed import pack, plan
from secondpass.training.collators import Group
from secondpass.training.learner import TOKEN_BUDGETS, Step
from secondpass.training.model import Trainable
from secondpass.training.processes import Processes
from secondpass.training.reporting import Kind
from secondpass.training.settings import TrainingSettings
from secondpass.training.vector_losses import TextVectors, VectorBatch, VectorLoss
from secondpass.types import Row

# Outputs of one vector or figure per token; the other has one per text.
BY_TOKEN = ("tokens", "weights")


@dataclass(frozen=True, kw_only=True)
class TextRows:
    """Texts as rows; counts: which tokens are compared; visible: how many tokens of a row are keys, where not all."""

    rows: list[Row]
    counts: list[list[bool]]
    visible: list[int] | None = None

    def __add__(self, other: TextRows) -> TextRows:
        visible = None
        if self.visible is not None or other.visible is not None:
            visible = (self.visible or [*map(len, self.rows)]) + (other.visible or [*map(len, other.rows)])
        return TextRows(rows=self.rows + other.rows, counts=self.counts + other.counts, visible=visible)


class TextReading(Protocol):
    """How a kind of model reads texts, what it makes of them, and how it is written down."""

    @property
    def outputs(self) -> Sequence[str]:
        """Of TextEncoder's."""
        ...

    @property
    def kind(self) -> Kind: ...

    def queries(self, texts: Sequence[str]) -> TextRows: ...

    def passages(self, texts: Sequence[str]) -> TextRows: ...

    def finished(self, name: str, values: Tensor, ids: Tensor) -> Tensor:
        """An output (N, ...) as it is compared, by the ids (N, L) of its texts."""
        ...

    def save(self, folder: Path, texts: Mapping[str, str]) -> None: ...


class BiEncoding:
    """A text encoder, and how the texts of a step become its loss."""

    reads_prompts = False

    def __init__(
        self, trainable: Trainable[TextEncoder], reading: TextReading, loss: VectorLoss, settings: TrainingSettings
    ) -> None:
        self.trainable, self.reading, self.loss = trainable, reading, loss
        self._needs_teacher = settings.needs_teacher
        self._budget = settings.token_budget or TOKEN_BUDGETS[trainable.device.type]

    @property
    def kind(self) -> Kind:
        return self.reading.kind

    def rows(self, item: Group) -> list[Row]:
        return self.reading.queries([item.query]).rows + self.reading.passages(item.passages).rows

    def learn(self, items: Sequence[Group], step: Step) -> tuple[Tensor, int]:
        queries = self.reading.queries([item.query for item in items])
        passages = self.reading.passages([text for item in items for text in item.passages])
        teacher = [score for item in items for score in item.teacher or ()] if self._needs_teacher else None
        return self.learn_rows(queries, passages, [len(item.passages) for item in items], teacher, step)

    def learn_rows(
        self,
        queries: TextRows,
        passages: TextRows,
        sizes: Sequence[int],
        teacher: Sequence[float] | None,
        step: Step,
    ) -> tuple[Tensor, int]:
        """As `learn`, of rows: those of the groups' queries, and of all their passages."""
        texts = queries + passages
        batches = self._batches(texts, step.token_budget)
        is_cached = len(batches) > 1
        with torch.set_grad_enabled(not is_cached):
            own = self._joined(texts, batches)
        leaves = {name: x.detach().requires_grad_() if is_cached else x for name, x in own.items()}
        batch = self._gathered(texts, leaves, sizes, teacher, step.processes)
        loss = self.loss(batch, step.index).sum() / step.num_items
        if batches:
            loss.backward()  # type: ignore[no-untyped-call]
        if is_cached:
            for part in batches:
                self._again(texts, part, {name: leaf.grad for name, leaf in leaves.items()})
        return loss.detach() * float(step.processes.is_first), sum(map(len, texts.rows))

    @torch.inference_mode()
    def score(self, query: str, documents: Sequence[str]) -> list[float]:
        sides = []
        for texts in (self.reading.queries([query]), self.reading.passages(documents)):
            outputs = self._joined(texts, self._batches(texts, self._budget))
            sides.append(self._vectors(texts, outputs, outputs_ids(texts, self.trainable.device)))
        scores: list[float] = self.loss.together(*sides)[0].tolist()
        return scores

    def save(self, folder: Path, texts: Mapping[str, str]) -> None:
        self.reading.save(folder, texts)

    def _batches(self, texts: TextRows, token_budget: int) -> list[list[int]]:
        """Passes, with rows side by side that are attended to together."""
        visible = texts.visible or [len(row) for row in texts.rows]
        parts = plan([len(row) for row in texts.rows], token_budget=token_budget)
        return [sorted(part, key=lambda index: (len(texts.rows[index]), visible[index])) for part in parts]

    def _forward(self, texts: TextRows, part: Sequence[int]) -> dict[str, Tensor]:
        rows = [texts.rows[index] for index in part]
        visible = None if texts.visible is None else tuple(texts.visible[index] for index in part)
        with memory_checked(sum(map(len, rows))):
            packed = replace(pack(rows), visible=visible).to(self.trainable.device)
            outputs: dict[str, Tensor] = self.trainable.model(packed, self.reading.outputs)
        return outputs

    def _joined(self, texts: TextRows, batches: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The outputs of all texts in their order: pooled (N, C), tokens (N, L, D), weights (N, L, 1)."""
        found = [self._forward(texts, part) for part in batches]
        length = max(map(len, texts.rows), default=1)
        joined = {}
        for name in self.reading.outputs:
            if not found:
                joined[name] = self._none(name)
                continue
            values = torch.cat([outputs[name] for outputs in found])
            positions = torch.cat([self._positions(texts, part, name, length) for part in batches])
            size = len(texts.rows) * (length if name in BY_TOKEN else 1)
            whole = values.new_zeros(size, values.shape[1]).index_copy(0, positions, values)
            joined[name] = whole.view(-1, length, values.shape[1]) if name in BY_TOKEN else whole
        return joined

    def _none(self, name: str) -> Tensor:
        """Outputs of no text, in a process that a small step has none for."""
        heads = dict(self.trainable.model.head.named_parameters())
        weight = heads.get(f"{name}.weight")
        width = self.trainable.model.backbone.config.width if weight is None else len(weight)
        shape = (0, 1, width) if name in BY_TOKEN else (0, width)
        return torch.zeros(shape, device=self.trainable.device)

    def _positions(self, texts: TextRows, part: Sequence[int], name: str, length: int) -> Tensor:
        """Where the outputs of a pass lie in the whole, texts or tokens end to end."""
        device = self.trainable.device
        if name not in BY_TOKEN:
            return torch.tensor(list(part), device=device)
        positions = [torch.arange(len(texts.rows[index])) + index * length for index in part]
        return torch.cat(positions).to(device)

    def _again(self, texts: TextRows, part: Sequence[int], gradients: Mapping[str, Tensor | None]) -> None:
        """One pass with a graph, and the gradients that the loss gave its outputs."""
        outputs = self._forward(texts, part)
        length = max(map(len, texts.rows))
        tensors, given = [], []
        for name, values in outputs.items():
            whole = gradients[name]
            if whole is not None and values.requires_grad:  # not of an encoder that is frozen
                tensors.append(values)
                given.append(whole.reshape(-1, whole.shape[-1])[self._positions(texts, part, name, length)])
        torch.autograd.backward(tensors, given)

    def _vectors(self, texts: TextRows, outputs: Mapping[str, Tensor], ids: Tensor) -> TextVectors:
        counts = torch.zeros(ids.shape, dtype=torch.bool)
        for index, values in enumerate(texts.counts):
            counts[index, : len(values)] = torch.tensor(values)
        finished = {name: self.reading.finished(name, values, ids) for name, values in outputs.items()}
        return TextVectors(ids=ids, counts=counts.to(ids.device), outputs=finished)

    def _gathered(
        self,
        texts: TextRows,
        outputs: Mapping[str, Tensor],
        sizes: Sequence[int],
        teacher: Sequence[float] | None,
        processes: Processes,
    ) -> VectorBatch:
        """Queries and passages of all processes."""
        device = self.trainable.device
        own = self._vectors(texts, outputs, outputs_ids(texts, device))
        count = torch.tensor(list(sizes), dtype=torch.long, device=device)
        counts = processes.gathered(count)
        sides = []
        for is_query in (True, False):
            parts = []
            for rank, part in enumerate(_all(own, processes)):
                stop = len(counts[rank])
                parts.append(_cut(part, slice(0, stop) if is_query else slice(stop, None)))
            sides.append(_together(parts))
        every = torch.cat(counts)
        scores = None
        if teacher is not None:
            scores = torch.cat(processes.gathered(torch.tensor(list(teacher), dtype=torch.float32, device=device)))
        group = torch.arange(len(every), device=device).repeat_interleave(every)
        return VectorBatch(queries=sides[0], passages=sides[1], group=group, teacher=scores)


def outputs_ids(texts: TextRows, device: torch.device) -> Tensor:
    """Token ids (N, L), -1 behind a text."""
    length = max(map(len, texts.rows), default=1)
    ids = [[*row.ids, *[-1] * (length - len(row))] for row in texts.rows]
    return torch.tensor(ids, dtype=torch.long, device=device).view(-1, length)  # also where a process has no text


def _all(own: TextVectors, processes: Processes) -> list[TextVectors]:
    ids, counts = processes.gathered(own.ids), processes.gathered(own.counts.long())
    outputs = {name: processes.gathered(values) for name, values in own.outputs.items()}
    return [
        TextVectors(
            ids=ids[rank], counts=counts[rank].bool(), outputs={name: parts[rank] for name, parts in outputs.items()}
        )
        for rank in range(processes.count)
    ]


def _cut(side: TextVectors, part: slice) -> TextVectors:
    outputs = {name: values[part] for name, values in side.outputs.items()}
    return TextVectors(ids=side.ids[part], counts=side.counts[part], outputs=outputs)


def _together(parts: Sequence[TextVectors]) -> TextVectors:
    """The texts of all processes, to the length of the longest."""
    length = max(int((part.ids >= 0).sum(1).max()) if len(part.ids) else 1 for part in parts)
    return TextVectors(
        ids=torch.cat([_padded(part.ids, length, -1) for part in parts]),
        counts=torch.cat([_padded(part.counts, length, 0) for part in parts]),
        outputs={
            name: torch.cat(
                [_padded(part.outputs[name], length, 0) if name in BY_TOKEN else part.outputs[name] for part in parts]
            )
            for name in parts[0].outputs
        },
    )


def _padded(values: Tensor, length: int, fill: int) -> Tensor:
    if values.shape[1] >= length:
        return values[:, :length]
    shape = (values.shape[0], length - values.shape[1], *values.shape[2:])
    return torch.cat([values, values.new_full(shape, fill)], dim=1)
