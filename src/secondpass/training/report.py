"""What a run says of itself: a bar where people watch, plain lines elsewhere, a log file, TensorBoard when asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOG = "log.jsonl"


class Report:
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
        else:
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
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **figures}) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
        if is_said and (self._bar is None or "loss" not in figures):
            told = ", ".join(f"{name} {_written(value)}" for name, value in figures.items())
            self.say(f"step {step}/{self._num_steps}: {told}")

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._bar is not None:
            self._bar.stop()


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
    file.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")


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
