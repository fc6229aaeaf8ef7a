"""Losses against figures by hand and against their definitions written another way."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from secondpass.training.losses import LOSSES, Scores, group_losses

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 9.0]])
TEACHER = torch.tensor([[3.0, 1.0, -2.0], [1.0, 0.0, 7.0]])
IS_THERE = torch.tensor([[True, True, True], [True, True, False]])


def losses(name: str, temperature: float = 1.0) -> list[float]:
    scores = Scores(logits=LOGITS, is_there=IS_THERE, teacher=TEACHER)
    found: list[float] = LOSSES[name].of(scores, temperature).tolist()
    return found


def test_cross_entropy_is_the_positives_surprise() -> None:
    total = math.exp(2) + 1 + math.exp(-1)
    expected = [-math.log(math.exp(2) / total), -math.log(math.exp(0.5) / (math.exp(0.5) + math.exp(1.5)))]
    assert losses("cross_entropy") == pytest.approx(expected, abs=1e-6)


def test_binary_is_the_mean_over_the_pairs_that_are_there() -> None:
    def surprise(logit: float, label: int) -> float:
        p = 1 / (1 + math.exp(-logit))
        return -math.log(p if label else 1 - p)

    expected = [
        (surprise(2, 1) + surprise(0, 0) + surprise(-1, 0)) / 3,
        (surprise(0.5, 1) + surprise(1.5, 0)) / 2,
    ]
    assert losses("binary") == pytest.approx(expected, abs=1e-6)


def test_margin_mse_compares_margins() -> None:
    assert losses("margin_mse") == pytest.approx([((2 - 2) ** 2 + (3 - 5) ** 2) / 2, (-1 - 1) ** 2], abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_is_the_divergence_of_the_softmaxes(temperature: float) -> None:
    expected = []
    for row, count in ((0, 3), (1, 2)):
        student, teacher = (x[row, :count] / temperature for x in (LOGITS, TEACHER))
        divergence = F.kl_div(student.log_softmax(0), teacher.log_softmax(0), log_target=True, reduction="sum")
        expected.append(float(divergence) * temperature**2)
    assert losses("kl", temperature) == pytest.approx(expected, abs=1e-6)


def test_a_mixed_loss_is_the_weighted_sum() -> None:
    scores = Scores(logits=LOGITS, is_there=IS_THERE, teacher=TEACHER)
    mixed = group_losses(scores, {"cross_entropy": 0.4, "kl": 0.6}, temperature=1.0).tolist()
    parts = zip(losses("cross_entropy"), losses("kl"), strict=True)
    assert mixed == pytest.approx([0.4 * a + 0.6 * b for a, b in parts], abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_there_has_no_gradient_and_others_are_finite(name: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    scores = Scores(logits=logits, is_there=IS_THERE, teacher=TEACHER)
    LOSSES[name].of(scores, 1.0).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad[1, 2]) == 0
    assert float(logits.grad[0].abs().sum()) > 0
