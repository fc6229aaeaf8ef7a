"""Whether one ranking is better than another: a paired difference with an interval, a test, a verdict in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Figures = NDArray[np.float64]  # one per query
Draw = Callable[[Figures, int, np.random.Generator], Figures]

RESAMPLES = 10_000
LEVEL = 0.05  # of the test; the interval holds 1 - LEVEL
EQUAL = 1e-12  # below this a difference is rounding
_BLOCK = 4_000_000  # random numbers at a time, which bounds the memory


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired comparison of two rankings over the same queries.

    before, after and change are means, of several sets the mean of their means. low and high bound the change's 95%
    interval, p is that of a two-sided test, and helped, hurt and equal count queries.
    """

    before: float
    after: float
    change: float
    low: float
    high: float
    p: float
    helped: int
    hurt: int
    equal: int

    @property
    def verdict(self) -> str:
        """helps, hurts, or cannot be told: the interval and the test must agree."""
        if self.p < LEVEL and self.low > 0:
            return "helps"
        return "hurts" if self.p < LEVEL and self.high < 0 else "cannot be told"


def difference(before: Sequence[Figures], after: Sequence[Figures], seed: int = 0) -> Difference:
    """The change from before to after; each is a sequence of sets of figures (Q,), the same queries in both.

    The interval is the percentile bootstrap's and the test the paired randomisation test (Smucker et al. 2007), each
    from 10,000 draws within the sets, so the sets themselves are taken as they are.
    """
    changes = [new - old for old, new in zip(before, after, strict=True)]
    observed = float(np.mean([change.mean() for change in changes]))
    every = np.concatenate(changes)
    rng = np.random.default_rng(seed)
    low, high = np.percentile(_draws(changes, rng, _resampled), [100 * LEVEL / 2, 100 - 100 * LEVEL / 2])
    flipped = _draws(changes, rng, _flipped)
    extreme = int((np.abs(flipped) >= abs(observed) - EQUAL).sum())
    return Difference(
        before=float(np.mean([figures.mean() for figures in before])),
        after=float(np.mean([figures.mean() for figures in after])),
        change=observed,
        low=float(low),
        high=float(high),
        p=(extreme + 1) / (RESAMPLES + 1),
        helped=int((every > EQUAL).sum()),
        hurt=int((every < -EQUAL).sum()),
        equal=int((np.abs(every) <= EQUAL).sum()),
    )


def _draws(changes: Sequence[Figures], rng: np.random.Generator, draw: Draw) -> Figures:
    """RESAMPLES means over sets of the means of a draw within each."""
    total = np.zeros(RESAMPLES)
    for change in changes:
        step = max(1, _BLOCK // len(change))
        for start in range(0, RESAMPLES, step):
            total[start : start + step] += draw(change, min(step, RESAMPLES - start), rng)
    means: Figures = total / len(changes)
    return means


def _resampled(change: Figures, size: int, rng: np.random.Generator) -> Figures:
    means: Figures = change[rng.integers(len(change), size=(size, len(change)))].mean(axis=1)
    return means


def _flipped(change: Figures, size: int, rng: np.random.Generator) -> Figures:
    signs = rng.integers(0, 2, size=(size, len(change)), dtype=np.int8)
    means: Figures = (2.0 * (signs @ change) - change.sum()) / len(change)
    return means
