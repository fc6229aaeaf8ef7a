"""`secondpass distil`: a small reranker learns a large one's orders on one's own texts, and is exported."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secondpass.atomic import at_home
from secondpass.command import output
from secondpass.command.flags import Json, Opening, TrainedIn, TrainedOn, output_folder, wrong_use
from secondpass.command.plain import argument, option
from secondpass.errors import MissingExtra, TrainingError, WrongUse

if TYPE_CHECKING:
    from secondpass.reranker import Reranker
    from secondpass.training.data import Data, Example
    from secondpass.training.distilling import MadeQuery
    from secondpass.training.settings import TrainingSettings
    from secondpass.types import Scorer

TIMED = 20  # held-out queries by which both are timed
INT8 = "int8"  # the folder of the export in the result


@dataclass(frozen=True, kw_only=True)
class Making:
    """Queries, and what is kept of them."""

    queries: Annotated[
        list[str] | None,
        option(metavar="FILE", help="Queries, one a line: a log, or an LLM's; repeat it. Else made of the texts."),
    ] = None
    max_queries: Annotated[int, option(min=2, help="Most queries, drawn by the seed.")] = 5000
    depth: Annotated[int, option(min=2, help="BM25 candidates that the teacher judges.")] = 20
    min_spread: Annotated[float, option(help="A teacher's scores of a query lie at least so far apart.")] = 1.0
    held_out: Annotated[float, option(help="Share of queries that are not learnt from.")] = 0.1

    def check(self) -> None:
        if not 0 < self.held_out < 1:
            raise WrongUse(f"--held-out {self.held_out}: give more than 0 and less than 1")
        if not self.min_spread >= 0:
            raise WrongUse(f"--min-spread {self.min_spread}: give 0 or more")


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """How the student is trained; each field is named as the field of TrainingSettings."""

    epochs: Annotated[int, option(min=1, help="Times that every query is seen.")] = 2
    batch: Annotated[int, option(min=1, help="Queries per step.")] = 16
    learning_rate: Annotated[float, option("--lr", help="Highest learning rate.")] = 5e-5
    num_negatives: Annotated[int, option("--negatives", min=1, help="Beside the teacher's best.")] = 11
    temperature: Annotated[float, option(help="Of both softmaxes.")] = 1.0
    max_length: Annotated[int | None, option(min=1, help="Most tokens of a pair; else 512.")] = None
    device: TrainedOn = "auto"
    dtype: TrainedIn = "auto"
    seed: Annotated[int, option(min=0, help="Of order and draws.")] = 1

    def settings(self) -> TrainingSettings:
        from secondpass.training.settings import TrainingSettings

        with wrong_use():
            return TrainingSettings(losses={"kl": 1.0}, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One of the models on the held-out queries."""

    ndcg: float
    first_five: float
    seconds_per_query: float
    bytes: int


def distil(
    paths: Annotated[list[str], argument(metavar="TEXTS", help="Files and folders of plain texts.")],
    *,
    teacher: Annotated[str, option(metavar="MODEL", help="The large reranker.")],
    student: Annotated[str, option(metavar="MODEL", help="The small one, or a plain encoder.")] = "default",
    folder: Annotated[str, option("--output", metavar="FOLDER", help="Folder of the result.")],
    making: Making,
    lessons: Lessons,
    resume: Annotated[bool, option("--resume", help="Go on where a run in OUTPUT was stopped.")] = False,
    json: Json = False,
) -> None:
    """Teach a small reranker a large one's orders on your own texts, without labels, and export it to int8.

    What the teacher has judged is kept: given again after Ctrl-C, the command goes on.
    """
    if find_spec("torch") is None:
        raise MissingExtra("torch", "train")
    from secondpass.training.checkpointing import check_output, claimed, is_finished
    from secondpass.training.distilling import parted
    from secondpass.training.processes import open_processes

    making.check()
    settings, target = lessons.settings(), output_folder(folder)
    if open_processes(lessons.device).count > 1:
        raise TrainingError("distil runs in one process; launch `secondpass train` in several on data with scores")
    with claimed(target):
        is_trained = resume and is_finished(target)  # what is left is the report
        if not is_trained:
            check_output(target, is_resumed=resume)
        opening = Opening(device=lessons.device)
        beginner = _beginner(student, lessons)  # opened before the teacher's hours, so that they are not in vain
        scorer = opening.reranker(teacher)
        examples = _judged(paths, target, scorer, teacher, making, lessons)
        with wrong_use():
            learnt, kept = parted(examples, share=making.held_out, seed=lessons.seed)
        _say([f"{len(learnt):,} queries to learn from, {len(kept):,} held out"])
        before = None if beginner is None else _outcome(kept, beginner, _size(student))
        if is_trained:
            _check_same(target, learnt, student)
        else:
            _train(student, learnt, target, settings, resume)
    _say(["on the held-out queries, against the teacher's order:"])
    found = {"teacher": _told("teacher", _outcome(kept, scorer, _size(teacher)))}
    if before is not None:
        found["student before"] = _told("student before", before)
    found["student"] = _told("student", _outcome(kept, opening.reranker(str(target)), _bytes(target)))
    found |= _exported(target, kept)
    if json:
        output.as_json({"folder": str(target), **{name: asdict(one) for name, one in found.items()}})
    else:
        sys.stdout.write(f"{target}\n")


def _beginner(student: str, lessons: Lessons) -> Reranker | None:
    """The student as it is; None for a plain encoder, which has no scores yet."""
    from secondpass.checkpoint.checkpoint import open_checkpoint
    from secondpass.training.model import is_reranker

    if not is_reranker(open_checkpoint(student)):
        return None
    return Opening(device=lessons.device, max_length=lessons.max_length).reranker(student)


def _check_same(target: Path, learnt: Sequence[Example], student: str) -> None:
    """Raises TrainingError where the finished run learnt from other queries, which may be among the held-out ones."""
    from secondpass.checkpoint.checkpoint import open_checkpoint
    from secondpass.json_file import read_json
    from secondpass.training.checkpointing import RUN, is_same_model
    from secondpass.training.data import Data

    run = read_json(target / "training" / RUN)
    is_same = is_same_model(str(run.get("model")), open_checkpoint(student).name)
    if not is_same or run.get("data") != Data(examples=learnt).fingerprint:
        raise TrainingError(
            f"{target} holds the result of a run with another student, texts, queries or draws; for its report give "
            "the command as it was, else another folder"
        )


def _judged(
    paths: Sequence[str], target: Path, scorer: Scorer, teacher: str, making: Making, lessons: Lessons
) -> list[Example]:
    """Candidates of all queries with the teacher's scores, those that can be learnt from."""
    from secondpass.training.data import Data
    from secondpass.training.distilling import QueryRule, candidates, judged, learnable
    from secondpass.training.mining import continued

    texts, queries = _queries(paths, making, lessons.seed)
    examples = candidates(queries, texts, depth=making.depth)
    _say([f"{len(texts):,} passages, {len(examples):,} queries with candidates"])
    if not examples:
        raise TrainingError("no query finds two passages; give more texts, or queries of your own")
    _estimate(examples, scorer, lessons)
    made = [example.source == "made" for example in examples]
    key = f"{teacher} {Data(examples=examples).fingerprint}"

    def make(start: int) -> Iterator[Example]:
        return judged(examples, scorer, start=start)

    with output.watched("asking the teacher") as progress:
        scored = continued(target / "training" / "judged", key, len(examples), make, progress=progress)
    found = learnable(scored, made, QueryRule(min_spread=making.min_spread))
    _say([f"{len(examples) - len(found):,} queries left out: the teacher sees no difference, or another answer"])
    return found


def _queries(paths: Sequence[str], making: Making, seed: int) -> tuple[list[str], list[MadeQuery]]:
    """Passages, and the queries that are given, or made of them."""
    import numpy as np

    from secondpass.data.files import lines
    from secondpass.data.passages import ReadOptions, read_passages
    from secondpass.text.documents import clean_query
    from secondpass.training.data import folded
    from secondpass.training.distilling import MadeQuery, made_queries

    inputs = read_passages(paths, (), ReadOptions())
    _say([*inputs.problems, *inputs.left_out])
    documents = [passage.document for passage in inputs.passages if passage.document.text.strip()]
    texts = [clean_query(document.text) for document in documents]
    if making.queries:
        files = [at_home(name) for name in making.queries]
        asked = [clean_query(line.strip()) for file in files for _, line in lines(file)]
        queries = [MadeQuery(query) for query in {folded(query): query for query in reversed(asked)}.values()][::-1]
    else:
        queries = made_queries(texts, [str(document.fields.get("heading", "")) for document in documents])
    if len(queries) > making.max_queries:
        chosen = np.random.default_rng(seed).choice(len(queries), making.max_queries, replace=False)
        queries = [queries[index] for index in sorted(chosen.tolist())]
    return texts, queries


def _estimate(examples: Sequence[Example], scorer: Scorer, lessons: Lessons) -> None:
    """How long it will take, by a few queries of the teacher; the student's part is told when it starts."""
    some = examples[:: max(len(examples) // 3, 1)][:3]
    for example in (some[0], *some):  # the first prepares memory and kernels
        if example is some[0]:
            began = time.perf_counter()
        scorer.score(example.query, [*example.positives, *example.negatives])
    minutes = (time.perf_counter() - began) / len(some) * len(examples) / 60
    _say([f"the teacher will take about {minutes:.1f} minutes; what is judged is kept"])


def _train(student: str, examples: Sequence[Example], target: Path, settings: TrainingSettings, resume: bool) -> None:
    from secondpass.training.data import Data
    from secondpass.training.trainer import Trainer

    with wrong_use():
        data: Data = Data(examples=examples, names=("queries made of own texts",))
        trainer = Trainer(student, data, target, settings=settings)
    _say(trainer.described())
    result = trainer.train(resume=resume)
    if result.signal:  # also at the last step: what is left takes a while
        arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
        again = shlex.join(["secondpass", *arguments, "--resume"])
        _say([f"stopped after step {result.step} of {result.num_steps}; all is saved. To go on: {again}"])
        raise KeyboardInterrupt(result.signal)


def _outcome(examples: Sequence[Example], scorer: Scorer, size: int) -> Standing:
    """On all held-out queries, and timed on some of them."""
    from secondpass.training.distilling import agreement

    found = agreement(examples, scorer)
    some = examples[:TIMED]
    began = time.perf_counter()
    for example in some:
        scorer.score(example.query, [*example.positives, *example.negatives])
    return Standing(**asdict(found), seconds_per_query=(time.perf_counter() - began) / len(some), bytes=size)


def _exported(target: Path, examples: Sequence[Example]) -> dict[str, Standing]:
    """The int8 graph and how it does; nothing where nncf is not installed, which makes it, or for a decoder."""
    if find_spec("nncf") is None:
        _say(['not exported: nncf is not installed; pip install "secondpass[export]", then secondpass export'])
        return {}
    from secondpass.checkpoint.checkpoint import open_checkpoint
    from secondpass.checkpoint.export.export import export
    from secondpass.reranker import Reranker

    try:
        folder = export(open_checkpoint(target), target / INT8, dtype="int8", overwrite=True)
    except ValueError as error:  # a decoder; what was trained and measured is told all the same
        _say([f"not exported: {error}"])
        return {}
    scorer = Reranker(folder, engine="openvino")
    return {"student, int8": _told("student, int8", _outcome(examples, scorer, _bytes(folder)))}


def _size(model: str) -> int:
    from secondpass.checkpoint.checkpoint import open_checkpoint

    return _bytes(open_checkpoint(model).folder)


def _bytes(folder: Path) -> int:
    """Of weights and graphs, without what a run or an export left beside them."""
    found = [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("openvino*/*"), *folder.glob("*.xml")]
    return sum(file.stat().st_size for file in found if file.is_file())


def _told(name: str, one: Standing) -> Standing:
    """Said as soon as it is known, so that it is not lost with what comes after it."""
    _say(
        [
            f"{name}: nDCG@10 {one.ndcg:.4f}, first five shared {one.first_five:.0%}, "
            f"{one.seconds_per_query * 1000:,.1f} ms a query, {one.bytes / 1e6:,.1f} MB"
        ]
    )
    return one


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()
