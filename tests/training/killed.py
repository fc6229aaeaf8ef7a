"""A run in a process of its own, for tests that kill it or launch several: FOLDER with a model in base, NAME."""

from __future__ import annotations

import sys
from pathlib import Path

from secondpass.training import DevSet, Trainer, TrainingSettings, dev_queries
from tests.training.toy import toy_data, toy_examples


def main(folder: Path, name: str) -> None:
    chosen = TrainingSettings(
        batch=5,
        num_negatives=3,
        epochs=3,
        learning_rate=1e-3,
        device="cpu",
        dtype="float32",
        save_every=4,
        log_every=1,
    )
    dev = DevSet(name="toy", queries=dev_queries(toy_examples(7, seed=5)))
    Trainer(folder / "base", toy_data(28), folder / name, settings=chosen, dev=dev).train(resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
