"""`secondpass train`: data is checked, told and perhaps mined; a model is trained, and what came of it told."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secondpass.command import mine, output
from secondpass.command.flags import Json, JudgedSplit, Opening, Search, wrong_use
from secondpass.errors import DataError, MissingExtra, TrainingError, WrongUse

if TYPE_CHECKING:
    from secondpass.training.data import Data, Example
    from secondpass.training.dev import DevSet
    from secondpass.training.processes import Processes
    from secondpass.training.settings import (
        CompressionSettings,
        EmbedderSettings,
        LateInteractionSettings,
        LayerSettings,
        TrainingSettings,
    )
    from secondpass.training.trainer import TrainingResult

PREPARED, NOTE = "data.jsonl.gz", "data.json"  # mined or taught, so that a run that goes on need not do it again
_DEV_SPLITS = ("dev", "validation", None)
MIN_MINED = 15  # negatives of a query, of which a step draws


@dataclass(frozen=True, kw_only=True)
class LossFlags:
    loss: Annotated[
        str, typer.Option(help="ce, binary, margin_mse, kl, kd, or a sum such as ce+kl or ce=0.4,kl=0.6.")
    ] = "ce"
    lora: Annotated[int | None, typer.Option(metavar="RANK", min=1, help="Train low-rank updates only.")] = None
    lora_alpha: Annotated[float | None, typer.Option(help="Else twice the rank.")] = None
    lora_targets: Annotated[
        str, typer.Option(metavar="attention|all|NAMES", help="What gets updates; NAMES as q_proj,v_proj.")
    ] = "all"
    lora_head: Annotated[
        str, typer.Option(metavar="whole|low_rank", help="How the head is trained beside the updates.")
    ] = "whole"
    adapter: Annotated[bool, typer.Option("--adapter", help="Save the updates in PEFT's layout too.")] = False


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Of decoders with a head at each layer."""

    start_layer: Annotated[
        int | None, typer.Option(min=1, help="Put heads on a raw language model, from this layer on.")
    ] = None
    inner_teacher: Annotated[
        str | None,
        typer.Option(metavar="none|last|eighth|above", help="Which layer teaches those below; else as published."),
    ] = None
    taught: Annotated[str, typer.Option(metavar="all|last", help="Layers that a teacher's scores teach.")] = "all"
    compress_layers: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Merge passage tokens there, in some steps, by a ratio.")
    ] = None
    compress_ratios: Annotated[str, typer.Option(metavar="N,N,...", help="One is drawn each step.")] = "1,2,4,8"
    compress_always: Annotated[
        bool, typer.Option("--compress-always", help="At all layers and by the one ratio in every step.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class VectorFlags:
    """Of embedders and late interaction."""

    method: Annotated[
        str, typer.Option("--as", metavar="reranker|embedder|colbert", help="What the model becomes.")
    ] = "reranker"
    parts: Annotated[
        str, typer.Option(metavar="dense,sparse,colbert", help="Of an embedder; all three are BGE-M3's.")
    ] = "dense"
    score_temperature: Annotated[
        float | None, typer.Option(help="Divides similarities; else 0.02, of colbert 1.")
    ] = None
    dimensions: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Matryoshka: vectors cut to each learn too.")
    ] = None
    in_batch: Annotated[
        str | None,
        typer.Option(metavar="none|others|all", help="Passages of other queries that are candidates too; else all."),
    ] = None
    self_distillation_from: Annotated[
        int | None, typer.Option(min=0, metavar="STEP", help="From there on the sum of the parts teaches each.")
    ] = None
    max_query_length: Annotated[int | None, typer.Option(min=1, help="Most tokens of a query.")] = None


@dataclass(frozen=True, kw_only=True)
class Course:
    """How it is trained; each field is named as the field of TrainingSettings."""

    temperature: Annotated[float, typer.Option(help="Of kl.")] = 1.0
    num_negatives: Annotated[int, typer.Option("--negatives", min=1, help="Negatives beside each positive.")] = 7
    epochs: Annotated[int, typer.Option(min=1, help="Times that every query is seen.")] = 1
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps.")] = None
    batch: Annotated[int, typer.Option(min=1, help="Queries per step, over all processes.")] = 16
    learning_rate: Annotated[float, typer.Option("--lr", help="Highest learning rate.")] = 2e-5
    schedule: Annotated[str, typer.Option(metavar="linear|cosine|constant", help="Of the rate.")] = "linear"
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.1
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.01
    max_gradient_norm: Annotated[float, typer.Option("--clip", help="Highest norm of the gradient.")] = 1.0
    max_length: Annotated[int | None, typer.Option(min=1, help="Most tokens of a pair; else 512.")] = None
    has_frozen_words: Annotated[bool, typer.Option("--freeze-words", help="Leave the word embeddings.")] = False
    has_gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False
    token_budget: Annotated[int | None, typer.Option(min=1, help="Tokens in one forward pass.")] = None
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where it is trained.")] = "auto"
    dtype: Annotated[
        str, typer.Option(metavar="auto|float32|bfloat16", help="Of the computation; weights are float32.")
    ] = "auto"
    seed: Annotated[int, typer.Option(help="Of order, draws and new weights.")] = 1
    eval_every: Annotated[int | None, typer.Option(min=1, help="Steps; else at the end of an epoch.")] = None
    measure: Annotated[str, typer.Option(metavar="nDCG@10|MRR@10", help="By which the best is kept.")] = "nDCG@10"
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200
    log_every: Annotated[int, typer.Option(min=1, help="Steps between lines.")] = 10
    has_tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events into OUTPUT/training.")] = False


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where data comes from, beside its paths: a teacher, how negatives are mined, a set to measure on."""

    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Scores for kl and margin_mse: a reranker, or embedder:NAME; else the data's."
        ),
    ] = None
    search: Search = "bm25"
    split: JudgedSplit = None
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out lines that are wrong.")] = False
    dev: Annotated[str | None, typer.Option("--eval", metavar="DATA", help="A set to measure on.")] = None
    dev_split: Annotated[str | None, typer.Option("--eval-split", help="Its split; else dev, if there is one.")] = (
        None
    )
    dev_depth: Annotated[int, typer.Option("--eval-depth", min=1, help="BM25 candidates to rerank.")] = 30
    dev_queries: Annotated[
        int | None, typer.Option("--eval-queries", min=1, help="Only so many queries, drawn once.")
    ] = None


def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A reranker of any kind, or a plain encoder.")],
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="FlagEmbedding's JSONL, in files or folders; BEIR folders.")
    ],
    *,
    folder: Annotated[str, typer.Option("--output", metavar="FOLDER", help="Folder of the result.")],
    loss: LossFlags,
    layers: Layers,
    vectors: VectorFlags,
    course: Course,
    sources: Sources,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run in OUTPUT was stopped.")] = False,
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

    settings = _settings(loss, layers, vectors, course)
    target = Path(folder).expanduser()
    processes = open_processes(settings.device)
    with claimed(target) if processes.is_first else nullcontext():
        check_output(target, is_resumed=resume)
        examples = _data(data, target, settings, sources, processes)
        if processes.is_first:
            _say(described(examples))
        dev = _dev_set(sources)
        with wrong_use():
            trainer = Trainer(model, examples, target, settings=settings, dev=dev)
        if trainer.is_first:
            _say(trainer.described())
        result = trainer.train(resume=resume)
    if not trainer.is_first:
        return
    if not result.is_finished:
        _say([f"stopped after step {result.step} of {result.num_steps}; all is saved. To go on: {_again()}"])
        raise KeyboardInterrupt
    _tell(result, dev, settings, is_json=json)


def _settings(loss: LossFlags, layers: Layers, vectors: VectorFlags, course: Course) -> TrainingSettings:
    from secondpass.training.settings import LoraSettings, TrainingSettings, parse_losses

    with wrong_use():
        updates = None
        if loss.lora is not None:
            alpha = loss.lora_alpha or 2.0 * loss.lora
            updates = LoraSettings(
                rank=loss.lora,
                alpha=alpha,
                targets=loss.lora_targets,
                head=loss.lora_head,
                saves_adapter=loss.adapter,
            )
        return TrainingSettings(
            losses=parse_losses(loss.loss),
            lora=updates,
            layers=_layers(layers),
            compression=_compression(layers),
            embedder=_embedder(vectors),
            colbert=_colbert(vectors),
            max_query_length=vectors.max_query_length,
            **asdict(course),
        )


def _layers(flags: Layers) -> LayerSettings | None:
    from secondpass.training.settings import LayerSettings

    if flags.taught not in ("all", "last"):
        raise ValueError(f"--taught is {flags.taught!r}; give all or last")
    if (flags.start_layer, flags.inner_teacher, flags.taught) == (None, None, "all"):
        return None
    return LayerSettings(
        start_layer=flags.start_layer, inner_teacher=flags.inner_teacher, teaches_all=flags.taught == "all"
    )


def _embedder(flags: VectorFlags) -> EmbedderSettings | None:
    from secondpass.training.settings import EmbedderSettings

    if flags.method not in ("reranker", "embedder", "colbert"):
        raise ValueError(f"--as is {flags.method!r}; give reranker, embedder or colbert")
    if flags.method != "embedder":
        return None
    return EmbedderSettings(
        parts=tuple(part.strip() for part in flags.parts.split(",")),
        temperature=flags.score_temperature or EmbedderSettings.temperature,
        dimensions=() if flags.dimensions is None else _numbers("--dimensions", flags.dimensions),
        in_batch=flags.in_batch or EmbedderSettings.in_batch,
        self_distillation_from=flags.self_distillation_from,
    )


def _colbert(flags: VectorFlags) -> LateInteractionSettings | None:
    from secondpass.training.settings import LateInteractionSettings

    if flags.method != "colbert":
        return None
    return LateInteractionSettings(
        in_batch=flags.in_batch or LateInteractionSettings.in_batch,
        temperature=flags.score_temperature or LateInteractionSettings.temperature,
    )


def _compression(flags: Layers) -> CompressionSettings | None:
    from secondpass.training.settings import CompressionSettings

    if flags.compress_layers is None:
        return None
    return CompressionSettings(
        layers=_numbers("--compress-layers", flags.compress_layers),
        ratios=_numbers("--compress-ratios", flags.compress_ratios),
        is_fixed=flags.compress_always,
    )


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{flag} is {text!r}; give numbers with commas between, as 8,16") from error


def _data(
    paths: Sequence[str], folder: Path, settings: TrainingSettings, sources: Sources, processes: Processes
) -> Data:
    """The examples; where they have to be mined or taught, that is done once and kept beside the run."""
    from secondpass.training.data import read_data

    if sources.teacher is not None and not settings.needs_teacher:
        raise WrongUse("a teacher is named, but no loss learns from one; add kl or margin_mse, as in --loss ce+kl")
    folders, files = mine.parted(paths)
    if not folders and sources.teacher is None:
        return read_data(files, is_skipping=sources.skip_bad)
    file = folder / "training" / PREPARED
    if processes.is_first:
        _prepare_once(_Preparation(folders=folders, files=files, settings=settings, sources=sources), file)
    processes.wait()
    return replace(read_data([file]), names=tuple(paths))


@dataclass(frozen=True, kw_only=True)
class _Preparation:
    """Data that has to be mined or taught before it can be learnt from."""

    folders: Sequence[Path]
    files: Sequence[Path]
    settings: TrainingSettings
    sources: Sources

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
            "teacher": self.sources.teacher,
            "mining": asdict(self.miner) | asdict(self.choice.settings()),
            "is_skipping": self.sources.skip_bad,
        }


def _prepare_once(preparation: _Preparation, file: Path) -> None:
    """Prepare the data, unless it is there and was prepared from the same. Raises TrainingError where it was not."""
    import json

    from secondpass.checkpoint.atomic import write_text

    note, how = file.with_name(NOTE), preparation.as_json()
    if file.exists() and note.exists():
        if json.loads(note.read_text("utf-8")) == how:
            return
        if (file.parent / "run.json").exists():
            raise TrainingError(f"{file.parent.parent} holds a run with other data; give another folder")
    _prepare(preparation, file)
    write_text(note, json.dumps(how, indent=2, ensure_ascii=False) + "\n")


def _prepare(preparation: _Preparation, file: Path) -> None:
    from secondpass.training.data import read_data, save_data

    sources, opening = preparation.sources, preparation.opening
    examples = list(read_data(preparation.files, is_skipping=sources.skip_bad).examples) if preparation.files else []
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
