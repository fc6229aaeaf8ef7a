"""`secondpass train`: data is checked, told and perhaps mined; a model is trained, and what came of it told."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from secondpass.command import mine, show
from secondpass.command.progress import watched
from secondpass.errors import DataError, MissingExtra, TrainingError, WrongUse

if TYPE_CHECKING:
    from secondpass.training.data import Data, Example
    from secondpass.training.dev import DevSet
    from secondpass.training.mining import MiningSettings
    from secondpass.training.processes import Processes
    from secondpass.training.settings import TrainingSettings
    from secondpass.training.trainer import TrainingResult

PREPARED, NOTE = "data.jsonl.gz", "data.json"  # mined or taught, so that a run that goes on need not do it again
_DEV_SPLITS = ("dev", "validation", None)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where data comes from, beside its paths: a teacher, how negatives are mined, a set to measure on."""

    teacher: str | None
    mining: mine.Source
    mining_settings: MiningSettings
    is_skipping: bool
    dev: str | None
    dev_split: str | None
    dev_depth: int
    dev_queries: int | None


def train(
    model: str,
    paths: Sequence[str],
    output: str,
    *,
    settings: TrainingSettings,
    sources: Sources,
    is_resumed: bool = False,
    is_json: bool = False,
) -> None:
    """Train, and print what came of it. Raises WrongUse, SecondpassError, or KeyboardInterrupt after Ctrl-C."""
    check_torch()
    from secondpass.training.checkpointing import check_output, claimed
    from secondpass.training.processes import open_processes
    from secondpass.training.reporting import described
    from secondpass.training.trainer import Trainer

    folder = Path(output).expanduser()
    processes = open_processes(settings.device)
    with claimed(folder) if processes.is_first else nullcontext():
        check_output(folder, is_resumed=is_resumed)
        data = _data(paths, folder, settings, sources, processes)
        if processes.is_first:
            _say(described(data))
        dev = _dev_set(sources)
        try:
            trainer = Trainer(model, data, folder, settings=settings, dev=dev)
        except ValueError as error:
            raise WrongUse(str(error)) from error
        if trainer.is_first:
            _say(trainer.described())
        result = trainer.train(resume=is_resumed)
    if not trainer.is_first:
        return
    if not result.is_finished:
        _say([f"stopped after step {result.step} of {result.num_steps}; all is saved. To go on: {_again()}"])
        raise KeyboardInterrupt
    _tell(result, dev, settings, is_json=is_json)


def check_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise MissingExtra("torch", "train")


def _data(
    paths: Sequence[str], folder: Path, settings: TrainingSettings, sources: Sources, processes: Processes
) -> Data:
    """The examples; where they have to be mined or taught, that is done once and kept beside the run."""
    from secondpass.evaluation.datasets.beir import is_collection
    from secondpass.training.data import read_data

    if sources.teacher is not None and not settings.needs_teacher:
        raise WrongUse("a teacher is named, but no loss learns from one; add kl or margin_mse, as in --loss ce+kl")
    places = [Path(path).expanduser() for path in paths]
    folders = [place for place in places if place.is_dir() and is_collection(place)]
    if not folders and sources.teacher is None:
        return read_data(places, is_skipping=sources.is_skipping)
    file = folder / "training" / PREPARED
    if processes.is_first:
        _prepare_once(folders, [place for place in places if place not in folders], file, sources)
    processes.wait()
    return replace(read_data([file]), names=tuple(paths))


def _prepare_once(folders: Sequence[Path], files: Sequence[Path], file: Path, sources: Sources) -> None:
    """Prepare the data, unless it is there and was prepared from the same. Raises TrainingError where it was not."""
    import json

    from secondpass.checkpoint.save import write_text

    note = file.with_name(NOTE)
    how = {
        "data": [str(place.resolve()) for place in (*folders, *files)],
        "teacher": sources.teacher,
        "mining": asdict(sources.mining) | asdict(sources.mining_settings),
        "is_skipping": sources.is_skipping,
    }
    if file.exists() and note.exists():
        if json.loads(note.read_text("utf-8")) == how:
            return
        if (file.parent / "run.json").exists():
            raise TrainingError(f"{file.parent.parent} holds a run with other data; give another folder")
    _prepare(folders, files, file, sources)
    write_text(note, json.dumps(how, indent=2, ensure_ascii=False) + "\n")


def _prepare(folders: Sequence[Path], files: Sequence[Path], file: Path, sources: Sources) -> None:
    from secondpass.training.data import read_data, save_data

    examples = list(read_data(files, is_skipping=sources.is_skipping).examples) if files else []
    unfinished = file.with_name("unfinished")
    if folders:
        collections = mine.collections([str(place) for place in folders], sources.mining.split)
        examples += mine.mined(collections, unfinished, source=sources.mining, settings=sources.mining_settings)
    if sources.teacher is not None:
        examples = _taught(examples, sources.teacher, unfinished)
    save_data(examples, file)
    mine.forget(unfinished)


def _taught(examples: Sequence[Example], teacher: str, unfinished: Path) -> list[Example]:
    from secondpass.training.data import Data
    from secondpass.training.mining import continued, taught

    scorer = mine.open_scorer(teacher)
    key = f"{teacher} {Data(examples=examples).fingerprint}"
    place = unfinished.with_name(f"{unfinished.name}-taught")

    def make(start: int) -> Iterator[Example]:
        return taught(examples, scorer, start=start)

    with watched("asking the teacher") as progress:
        return continued(place, key, len(examples), make, progress=progress)


def _dev_set(sources: Sources) -> DevSet | None:
    """The set to measure on; without a named split the first there is that is not for tests."""
    if sources.dev is None:
        return None
    from secondpass.evaluation.datasets.dataset import load_dataset
    from secondpass.training.dev import dev_set

    for split in _DEV_SPLITS if sources.dev_split is None else (sources.dev_split,):
        try:
            dataset = load_dataset(sources.dev, split=split)
        except DataError:
            if split == (sources.dev_split or _DEV_SPLITS[-1]):
                raise
            continue
        return dev_set(dataset, depth=sources.dev_depth, num_queries=sources.dev_queries)
    return None


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _again() -> str:
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["secondpass", *arguments, "--resume"])


def _tell(result: TrainingResult, dev: DevSet | None, settings: TrainingSettings, *, is_json: bool) -> None:
    if is_json:
        told = asdict(result) | {"folder": str(result.folder)}
        show.as_json(told if dev is None else told | {"first_stage": dev.first_stage()})
        return
    if dev is not None:
        rows = [("first stage", dev.first_stage())] if dev.has_first_stage else []
        rows += [("start", dict(result.start)), (f"step {result.best_step} (kept)", dict(result.best))]
        for name, figures in rows:
            _say([f"{name}: " + ", ".join(f"{measure} {value:.4f}" for measure, value in figures.items())])
        if result.best[settings.measure] <= result.start[settings.measure]:
            _say([f"training did not raise {settings.measure} on {dev.name}; the start was as good or better"])
    sys.stdout.write(f"{result.folder}\n")
