"""What a step learns from: drawn anew in each epoch, and the same for the same seed, epoch and example.

Nothing is remembered between steps, so a run that goes on at step n draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from secondpass.training.data import Example

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Group:
    """A query and its passages, the positive first; teacher are their scores, or None.

    prompt is the instruction of this query where the data has one.
    """

    query: str
    passages: tuple[str, ...]
    teacher: tuple[float, ...] | None = None
    prompt: str | None = None


class Sampler(Generic[Item]):
    """Each of `count` things once per epoch, `batch` a step; draw(index, epoch) makes what is learnt from."""

    def __init__(self, count: int, draw: Callable[[int, int], Item], *, batch: int, seed: int) -> None:
        self._count, self._draw, self._batch, self._seed = count, draw, batch, seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    @property
    def steps_per_epoch(self) -> int:
        return -(-self._count // self._batch)

    def items(self, step: int) -> list[Item]:
        """What step `step`, from 0, learns from. The last step of an epoch may have fewer than `batch`."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        chosen = self._permutation(epoch)[offset * self._batch : (offset + 1) * self._batch]
        return [self._draw(int(index), epoch) for index in chosen]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, epoch]).permutation(self._count))
        return self._order[1]


def group_sampler(examples: Sequence[Example], *, batch: int, num_negatives: int, seed: int) -> Sampler[Group]:
    """Of each example one of its positives, and up to num_negatives of its negatives."""

    def draw(index: int, epoch: int) -> Group:
        return _drawn(examples[index], np.random.default_rng([seed, epoch, index]), num_negatives)

    return Sampler(len(examples), draw, batch=batch, seed=seed)


def _drawn(example: Example, draw: np.random.Generator, num_negatives: int) -> Group:
    positive = int(draw.integers(len(example.positives)))
    num = min(num_negatives, len(example.negatives))
    negatives = draw.choice(len(example.negatives), num, replace=False).tolist()
    passages = (example.positives[positive], *(example.negatives[index] for index in negatives))
    teacher: tuple[float, ...] | None = None
    if example.has_scores:
        assert example.positive_scores is not None
        scores = example.negative_scores or ()
        teacher = (example.positive_scores[positive], *(scores[index] for index in negatives))
    return Group(query=example.query, passages=passages, teacher=teacher, prompt=example.prompt)
