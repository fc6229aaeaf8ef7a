"""Which groups a step learns from: drawn anew in each epoch, and the same for the same seed, epoch and example.

Nothing is remembered between steps, so a run that goes on at step n draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondpass.training.data import Example


@dataclass(frozen=True, kw_only=True)
class Group:
    """A query and its passages, the positive first; teacher are their scores, or None."""

    query: str
    passages: tuple[str, ...]
    teacher: tuple[float, ...] | None = None


class Sampler:
    """Each example once per epoch: one of its positives, and up to num_negatives of its negatives."""

    def __init__(self, examples: Sequence[Example], *, batch: int, num_negatives: int, seed: int) -> None:
        self._examples = examples
        self._batch = batch
        self._num_negatives = num_negatives
        self._seed = seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._examples) // self._batch)

    def groups(self, step: int) -> list[Group]:
        """The groups of a step, from 0. The last step of an epoch may have fewer than `batch`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        chosen = self._permutation(epoch)[place * self._batch : (place + 1) * self._batch]
        return [self._group(int(index), epoch) for index in chosen]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._examples)))
        return self._order[1]

    def _group(self, index: int, epoch: int) -> Group:
        example = self._examples[index]
        draw = np.random.default_rng([self._seed, epoch, index])
        positive = int(draw.integers(len(example.positives)))
        num = min(self._num_negatives, len(example.negatives))
        negatives = draw.choice(len(example.negatives), num, replace=False).tolist()
        passages = (example.positives[positive], *(example.negatives[place] for place in negatives))
        if not example.has_scores:
            return Group(query=example.query, passages=passages)
        assert example.positive_scores is not None
        scores = example.negative_scores or ()
        teacher = (example.positive_scores[positive], *(scores[place] for place in negatives))
        return Group(query=example.query, passages=passages, teacher=teacher)
