"""Fits weights of scores to labels: the conditional logit of the relevant passages in their lists."""

from collections.abc import Sequence

import numpy as np
import torch


def conditional_logit(sets: Sequence[tuple[np.ndarray, np.ndarray]], ridge: float = 1e-4) -> np.ndarray:
    """The weights (F,) of features (Q, P, F) that give the relevant passages (Q, P) the most probability.

    Every set counts the same. Features are scaled to their spread first, so that one ridge serves all.
    """
    spread = np.mean([features.std((0, 1)) for features, _ in sets], 0) + 1e-9
    kept = [grades.any(1) for _, grades in sets]
    lists = [
        (torch.tensor(features[rows] / spread, dtype=torch.float64), torch.tensor(grades[rows]))
        for (features, grades), rows in zip(sets, kept, strict=True)
    ]
    weights = torch.ones(len(spread), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        losses = [
            -(features @ weights).log_softmax(1).masked_fill(~grades, -torch.inf).logsumexp(1).mean()
            for features, grades in lists
        ]
        loss = torch.stack(losses).mean() + ridge * (weights**2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach().numpy() / spread


def logistic(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the logistic regression of labels (N,) on scores (N,)."""
    values, wanted = torch.tensor(scores, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64)
    affine = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([affine], max_iter=100, line_search_fn="strong_wolfe")
    centre = float(values.mean())

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = affine[0] * (values - centre) + affine[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        loss.backward()
        return loss

    optimiser.step(closure)
    slope, offset = affine.tolist()
    return slope, offset - slope * centre
