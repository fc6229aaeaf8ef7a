"""Learning rates over a run, as a factor of the highest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

SHAPES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),  # Loshchilov and Hutter 2017, without restarts
    "constant": lambda done: 1.0,
}


def factor(step: int, num_steps: int, *, schedule: str, warmup: float) -> float:
    """The factor of step `step`, from 0: up to 1 over the warm-up, then down to 0 by the schedule's shape."""
    num_warmup = math.ceil(warmup * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    return SHAPES[schedule]((step - num_warmup) / max(num_steps - num_warmup, 1))
