"""What a run says: what it will learn from, its figures as they come, and the card of what it leaves."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secondpass import __version__
from secondpass.atomic import write_text
from secondpass.checkpoint.checkpoint import EMBEDDED
from secondpass.training.data import Data, Example, Texts
from secondpass.training.dev import MEASURES, DevSet
from secondpass.training.model import Trainable
from secondpass.training.settings import TrainingSettings
from secondpass.types import Row

MAX_WIDTH = 90
NUM_PROBED = 5  # steps by which the time of a run is estimated
# How far a teacher's scores of one query lie apart where a softmax over them says something.
SPREADS = (0.5, 30.0)


def described(data: Data, *, has_other_negatives: bool = False) -> Iterator[str]:
    """Lines on the examples: how many, what is left out, and the first one to look at.

    has_other_negatives: the passages of other queries serve as such.
    """
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
    yield from _warned(examples, has_other_negatives=has_other_negatives)
    if data.unread:
        told = ", ".join(f"{key} ({count:,} lines)" for key, count in data.unread.items())
        yield f"not read: {told}"
    first = examples[0]
    yield f"first query:    {_short(first.query)}"
    yield f"first positive: {_short(first.positives[0])}"
    if first.negatives:
        yield f"first negative: {_short(first.negatives[0])}"


def _warned(examples: Sequence[Example], *, has_other_negatives: bool) -> Iterator[str]:
    """What costs quality and is seen in the data alone: no negatives, scores that no softmax can tell apart."""
    lonely = sum(not example.negatives for example in examples)
    if lonely and not has_other_negatives:
        yield f"warning: {lonely:,} of {len(examples):,} queries have no negative, and teach nothing by a softmax"
    spreads = []
    for example in examples:
        if example.positive_scores is not None and example.negative_scores:
            scores = (*example.positive_scores, *example.negative_scores)
            spreads.append(max(scores) - min(scores))
    if spreads:
        middle = sorted(spreads)[len(spreads) // 2]
        if not SPREADS[0] <= middle <= SPREADS[1]:
            shape = "one passage has all of it" if middle > SPREADS[1] else "all passages have the same share"
            yield (
                f"warning: the teacher's scores of a query lie {middle:.3g} apart (median); in a softmax {shape}. "
                f"Give logits that lie {SPREADS[0]:g} to {SPREADS[1]:g} apart, or set a temperature"
            )


def described_run(
    trainable: Trainable[nn.Module], settings: TrainingSettings, rows: Sequence[Row], *, kind: Kind, num_steps: int
) -> Iterator[str]:
    """Lines on the model, the lengths of its first rows, and the steps to come."""
    lengths = sorted(map(len, rows))
    cut = sum(any(row.cut) for row in rows) / len(rows)
    num_trained = sum(parameter.numel() for parameter in trainable.parameters.values())
    yield (
        f"model: {trainable.checkpoint.name}, {kind.family}, {num_trained / 1e6:.1f} million weights "
        f"trained, on {trainable.device} in {str(trainable.dtype).removeprefix('torch.')}"
    )
    if trainable.fresh:
        yield f"new: {', '.join(trainable.fresh)}, drawn at random"
    yield (
        f"rows: {sum(lengths) / len(lengths):.0f} tokens on average, 95% up to {lengths[len(lengths) * 95 // 100]}; "
        f"{cut:.0%} cut at {kind.max_length} (of the first {len(rows)})"
    )
    yield f"run: {num_steps:,} steps of {_step(settings)}"


def _step(settings: TrainingSettings) -> str:
    """What a step reads and learns by."""
    if (kind := settings.pretraining) is not None:
        parts = {"masked words": 1.0, "rebuilt text": kind.decoder_weight, "bag of words": kind.bag_weight}
        return f"{settings.batch} texts; loss {_sum({name: weight for name, weight in parts.items() if weight})}"
    groups = f"{settings.batch} queries with a positive and up to {settings.num_negatives} negatives"
    return f"{groups}; loss {_sum(settings.losses)}"


def _sum(weights: Mapping[str, float]) -> str:
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_WIDTH else line[: MAX_WIDTH - 1] + "…"


LOG = "log.jsonl"


class RunLog:
    """Tells of one run, of which `done` steps were there before; silent in all but the first process.

    folder gets log.jsonl, one object a line, and TensorBoard's events.
    """

    def __init__(
        self, folder: Path, *, num_steps: int, done: int = 0, is_silent: bool = False, has_tensorboard: bool = False
    ) -> None:
        self._is_silent = is_silent
        self._num_steps = num_steps
        self._log = folder / LOG
        self._board: Any = None
        self._bar: Any = None
        if is_silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _forget_after(self._log, done)
        if has_tensorboard:
            self._board = _board(folder, done)
        if sys.stderr.isatty():
            self._bar = _bar(num_steps, done)

    def say(self, text: str) -> None:
        """A line for people."""
        if self._is_silent:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
            return
        with suppress(OSError):  # a run does not end because its words go to a file on a full disk
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def advance(self, step: int, loss: float) -> None:
        """A step is done; only the bar shows it."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=f"loss {loss:.4f}")

    def figures(self, step: int, figures: Mapping[str, float], *, is_said: bool = True) -> None:
        """Figures after `step` steps, for the log, TensorBoard and people."""
        if self._is_silent:
            return
        self._keep(json.dumps({"step": step, **figures}) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
        if is_said and (self._bar is None or "loss" not in figures):
            told = ", ".join(f"{name} {_written(value)}" for name, value in figures.items())
            self.say(f"step {step}/{self._num_steps}: {told}")

    def _keep(self, line: str) -> None:
        """A line of the log, whole or not at all; where it cannot be written, the run goes on."""
        size = self._log.stat().st_size if self._log.is_file() else 0
        try:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(line)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._log, size)
            self.say(f"{self._log}: not all figures are kept: {error.strerror}")

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._bar is not None:
            self._bar.stop()


class Probe:
    """What a run will take, told once after its first steps; the very first, which prepares memory, is left out."""

    def __init__(self, done: int, num_steps: int) -> None:
        self._first, self._num_steps, self._began = done + 1, num_steps, 0.0

    def after(self, step: int) -> str | None:
        """A line after NUM_PROBED steps more than the first; None after the others."""
        if step == self._first:
            self._began = time.perf_counter()
        if step != self._first + NUM_PROBED or step >= self._num_steps:
            return None
        minutes = (time.perf_counter() - self._began) / NUM_PROBED * (self._num_steps - step) / 60
        left = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.1f} minutes"
        return f"about {left} for the {self._num_steps - step:,} steps left, measuring apart; {_peak_memory()}"


def _peak_memory() -> str:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB of GPU memory at most so far"
    if sys.platform == "win32":
        return "memory is not measured here"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of memory at most so far"


class StepPace:
    """Mean loss and speed since the last line."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self.restart()

    def restart(self) -> None:
        self._began, self._num_tokens = time.perf_counter(), 0

    def add(self, loss: float, num_tokens: int) -> None:
        self._losses.append(loss)
        self._num_tokens += num_tokens

    def figures(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._began
        found = {"loss": sum(self._losses) / len(self._losses), "tokens_per_s": self._num_tokens / seconds}
        self._losses.clear()
        self.restart()
        return found


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The figures of a run, in order."""
    file = folder / LOG
    if not file.is_file():
        return []
    lines = file.read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines if line.endswith("}")]  # the last may be half written


def _written(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _forget_after(file: Path, step: int) -> None:
    """Drop the lines of steps that will be done again."""
    kept = [line for line in read_log(file.parent) if line["step"] <= step]
    write_text(file, "".join(json.dumps(line) + "\n" for line in kept))


def _board(folder: Path, done: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)


def _bar(num_steps: int, done: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), refresh_per_second=2)
    bar.add_task("starting", total=num_steps, completed=done)
    bar.start()
    return bar


CARD = "README.md"
# Of the settings, those that say nothing of the model.
_UNTOLD = ("device", "log_every", "save_every", "has_tensorboard", "token_budget")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is trained, in words for its card: "A reranker", what it does, how it is loaded, and the hub's tags."""

    family: str
    title: str
    does: str
    loads: Sequence[str]
    tags: Sequence[str]
    pipeline: str
    max_length: int
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What came of a run so far; history has the figures on the dev set with their steps."""

    data: Data | Texts
    dev: DevSet | None
    history: Sequence[Mapping[str, float]]
    best_step: int
    num_steps: int
    kind: Kind


def card(trainable: Trainable[nn.Module], settings: TrainingSettings, outcome: RunSummary) -> str:
    """The model card in Markdown, with the hub's front matter."""
    parts = [
        _front_matter(trainable, outcome.kind),
        f"# {outcome.kind.title} trained from {_base_name(trainable)}",
        outcome.kind.does,
        *outcome.kind.loads,
        "## Data\n\n" + _data(outcome),
        "## Figures\n\n" + _figures(outcome),
        "## Settings\n\n" + _settings(trainable, settings, outcome),
    ]
    return "\n\n".join(parts) + "\n"


def _base_name(trainable: Trainable[nn.Module]) -> str:
    """A hub's name, or the last part of a folder's: a card is published, paths of a machine are not for it."""
    checkpoint = trainable.checkpoint
    if checkpoint.folder == EMBEDDED:
        return "secondpass's embedded model"
    return checkpoint.name if checkpoint.revision else Path(checkpoint.name).resolve().name


def _front_matter(trainable: Trainable[nn.Module], kind: Kind) -> str:
    base = [f"base_model: {trainable.checkpoint.name}"] if trainable.checkpoint.revision else []
    tags = ["tags:", "- secondpass", *(f"- {tag}" for tag in kind.tags)]
    return "\n".join(["---", f"pipeline_tag: {kind.pipeline}", *base, *tags, "---"])


def _data(outcome: RunSummary) -> str:
    names = ", ".join(f"`{Path(name).name}`" for name in outcome.data.names) or "of the caller"
    if isinstance(outcome.data, Texts):
        count, digest = len(outcome.data.texts), outcome.data.fingerprint[:16]
        return f"{count:,} texts, {names}; sha256 `{digest}`."
    examples = outcome.data.examples
    num_positives = sum(len(example.positives) for example in examples)
    num_negatives = sum(len(example.negatives) for example in examples)
    lines = [
        f"{len(examples):,} queries with {num_positives:,} positive and {num_negatives:,} negative passages, "
        f"from {names}; sha256 `{outcome.data.fingerprint[:16]}`."
    ]
    if outcome.data.problems:
        lines.append(f"{len(outcome.data.problems):,} lines that were not usable were left out.")
    return "\n".join(lines)


def _figures(outcome: RunSummary) -> str:
    if outcome.dev is None:
        return "No set was named to measure on; the weights are those of the last step."
    rows = ["| | " + " | ".join(MEASURES) + " |", "|---|" + "---|" * len(MEASURES)]
    if outcome.dev.has_first_stage:
        rows.append(_row("first stage, not reranked", outcome.dev.first_stage()))
    for figures in outcome.history:
        step = int(figures["step"])
        name = "reranked by the start" if step == 0 else f"reranked after step {step:,}"
        rows.append(_row(name + (" (kept)" if step == outcome.best_step else ""), figures))
    depth = max(len(query.documents) for query in outcome.dev.queries)
    told = f"{len(outcome.dev.queries):,} queries of `{outcome.dev.name}`, up to {depth} candidates each."
    return told + "\n\n" + "\n".join(rows)


def _row(name: str, figures: Mapping[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{figures[measure]:.4f}" for measure in MEASURES) + " |"


def _settings(trainable: Trainable[nn.Module], settings: TrainingSettings, outcome: RunSummary) -> str:
    told = {key: value for key, value in settings.as_json().items() if key not in _UNTOLD and value is not None}
    told |= {
        "steps": outcome.num_steps,
        "max_length": outcome.kind.max_length,
        **outcome.kind.facts,
        "dtype": str(trainable.dtype).removeprefix("torch."),
        "secondpass": __version__,
    }
    if trainable.fresh:
        told["fresh"] = ", ".join(trainable.fresh)
    rows = [f"| {key} | {_cell(value)} |" for key, value in told.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(one)}" for key, one in value.items())
    return str(value)
