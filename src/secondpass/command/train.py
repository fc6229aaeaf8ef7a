"""`secondpass train`: data is checked, told and perhaps mined; a model is trained, and what came of it told."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secondpass.command import mine, output
from secondpass.command.course import Course, Layers, LossFlags, VectorFlags, settings_of
from secondpass.command.flags import Json, JudgedSplit, Opening, Search, output_folder, wrong_use
from secondpass.command.plain import argument, option
from secondpass.errors import MissingExtra, NoSuchSplit, TrainingError, WrongUse

if TYPE_CHECKING:
    from secondpass.training.data import Data, Example
    from secondpass.training.dev import DevSet
    from secondpass.training.processes import Processes
    from secondpass.training.settings import (
        TrainingSettings,
    )
    from secondpass.training.trainer import TrainingResult

PREPARED, NOTE = "data.jsonl.gz", "data.json"  # mined or taught, so that a run that goes on need not do it again
_DEV_SPLITS = ("dev", "validation", None)
MIN_MINED = 15  # negatives of a query, of which a step draws


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where data comes from, beside its paths: a teacher, how negatives are mined, a set to measure on."""

    teacher: Annotated[
        str | None,
        option(metavar="MODEL", help="Scores for kl and margin_mse: a reranker, or embedder:NAME; else the data's."),
    ] = None
    search: Search = "bm25"
    split: JudgedSplit = None
    skip_bad: Annotated[bool, option("--skip-bad", help="Leave out lines that are wrong.")] = False
    dev: Annotated[str | None, option("--eval", metavar="DATA", help="A set to measure on.")] = None
    dev_split: Annotated[str | None, option("--eval-split", help="Its split; else dev, if there is one.")] = None
    dev_depth: Annotated[int, option("--eval-depth", min=1, help="BM25 candidates to rerank.")] = 30
    dev_queries: Annotated[int | None, option("--eval-queries", min=1, help="Only so many queries, drawn once.")] = (
        None
    )

    @property
    def names_dev_set(self) -> bool:
        """Whether it is said how to measure."""
        told = (self.dev_split, self.dev_depth, self.dev_queries)
        return told != (Sources.dev_split, Sources.dev_depth, Sources.dev_queries)


def train(
    model: Annotated[str, argument(metavar="MODEL", help="A reranker of any kind, or a plain encoder.")],
    data: Annotated[
        list[str], argument(metavar="DATA", help="FlagEmbedding's JSONL, in files or folders; BEIR folders.")
    ],
    *,
    folder: Annotated[str, option("--output", metavar="FOLDER", help="Folder of the result.")],
    loss: LossFlags,
    layers: Layers,
    vectors: VectorFlags,
    course: Course,
    sources: Sources,
    resume: Annotated[bool, option("--resume", help="Go on where a run in OUTPUT was stopped.")] = False,
    json: Json = False,
) -> None:
    """Train a reranker, an embedder or late interaction: the result is an ordinary Hugging Face folder.

    Ctrl-C saves, and --resume goes on. Several processes: accelerate launch -m secondpass train ...
    """
    if find_spec("torch") is None:
        raise MissingExtra("torch", "train")
    from secondpass.training.checkpointing import check_output, claimed
    from secondpass.training.processes import open_processes
    from secondpass.training.reporting import described
    from secondpass.training.trainer import Trainer

    settings = settings_of(loss, layers, vectors, course)
    if sources.dev is None and (sources.names_dev_set or course.names_measuring):
        flags = "--eval-split, --eval-depth, --eval-queries, --eval-every and --measure"
        raise WrongUse(f"{flags} do nothing without --eval")
    target = output_folder(folder)
    processes = open_processes(settings.device)
    with claimed(target) if processes.is_first else nullcontext():
        check_output(target, is_resumed=resume)
        dev = _dev_set(sources)  # what is wrong with it is said before negatives are mined
        examples = _data(data, target, settings, sources, processes, model)
        if processes.is_first:
            _say(described(examples, has_other_negatives=settings.has_other_negatives))
        with wrong_use():
            trainer = Trainer(model, examples, target, settings=settings, dev=dev)
        if trainer.is_first:
            _say(trainer.described())
        result = trainer.train(resume=resume)
    if not trainer.is_first:
        return
    if not result.is_finished:
        _say([f"stopped after step {result.step} of {result.num_steps}; all is saved. To go on: {_again()}"])
        raise KeyboardInterrupt(result.signal)
    _tell(result, dev, settings, is_json=json)


def _data(
    paths: Sequence[str],
    folder: Path,
    settings: TrainingSettings,
    sources: Sources,
    processes: Processes,
    model: str,
) -> Data:
    """The examples; where they have to be mined or taught, that is done once and kept beside the run."""
    from secondpass.training.data import read_data

    if sources.teacher is not None and not settings.needs_teacher:
        raise WrongUse("a teacher is named, but no loss learns from one; add kl or margin_mse, as in --loss ce+kl")
    folders, files = mine.parted(paths)
    needs_negatives = not settings.has_other_negatives
    if not folders and sources.teacher is None:
        return read_data(files, is_skipping=sources.skip_bad, needs_negatives=needs_negatives)
    file = folder / "training" / PREPARED
    if processes.is_first:
        how = _Preparation(folders=folders, files=files, settings=settings, sources=sources, model=model)
        _prepare_once(how, file)
    processes.wait()
    return replace(read_data([file], needs_negatives=needs_negatives), names=tuple(paths))


@dataclass(frozen=True, kw_only=True)
class _Preparation:
    """Data that has to be mined or taught before it can be learnt from."""

    folders: Sequence[Path]
    files: Sequence[Path]
    settings: TrainingSettings
    sources: Sources
    model: str

    @property
    def miner(self) -> mine.Miner:
        return mine.Miner(search=self.sources.search, split=self.sources.split)

    @property
    def choice(self) -> mine.Choice:
        return mine.Choice(negatives=max(MIN_MINED, self.settings.num_negatives))

    @property
    def opening(self) -> Opening:
        """Of the teacher and of what mines."""
        return Opening(device=self.settings.device)

    def as_json(self) -> dict[str, object]:
        """What the result depends on."""
        return {
            "data": [str(path.resolve()) for path in (*self.folders, *self.files)],
            "digest": self._digest(),
            "teacher": self.sources.teacher,
            "mining": asdict(self.miner) | asdict(self.choice.settings()),
            "is_skipping": self.sources.skip_bad,
        }

    def _digest(self) -> str:
        """sha256 over the files that are read."""
        from secondpass.evaluation.datasets.beir import collection_files
        from secondpass.training.data import data_files

        digest = hashlib.sha256()
        read = [file for folder in self.folders for file in collection_files(folder)]
        for file in [*read, *(file for path in self.files for file in data_files(path))]:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def _prepare_once(preparation: _Preparation, file: Path) -> None:
    """Prepare the data, unless it is there and was prepared from the same. Raises TrainingError where it was not."""
    import json

    from secondpass.atomic import write_text

    note, how = file.with_name(NOTE), preparation.as_json()
    if file.exists() and note.exists():
        if json.loads(note.read_text("utf-8")) == how:
            return
        if (file.parent / "run.json").exists():
            raise TrainingError(f"{file.parent.parent} holds a run with other data; give another folder")
    _prepare(preparation, file)
    write_text(note, json.dumps(how, indent=2, ensure_ascii=False) + "\n")


def _prepare(preparation: _Preparation, file: Path) -> None:
    from secondpass.checkpoint.checkpoint import open_checkpoint
    from secondpass.training.data import read_data, save_data

    sources, opening = preparation.sources, preparation.opening
    examples: list[Example] = []
    if preparation.files:
        needs_negatives = not preparation.settings.has_other_negatives
        read = read_data(preparation.files, is_skipping=sources.skip_bad, needs_negatives=needs_negatives)
        examples += read.examples
    open_checkpoint(preparation.model)  # a wrong name is said before hours of mining, not after
    unfinished = file.with_name("unfinished")
    if preparation.folders:
        collections = mine.collections([str(folder) for folder in preparation.folders], sources.split)
        settings = preparation.choice.settings()
        examples += mine.mined(collections, unfinished, miner=preparation.miner, settings=settings, opening=opening)
    if sources.teacher is not None:
        examples = _taught(examples, sources.teacher, unfinished, opening)
    save_data(examples, file)
    mine.forget(unfinished)


def _taught(examples: Sequence[Example], teacher: str, unfinished: Path, opening: Opening) -> list[Example]:
    from secondpass.training.data import Data
    from secondpass.training.mining import continued, taught

    scorer = opening.scorer(teacher)
    key = f"{teacher} {Data(examples=examples).fingerprint}"
    file = unfinished.with_name(f"{unfinished.name}-taught")

    def make(start: int) -> Iterator[Example]:
        return taught(examples, scorer, start=start)

    with output.watched("asking the teacher") as progress:
        return continued(file, key, len(examples), make, progress=progress)


def _dev_set(sources: Sources) -> DevSet | None:
    """The set to measure on; without a named split the first there is that is not for tests."""
    if sources.dev is None:
        return None
    from secondpass.evaluation.datasets.load import load_dataset
    from secondpass.training.dev import dev_set

    for split in _DEV_SPLITS if sources.dev_split is None else (sources.dev_split,):
        try:
            dataset = load_dataset(sources.dev, split=split)
        except NoSuchSplit:
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
        output.as_json(told if dev is None else told | {"first_stage": dev.first_stage()})
        return
    if dev is not None:
        rows = [("first stage", dev.first_stage())] if dev.has_first_stage else []
        rows += [("start", dict(result.start)), (f"step {result.best_step} (kept)", dict(result.best))]
        for name, figures in rows:
            _say([f"{name}: " + ", ".join(f"{measure} {value:.4f}" for measure, value in figures.items())])
        if result.best[settings.measure] <= result.start[settings.measure]:
            _say([f"training did not raise {settings.measure} on {dev.name}; the start was as good or better"])
    sys.stdout.write(f"{result.folder}\n")
