"""Trainer: a model, examples and settings in, an ordinary Hugging Face folder out.

The run's own files are in the folder `training` of the result: run.json (what it was told), log.jsonl, and, while it
goes on, checkpoints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from secondpass.atomic import at_home, write_text
from secondpass.engine.device import pick_device, pick_dtype
from secondpass.errors import DataError, MissingExtra, TrainingError
from secondpass.models.decoder import Decoder
from secondpass.training.checkpointing import (
    RUN,
    check_output,
    claimed,
    is_same_model,
    read_state,
    restore,
    save_state,
    state_tensors,
    steps_in,
)
from secondpass.training.collators import Sampler, group_sampler
from secondpass.training.cross_encoding import NUM_BOUNDING, CrossEncoding, open_cross_encoding
from secondpass.training.data import Data, Texts
from secondpass.training.dev import MEASURES, DevSet, total
from secondpass.training.embedding import open_embedding
from secondpass.training.late_interaction import open_late_interaction
from secondpass.training.learner import Learner, Objective, deterministic
from secondpass.training.masks import HiddenText
from secondpass.training.model import Trainable
from secondpass.training.pretraining import Pretraining, open_pretraining
from secondpass.training.processes import Processes, Stopping, open_processes, shard, whole_weights
from secondpass.training.reporting import CARD, Probe, RunLog, RunSummary, StepPace, card, described_run
from secondpass.training.settings import FREE, TrainingSettings
from secondpass.types import Row

Figures = Mapping[str, float]
# What is trained -> how it is opened
OPENERS: Mapping[str, Callable[[str | Path, TrainingSettings, torch.device, torch.dtype], Objective[Any]]] = {
    "reranker": open_cross_encoding,
    "embedder": open_embedding,
    "colbert": open_late_interaction,
    "pretraining": open_pretraining,
}


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Steps done, of how many; with a dev set the figures of the start and the best ones, else empty.

    signal is what asked this process to stop, 0 for nothing.
    """

    folder: Path
    step: int
    num_steps: int
    start: Figures
    best: Figures
    best_step: int
    signal: int = 0

    @property
    def is_finished(self) -> bool:
        return self.step == self.num_steps


class Trainer:
    """Trains the model of a folder or of the hub on examples, or pre-trains it on texts; the result lies in `output`.

    The best checkpoint by settings.measure on `dev` is kept, without dev the last. Raises DataError where examples
    lack what a loss needs, UnknownModel for a family that is not trained, ValueError for settings that the model
    cannot have.
    """

    def __init__(
        self,
        model: str | Path,
        data: Data | Texts,
        output: str | Path,
        *,
        settings: TrainingSettings | None = None,
        dev: DevSet | None = None,
    ) -> None:
        self.settings = settings or TrainingSettings()
        self.output = at_home(output)
        self._folder = self.output / "training"
        self._data, self._dev = data, dev
        if not (data.texts if isinstance(data, Texts) else data.examples) or (dev is not None and not dev.queries):
            raise DataError("there is nothing to learn from, or to measure on")
        _check_teacher(data, self.settings)
        if self.settings.has_tensorboard and find_spec("tensorboard") is None:
            raise MissingExtra("tensorboard", "tensorboard")
        self._processes = _processes(self.settings)
        self.objective = _opened(model, self.settings, self._processes)
        self.learner = Learner(self.objective, self.settings, self._processes)
        self._sampler = _sampler(data, self.objective, self.settings)
        self._history: list[dict[str, float]] = []

    @property
    def trainable(self) -> Trainable[Any]:
        return self.objective.trainable

    @property
    def num_steps(self) -> int:
        steps = self._sampler.steps_per_epoch * self.settings.epochs
        return steps if self.settings.max_steps is None else min(steps, self.settings.max_steps)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self._processes.is_first

    def described(self) -> Iterator[str]:
        """Lines on what is about to happen."""
        yield from _unread_prompts(self._data, self.objective)
        yield from described_run(
            self.trainable,
            self.settings,
            self.sample_rows(),
            kind=self.objective.kind,
            num_steps=self.num_steps,
        )

    def sample_rows(self, num_groups: int = 200) -> list[Row]:
        """Rows of the run's first groups, for a look at their lengths."""
        num_steps = min(-(-num_groups // self.settings.batch), self._sampler.steps_per_epoch)
        items = [item for step in range(num_steps) for item in self._sampler.items(step)]
        return [row for item in items[:num_groups] for row in self.objective.rows(item)]

    def train(self, *, resume: bool = False) -> TrainingResult:
        """Train to the end, or until Ctrl-C, after which the result says that it is not finished.

        resume: go on from the last checkpoint in `output`; from the start where there is none. Raises TrainingError
        where the run cannot go on, where another process writes it, where the loss is no number any more, and where
        a checkpoint cannot be written.
        """
        with claimed(self.output) if self.is_first else nullcontext():
            step = self._begin(is_resumed=resume)
            log = RunLog(
                self._folder,
                num_steps=self.num_steps,
                done=step,
                is_silent=not self.is_first,
                has_tensorboard=self.settings.has_tensorboard,
            )
            with deterministic(self.trainable.device), Stopping(log.say) as asked:
                try:
                    step = self._run(step, log, asked)
                finally:
                    log.close()
            if step == self.num_steps:
                self._finish()
        best = self._best()
        start = self._history[0] if self._history else {}
        return TrainingResult(
            folder=self.output,
            step=step,
            num_steps=self.num_steps,
            start=_measured(start),
            best=_measured(best),
            best_step=int(best.get("step", step)),
            signal=asked.signal,
        )

    def _run(self, step: int, log: RunLog, stopping: Stopping) -> int:
        """Steps from `step` on; returns how many are done."""
        pace, probe = StepPace(), Probe(step, self.num_steps)
        while True:
            if self._is_due(step):
                is_measured = self._evaluate(step, log, stopping)
                self._save(step)
                pace.restart()
                if not is_measured:
                    return step
            if step == self.num_steps:
                return step
            rate = self.settings.rate(step, self.num_steps)
            moved = self.learner.step(self._sampler.items(step), rate=rate, index=step, stopping=stopping)
            step += 1
            pace.add(moved.loss, moved.num_tokens)
            log.advance(step, moved.loss)
            if (told := probe.after(step)) is not None:
                log.say(told)
            if step % self.settings.log_every == 0 or step == self.num_steps:
                more = {"learning_rate": rate, "gradient_norm": moved.gradient_norm}
                log.figures(step, pace.figures() | more)
            if moved.is_asked or step % self.settings.save_every == 0:
                self._save(step)
            if moved.is_asked and step < self.num_steps:
                return step

    def _is_due(self, step: int) -> bool:
        """Whether to measure now: at the start, at the end, and every so often; not twice at the same step."""
        every = self.settings.eval_every or self._sampler.steps_per_epoch
        is_time = step % every == 0 or step == self.num_steps
        return self._dev is not None and is_time and all(figures["step"] != step for figures in self._history)

    def _evaluate(self, step: int, log: RunLog, stopping: Stopping) -> bool:
        """Measure on the dev set, and write the model where it is the best so far.

        False where it was given up, as the one process there is was asked to stop; a run that goes on begins with it.
        """
        assert self._dev is not None
        queries, processes = self._dev.queries, self._processes
        may_stop = processes.count == 1 and step < self.num_steps
        own = queries if processes.has_shards else queries[processes.rank :: processes.count]
        sums = total(takewhile(lambda _: not (may_stop and stopping.is_asked), own), self.objective.score)
        if may_stop and stopping.is_asked:
            return False
        found = [sums[name] for name in MEASURES]
        exchanged = found if processes.has_shards else processes.sum_figures(found, self.trainable.device)
        figures = {name: value / len(queries) for name, value in zip(MEASURES, exchanged, strict=True)}
        log.figures(step, figures)
        self._history.append({"step": step, **figures})
        if step and self._best()["step"] == step:
            self._write_model()
        return True

    def _best(self) -> dict[str, float]:
        """The best measurement of a trained model, the first of equals; empty where there is none."""
        trained = [figures for figures in self._history if figures["step"]]
        return max(trained, key=lambda figures: figures[self.settings.measure], default={})

    def _begin(self, *, is_resumed: bool) -> int:
        """Steps that are done already. Raises TrainingError where `output` holds something else."""
        run = self._as_run()
        before = check_output(self.output, is_resumed=is_resumed)
        if before is not None:
            _check_same(before, run)
        state = read_state(self._folder)
        if state is not None and before is None:
            raise TrainingError(f"{self._folder} holds a checkpoint, and not of which run; remove it")
        self._processes.wait()  # until all have looked
        if self.is_first:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / RUN, json.dumps(run, indent=2, ensure_ascii=False) + "\n")
        if state is None:
            return 0
        restore(state, self.learner.parameters, self.learner.optimiser, self._processes)
        self._history = list(state.facts["history"])
        self._recall(state.step)
        return state.step

    def _recall(self, step: int) -> None:
        """Tell the objective what was read last before `step`, so that it measures as a run that was not stopped."""
        if not isinstance(self.objective, CrossEncoding):
            return
        items: list[Any] = []
        while step and sum(len(item.passages) for item in items) < NUM_BOUNDING:
            step -= 1
            items[:0] = self._sampler.items(step)[self._processes.rank :: self._processes.count]
        self.objective.recall(items)

    def _as_run(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        settings = {key: value for key, value in self.settings.as_json().items() if key not in FREE}
        checkpoint = self.trainable.checkpoint
        return {
            "model": checkpoint.name,
            "revision": checkpoint.revision,
            "data": self._data.fingerprint,
            "dev": None if self._dev is None else self._dev.fingerprint,  # else figures of two sets pick the best
            "settings": settings,
        }

    def _save(self, step: int) -> None:
        tensors = state_tensors(self.learner.parameters, self.learner.optimiser, self._processes)
        if self.is_first or self._processes.has_shards:
            save_state(self._folder, step, tensors, {"history": self._history}, self._processes)
        self._processes.wait()

    def _write_model(self) -> None:
        with whole_weights(self.trainable.model, self._processes):
            if self.is_first:
                self.objective.save(self.output, {CARD: card(self.trainable, self.settings, self._outcome())})
        self._processes.wait()

    def _outcome(self) -> RunSummary:
        return RunSummary(
            data=self._data,
            dev=self._dev,
            history=tuple(self._history),
            best_step=int(self._best().get("step", self.num_steps)),
            num_steps=self.num_steps,
            kind=self.objective.kind,
        )

    def _finish(self) -> None:
        """The result as it is used; the run's checkpoints are not needed any more."""
        if self._dev is None:
            self._write_model()
        if self.is_first:
            write_text(self.output / CARD, card(self.trainable, self.settings, self._outcome()))
            write_text(self._folder / RUN, json.dumps(self._as_run() | {"is_finished": True}, indent=2) + "\n")
            for step in steps_in(self._folder):
                shutil.rmtree(self._folder / f"step-{step:08d}", ignore_errors=True)
        self._processes.wait()


def _unread_prompts(data: Data | Texts, objective: Objective[Any]) -> Iterator[str]:
    examples = data.examples if isinstance(data, Data) else ()
    count = sum(example.prompt is not None for example in examples)
    if count and not objective.reads_prompts:
        yield f"not read: prompt ({count:,} lines); only decoders have one"


def _measured(figures: Figures) -> Figures:
    return {name: value for name, value in figures.items() if name != "step"}


def _processes(settings: TrainingSettings) -> Processes:
    """Raises TrainingError where weights cannot be shared out."""
    processes = open_processes(settings.device)
    if not settings.has_shards:
        return processes
    if processes.count == 1:
        raise TrainingError(
            "has_shards needs several processes, each of which keeps a share of the weights; start it with torchrun "
            "or accelerate launch, or leave --shard out"
        )
    return replace(processes, has_shards=True)


def _opened(model: str | Path, settings: TrainingSettings, processes: Processes) -> Objective[Any]:
    device = processes.device or pick_device(settings.device)
    dtype, _ = pick_dtype(settings.dtype, device)
    # without bf16 there is no half precision here
    objective = OPENERS[settings.method](model, settings, device, torch.float32 if dtype == torch.float16 else dtype)
    if processes.has_shards:
        net = objective.trainable.model
        if not isinstance(net.backbone, Decoder):
            raise ValueError("has_shards: weights are shared out of decoder rerankers alone; leave --shard out")
        shard(net, list(net.backbone.layers), processes)
    return objective


def _sampler(data: Data | Texts, objective: Objective[Any], settings: TrainingSettings) -> Sampler[Any]:
    """Raises ValueError where the data is not what the objective learns from."""
    if isinstance(data, Texts) and isinstance(objective, Pretraining):
        texts = data.texts

        def draw(index: int, epoch: int) -> HiddenText:
            return objective.drawn(texts[index], index, epoch)

        return Sampler(len(texts), draw, batch=settings.batch, seed=settings.seed)
    if isinstance(data, Texts) or isinstance(objective, Pretraining):
        raise ValueError("plain texts are for pre-training, and pre-training for plain texts")
    num_negatives = settings.num_negatives
    return group_sampler(data.examples, batch=settings.batch, num_negatives=num_negatives, seed=settings.seed)


def _check_teacher(data: Data | Texts, settings: TrainingSettings) -> None:
    if not settings.needs_teacher or isinstance(data, Texts):
        return
    lacking = [example for example in data.examples if not example.has_scores]
    if lacking:
        first = lacking[0]
        scores = {"pos_scores": first.positive_scores, "neg_scores": first.negative_scores}
        raise DataError(
            f"{first.source or 'an example'}: has no {' and '.join(key for key, x in scores.items() if x is None)}, "
            f"which the loss needs (so {len(lacking)} of {len(data.examples)}); name a teacher"
        )


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises TrainingError that names what differs from the run that was stopped."""
    settings = [(key, before["settings"].get(key), value) for key, value in now["settings"].items()]
    facts = [key for key in now if key != "settings" and key in before]
    differing = [(key, before[key], now[key]) for key in facts if before[key] != now[key]]
    differing = [(key, old, new) for key, old, new in differing if key != "model" or not is_same_model(old, new)]
    differing += [(key, old, new) for key, old, new in settings if json.loads(json.dumps(new)) != old]
    if differing:
        told = "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in differing)
        raise TrainingError(
            f"the run that was stopped was another one: {told}; give what it was told, or another folder"
        )
