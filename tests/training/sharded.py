"""A decoder that several processes train, each with its share of the weights: BASE OUTPUT LAST_STEP."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from secondpass.training import Data, DevSet, Trainer, TrainingSettings, dev_queries
from secondpass.training.learner import Learner, Moved
from secondpass.training.settings import LoraSettings
from tests.training.toy import toy_examples

STEPS = 4


def sharded_trainer(base: Path, output: Path, *, has_shards: bool) -> Trainer:
    """Three groups a step of up to one each on two processes, so that one of them has fewer passes."""
    settings = TrainingSettings(
        batch=3,
        num_negatives=2,
        max_steps=STEPS,
        learning_rate=1e-2,
        device="cpu",
        dtype="float32",
        max_length=64,
        token_budget=1,
        has_shards=has_shards,
        has_gradient_checkpointing=True,
        lora=LoraSettings(rank=2, targets="q_proj,down_proj"),
    )
    dev = DevSet(name="toy", queries=dev_queries(toy_examples(3, seed=5)))
    return Trainer(base, Data(examples=toy_examples(10)), output, settings=settings, dev=dev)


def main(base: Path, output: Path, last: int) -> None:
    real = Learner.step

    def step(self: Learner, *arguments: object, index: int, **options: object) -> Moved:
        if index + 1 == last < STEPS and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGTERM)  # which stops all
        return real(self, *arguments, index=index, **options)  # type: ignore[arg-type]

    Learner.step = step  # type: ignore[assignment, method-assign]
    result = sharded_trainer(base, output, has_shards=True).train(resume=True)
    assert result.step == last, result
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
