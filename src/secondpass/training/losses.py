"""Losses over groups of one positive and its negatives.

A loss gives one figure per group, so that a step's mean does not depend on how its groups are cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Logits (G, P) of G groups with up to P passages, the positive in column 0.

    is_there (G, P) is False where a group has fewer. teacher (G, P) are a teacher's scores, or None.
    """

    logits: Tensor
    is_there: Tensor
    teacher: Tensor | None = None


def cross_entropy(scores: Scores, temperature: float) -> Tensor:
    """The positive's surprise (G,) in a softmax over its group: FlagEmbedding's loss; Gao et al. 2021."""
    return torch.logsumexp(_hidden(scores.logits, scores), dim=1) - scores.logits[:, 0]


def binary(scores: Scores, temperature: float) -> Tensor:
    """Each pair by itself, relevant or not; the mean (G,) over a group's pairs."""
    wanted = torch.zeros_like(scores.logits)
    wanted[:, 0] = 1
    return _mean(F.binary_cross_entropy_with_logits(scores.logits, wanted, reduction="none"), scores.is_there)


def margin_mse(scores: Scores, temperature: float) -> Tensor:
    """Squared difference (G,) to the teacher's margins of the positive over the negatives: Hofstätter et al. 2020."""
    teacher = _teacher(scores)
    margins = (scores.logits[:, :1] - scores.logits)[:, 1:]
    wanted = (teacher[:, :1] - teacher)[:, 1:]
    return _mean((margins - wanted) ** 2, scores.is_there[:, 1:])


def kl(scores: Scores, temperature: float) -> Tensor:
    """Divergence (G,) of the teacher's softmax from the student's, both at a temperature, times its square.

    Hinton et al. 2015. At temperature 1 its gradient is that of FlagEmbedding's distillation term.
    """
    teacher = _hidden(_teacher(scores) / temperature, scores).log_softmax(1)
    student = _hidden(scores.logits / temperature, scores).log_softmax(1)
    difference = (teacher - student).masked_fill(~scores.is_there, 0.0)
    return temperature**2 * (teacher.exp() * difference).sum(1)


def soft_cross_entropy(scores: Scores, temperature: float) -> Tensor:
    """The student's surprise (G,) at the teacher's softmax: FlagEmbedding's distillation, the KL plus a constant."""
    teacher = _hidden(_teacher(scores) / temperature, scores).softmax(1)
    student = _hidden(scores.logits / temperature, scores).log_softmax(1)
    return -(temperature**2) * (teacher * student.masked_fill(~scores.is_there, 0.0)).sum(1)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss (G,) of scores at a temperature, and what a command line may call it."""

    of: Callable[[Scores, float], Tensor]
    short: str
    needs_teacher: bool = False


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": Loss(of=cross_entropy, short="ce"),
    "binary": Loss(of=binary, short="bce"),
    "margin_mse": Loss(of=margin_mse, short="mse", needs_teacher=True),
    "kl": Loss(of=kl, short="kl", needs_teacher=True),
    "soft_cross_entropy": Loss(of=soft_cross_entropy, short="kd", needs_teacher=True),
}


def group_losses(scores: Scores, losses: Mapping[str, float], *, temperature: float) -> Tensor:
    """The weighted sum (G,) of the losses; zeros where there are none."""
    if not losses:
        return scores.logits.new_zeros(len(scores.logits))
    return torch.stack([weight * LOSSES[name].of(scores, temperature) for name, weight in losses.items()]).sum(0)


# How a layer is taught by another of the same model -> the teaching layer of layer k, both counted from the last
# layer, 0, downwards; None: by none. "eighth" is the method of the Matroyshka re-ranker (Liu et al. 2025).
INNER_TEACHERS: Mapping[str, Callable[[int], int | None]] = {
    "none": lambda k: None,
    "last": lambda k: 0 if k else None,
    "eighth": lambda k: 8 * ((k - 1) // 8) if k else None,
    "above": lambda k: k - 1 if k else None,
}


@dataclass(frozen=True, kw_only=True)
class LayerLoss:
    """How the layers of one model learn: all by the losses, and each by the softmax of a layer above it.

    The losses that need a teacher hold for all layers, or for the last alone. Layers are in order, the last one last.
    """

    losses: Mapping[str, float]
    temperature: float = 1.0
    inner_teacher: str = "last"
    teaches_all: bool = True

    def terms(self, layers: Sequence[Scores], inner: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """The parts of the loss (G,) of each layer, weighted; inner are the teaching layers' logits, detached."""
        found: list[dict[str, Tensor]] = []
        for k, scores in enumerate(reversed(layers)):
            losses = self.losses if k == 0 or self.teaches_all else _untaught(self.losses)
            terms = {name: weight * LOSSES[name].of(scores, self.temperature) for name, weight in losses.items()}
            above = INNER_TEACHERS[self.inner_teacher](k)
            if above is not None:
                taught = replace(scores, teacher=inner[len(layers) - 1 - above])
                terms["self_distillation"] = soft_cross_entropy(taught, 1.0)
            found.append(terms)
        return found[::-1]

    def __call__(self, layers: Sequence[Scores], inner: Sequence[Tensor]) -> Tensor:
        """The sum (G,) over layers: no mean, as in FlagEmbedding, so that the rate is that of its recipes."""
        return torch.stack([x for terms in self.terms(layers, inner) for x in terms.values()]).sum(0)


def _untaught(losses: Mapping[str, float]) -> dict[str, float]:
    return {name: weight for name, weight in losses.items() if not LOSSES[name].needs_teacher}


def _teacher(scores: Scores) -> Tensor:
    assert scores.teacher is not None  # the trainer has looked
    return scores.teacher


def _hidden(values: Tensor, scores: Scores) -> Tensor:
    """The values with those that are not there at the lowest finite figure: -inf would make NaN gradients."""
    return values.masked_fill(~scores.is_there, torch.finfo(values.dtype).min)


def _mean(values: Tensor, is_there: Tensor) -> Tensor:
    """Means (G,) of what is there; 0 where nothing is."""
    return values.masked_fill(~is_there, 0.0).sum(1) / is_there.sum(1).clamp(min=1)
