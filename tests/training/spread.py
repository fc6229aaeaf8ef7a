"""The gradients of a step, summed over the processes that were launched: MODEL KIND FILE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from secondpass.training.collators import group_sampler
from secondpass.training.learner import Learner
from secondpass.training.pretraining import Pretraining
from secondpass.training.processes import open_processes
from secondpass.training.settings import (
    EmbedderSettings,
    LateInteractionSettings,
    PretrainingSettings,
    TrainingSettings,
)
from secondpass.training.trainer import OPENERS
from tests.training.toy import toy_examples

PARTS = EmbedderSettings(parts=("dense", "sparse", "colbert"), self_distillation_from=0, temperature=0.5)
KINDS = {
    "embedder": TrainingSettings(embedder=PARTS, max_length=32, max_gradient_norm=1e9, token_budget=60),
    "pretraining": TrainingSettings(
        pretraining=PretrainingSettings(bag_weight=0.1), max_length=32, max_gradient_norm=1e9, token_budget=60
    ),
    "colbert": TrainingSettings(
        colbert=LateInteractionSettings(), losses={"kl": 1.0}, max_length=32, max_gradient_norm=1e9, token_budget=60
    ),
}


def main(model: str, kind: str, file: Path) -> None:
    settings = KINDS[kind]
    processes = open_processes("cpu")
    objective = OPENERS[kind](model, settings, torch.device("cpu"), torch.float32)
    learner = Learner(objective, settings, processes)
    items: list[Any] = group_sampler(toy_examples(3, has_scores=True), batch=3, num_negatives=3, seed=1).items(0)
    if isinstance(objective, Pretraining):
        items = [objective.drawn(text, index, 0) for index, text in enumerate(item.passages[0] for item in items)]
    moved = learner.step(items, rate=0.0)
    found = {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}
    if processes.is_first:
        save_file({**found, "loss": torch.tensor(moved.loss)}, file)
    processes.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
