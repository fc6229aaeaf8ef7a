"""Gradients of a step, summed over the processes that were launched: FOLDER, QUERIES, and KIND=MODEL for each."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from secondpass.training.collators import group_sampler
from secondpass.training.learner import Learner
from secondpass.training.pretraining import Pretraining
from secondpass.training.processes import Processes, open_processes
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
    "reranker": TrainingSettings(max_length=32, max_gradient_norm=1e9, token_budget=60),
    "embedder": TrainingSettings(embedder=PARTS, max_length=32, max_gradient_norm=1e9, token_budget=60),
    "pretraining": TrainingSettings(
        pretraining=PretrainingSettings(bag_weight=0.1), max_length=32, max_gradient_norm=1e9, token_budget=60
    ),
    "colbert": TrainingSettings(
        colbert=LateInteractionSettings(), losses={"kl": 1.0}, max_length=32, max_gradient_norm=1e9, token_budget=60
    ),
}


ROOT = Path(__file__).parents[2]


def launched(count: int, module: str, *arguments: str) -> None:
    """Runs the module in `count` processes of this machine that know of one another, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count)}
    started = []
    for rank in map(str, range(count)):
        environment = {**os.environ, **shared, **address, "RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, "-m", module, *arguments]
        started.append(
            subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )
    try:
        for process in started:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said.decode()[-3000:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def gradients(model: str, kind: str, num_queries: int, processes: Processes) -> dict[str, Tensor]:
    """By name, with the loss."""
    settings = KINDS[kind]
    objective = OPENERS[kind](model, settings, torch.device("cpu"), torch.float32)
    learner = Learner(objective, settings, processes)
    examples = toy_examples(num_queries, has_scores=True)
    items: list[Any] = group_sampler(examples, batch=num_queries, num_negatives=3, seed=1).items(0)
    if isinstance(objective, Pretraining):
        items = [objective.drawn(text, index, 0) for index, text in enumerate(item.passages[0] for item in items)]
    moved = learner.step(items, rate=0.0)
    found = {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}
    return {**found, "loss": torch.tensor(moved.loss)}


def main(folder: Path, num_queries: int, asked: list[str]) -> None:
    processes = open_processes("cpu")
    for kind, _, model in (each.partition("=") for each in asked):
        found = gradients(model, kind, num_queries, processes)
        if processes.is_first:
            save_file(found, folder / kind)
    processes.wait()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
