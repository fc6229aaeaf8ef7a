"""Early exit: at layers with a head, rows leave that can no longer be among the first n.

All rows are carried to a layer before any goes on, so that they are compared at the same layer. The states of those
that stay are laid end to end again, so what follows is computed for them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secondpass.engine.batches import Budget, in_batches
from secondpass.engine.engine import Turns
from secondpass.engine.prefix import SharedRows
from secondpass.models.cross_encoder import CrossEncoderModel
from secondpass.packed import Packed, pack
from secondpass.types import Advance, Row, Run

# Tokens whose states are held between layers: of the largest models here some 600 MB, and for a moment twice that.
MAX_HELD = 65536

KeysValues = tuple[Tensor, Tensor]  # of one block
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Held:
    """The states (T, C) of the rows `indices` of a portion, which are the rows of `batch`, at one layer."""

    indices: tuple[int, ...]
    states: Tensor
    batch: Packed


@dataclass
class Carried:
    """Rows of a portion on their way through the model; kept is what they share, as `kept_states` gives it."""

    portion: SharedRows
    kept: Sequence[KeysValues]
    indices: list[int]
    held: list[Held] = field(default_factory=list)

    def start(self, indices: Sequence[int], model: CrossEncoderModel, device: torch.device) -> tuple[Tensor, Packed]:
        """The states of these rows and their batch: the words', or those that are held."""
        for held in self.held:
            if held.indices == tuple(indices):
                return held.states, held.batch
        if not self.held:
            batch = self._packed(indices, [self.portion.rows[index] for index in indices]).to(device)
            return model.decoder().embed(batch), batch
        found = {index: part for held in self.held for index, part in _parts(held)}
        states, rows = zip(*(found[index] for index in indices), strict=True)
        return torch.cat(states), self._packed(indices, rows).to(device)

    def keep(self, indices: Collection[int]) -> None:
        """Only those rows go on whose indices in the whole are among these."""
        self.indices = [index for index in self.indices if self.portion.indices[index] in indices]

    def _packed(self, indices: Sequence[int], rows: Sequence[Row]) -> Packed:
        spans = [self.portion.spans[index] for index in indices] if self.portion.spans else None
        return pack(rows, spans, num_kept=sum(map(len, self.portion.shared)))


def _parts(held: Held) -> Iterator[tuple[int, tuple[Tensor, Row]]]:
    """Each row's states, and a row of its length: of the ids nothing is needed any more."""
    ends = list(accumulate(held.batch.lengths))
    for index, length, passage, end in zip(held.indices, held.batch.lengths, held.batch.passages, ends, strict=True):
        yield index, (held.states[end - length : end], Row([0] * length, passage))


@dataclass(kw_only=True)
class Race:
    """Who can still be among the first n. `finished` are the n best scores of rows that reached the last layer."""

    n: int
    finished: Floats = field(default_factory=lambda: np.empty(0))

    def staying(self, scores: Floats, bound: float) -> NDArray[np.bool_]:
        """Of rows whose scores may change by `bound`, those that n others do not surely surpass."""
        least = np.concatenate([scores - bound, self.finished])
        if len(least) <= self.n:
            return np.ones(len(scores), bool)
        return np.asarray(scores + bound >= np.partition(least, -self.n)[-self.n])

    def is_settled(self, scores: Floats, bound: float) -> bool:
        """Whether these rows, with no others left, are the first n in an order that cannot change."""
        return len(scores) <= self.n and bool((np.diff(np.sort(scores)) > 2 * bound).all())

    def finish(self, scores: Floats) -> None:
        self.finished = np.sort(np.concatenate([self.finished, scores]))[-self.n :]


@dataclass(frozen=True, kw_only=True)
class EarlyExits:
    """Scores the candidates of one query. `portions` lays rows out, with the states of what they share."""

    model: CrossEncoderModel
    run: Run  # as the model's `resolved` gives it
    budget: Budget
    device: torch.device
    portions: Callable[[Sequence[Row]], list[tuple[SharedRows, list[KeysValues]]]]
    turns: Turns
    seconds: list[float] = field(default_factory=list)  # of computing, since progress heard of it

    def scores(self, rows: Sequence[Row], progress: Advance | None) -> NDArray[np.float32]:
        """(N, 2): each row's score and the layer that it is from.

        Of a list of more than MAX_HELD tokens the rows that come later have to reach the scores of those before.
        """
        assert self.run.early_exit is not None
        race = Race(n=self.run.early_exit.top_n or 1)
        scores = np.empty((len(rows), 2), np.float32)
        waves = _waves(rows)
        for wave in waves:
            portions = self.portions([rows[index] for index in wave])
            carried = [Carried(portion, kept, list(range(len(portion.rows)))) for portion, kept in portions]
            for indices, found, layer in self._wave(carried, race, can_settle=len(waves) == 1):
                scores[[wave[index] for index in indices]] = np.column_stack([found, np.full(len(found), layer)])
                if progress is not None:
                    progress(len(indices), sum(self.seconds))
                    self.seconds.clear()
        return scores

    def _wave(
        self, carried: Sequence[Carried], race: Race, *, can_settle: bool
    ) -> Iterator[tuple[NDArray[np.intp], Floats, int]]:
        """The indices in the wave, the scores and the layer of the rows that leave, layer by layer."""
        begin = 0
        for layer, bound in self._stops():
            indices, scores = self._carry(carried, (begin, layer))
            stays = race.staying(scores, bound)
            if layer == self._top:
                race.finish(scores)
                stays[:] = False
            elif can_settle and race.is_settled(scores[stays], bound):
                stays[:] = False
            yield indices[~stays], scores[~stays], layer
            if not stays.any():
                return
            for each in carried:
                each.keep(set(indices[stays].tolist()))
            begin = layer

    def _stops(self) -> list[tuple[int, float]]:
        """Layers where scores are read, with their bounds; that of the last one is 0."""
        assert self.run.early_exit is not None and isinstance(self.run.early_exit.bounds, Mapping)
        return [*self.run.early_exit.bounds.items(), (self._top, 0.0)]

    @property
    def _top(self) -> int:
        assert self.run.cutoff_layers is not None
        return self.run.cutoff_layers[-1]

    def _carry(self, carried: Sequence[Carried], blocks: tuple[int, int]) -> tuple[NDArray[np.intp], Floats]:
        """Take all rows through these blocks: their indices in the wave and their scores (N,) there."""
        indices: list[int] = []
        values: list[Tensor] = []
        for each in carried:
            held: list[Held] = []
            lengths = [len(each.portion.rows[index]) for index in each.indices]
            forward = partial(self._forward, each, blocks)
            for batch, (states, scores) in in_batches(lengths, self.budget, forward):
                chosen = tuple(each.indices[i] for i in batch)
                held += [] if states is None else [Held(chosen, *states)]
                indices += [each.portion.indices[index] for index in chosen]
                values.append(scores)
            each.held = held
        return np.array(indices), torch.cat(values).cpu().double().numpy()

    def _forward(
        self, rows: Carried, blocks: tuple[int, int], batch: Sequence[int]
    ) -> tuple[tuple[Tensor, Packed] | None, Tensor]:
        """The states of the batch after these blocks, None after the last, and its scores (N,) there."""
        is_last = blocks[1] == self._top
        with self.turns as turn:
            states, packed = rows.start([rows.indices[i] for i in batch], self.model, self.device)
            x, packed = self.model.decoder().advance(
                states, packed, blocks, self.run, rows.kept, "last" if is_last else "all"
            )
            scores = self.model.exit_scores(x if is_last else x[packed.last()], blocks[1])
            self.seconds.append(turn.lap())
        return None if is_last else (x, packed), scores


def _waves(rows: Sequence[Row]) -> list[list[int]]:
    """The rows' indices in their order, MAX_HELD tokens at a time."""
    waves: list[list[int]] = []
    room = 0
    for index, row in enumerate(rows):
        if not waves or len(row) > room:
            waves.append([])
            room = MAX_HELD
        waves[-1].append(index)
        room -= len(row)
    return waves
