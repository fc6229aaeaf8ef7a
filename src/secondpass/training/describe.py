"""What a run is about to learn from, in a few lines, before it does."""

from __future__ import annotations

from collections.abc import Iterator

from secondpass.training.data import Data
from secondpass.training.trainer import Trainer

MAX_WIDTH = 90


def described(data: Data) -> Iterator[str]:
    """Lines on the examples: how many, what is left out, and the first one to look at."""
    examples = data.examples
    positives = sum(len(example.positives) for example in examples) / len(examples)
    counts = [len(example.negatives) for example in examples]
    scored = sum(example.has_scores for example in examples)
    yield (
        f"data: {len(examples):,} queries, each with {positives:.1f} positive and {sum(counts) / len(counts):.1f} "
        f"negative passages ({min(counts)} to {max(counts)}); {scored:,} with a teacher's scores"
    )
    if data.problems:
        yield f"left out: {len(data.problems):,} lines, the first {data.problems[0]}"
    if data.unread:
        told = ", ".join(f"{key} ({count:,} lines)" for key, count in data.unread.items())
        yield f"not read: {told}"
    first = examples[0]
    yield f"first query:    {_short(first.query)}"
    yield f"first positive: {_short(first.positives[0])}"
    yield f"first negative: {_short(first.negatives[0])}"


def described_run(trainer: Trainer) -> Iterator[str]:
    """Lines on the model, the lengths of its rows, and the steps to come."""
    trainable, settings = trainer.trainable, trainer.settings
    rows = trainer.sample_rows()
    lengths = sorted(map(len, rows))
    cut = sum(any(row.cut) for row in rows) / len(rows)
    num_trained = sum(parameter.numel() for parameter in trainer.learner.parameters.values())
    yield (
        f"model: {trainable.checkpoint.name}, {trainable.recipe.family}, {num_trained / 1e6:.1f} million weights "
        f"trained, on {trainable.device} in {str(trainable.dtype).removeprefix('torch.')}"
    )
    if trainable.fresh:
        yield f"new: {', '.join(trainable.fresh)}, drawn at random"
    yield (
        f"rows: {sum(lengths) / len(lengths):.0f} tokens on average, 95% up to {lengths[len(lengths) * 95 // 100]}; "
        f"{cut:.0%} cut at {trainer.learner.limits.max_length} (of the first {len(rows)})"
    )
    yield (
        f"run: {trainer.num_steps:,} steps of {settings.batch} queries with a positive and up to "
        f"{settings.num_negatives} negatives; loss {' + '.join(f'{w:g} {n}' for n, w in settings.losses.items())}"
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_WIDTH else line[: MAX_WIDTH - 1] + "…"
