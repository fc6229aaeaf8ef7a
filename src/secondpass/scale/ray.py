"""Scoring on Ray: a model in each actor, blocks of rows dealt to them (ray 2.60, extra `ray`).

Ray restarts an actor that dies and deals its rows anew; a block is written whole or not at all, so no row is lost or
doubled. Nothing here starts Ray: call `ray.init` first, with RAY_USAGE_STATS_ENABLED=0 in the environment, since Ray
reports its use by default.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.errors import MissingExtra, SecondpassError
from secondpass.scale.batch import Block, Job, ScoreBatch, ScoreBlock
from secondpass.scoring.open import ModelOptions
from secondpass.types import Progress

if TYPE_CHECKING:
    from ray.data import Dataset

OLDEST = (2, 60)  # the first that was tried; older ones have no callbacks here, custom policies or surge
STALL_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Actors:
    """How many workers there are, and what each has: processors (a share of one is a share of its time), GPUs."""

    min_size: int = 1
    max_size: int = 2
    cpus: float = 1.0
    gpus: float = 0.0

    @classmethod
    def of(cls, size: str, *, cpus: float = 1.0, gpus: float = 0.0) -> Actors:
        """Of a number, or of two as in 2..8. Raises ValueError."""
        least, dots, most = size.partition("..")
        if not least.isdecimal() or (dots and not most.isdecimal()):
            raise ValueError(f"{size!r} is no number; give one, or two as in 2..8")
        return cls(min_size=int(least), max_size=int(most or least), cpus=cpus, gpus=gpus)

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.max_size:
            raise ValueError(f"{self.min_size} to {self.max_size} actors; give 1 or more, the smaller first")


def over_devices(device: str) -> tuple[str, Actors]:
    """What each actor is told, and the actors, of a list as in cuda:0,cuda:1; a Ray that starts here sees no other.

    Raises ValueError for a list of several kinds.
    """
    kinds, _, indices = zip(*(each.strip().partition(":") for each in device.split(",")), strict=True)
    if len(set(kinds)) > 1 or kinds[0] not in ("cuda", "cpu"):
        raise ValueError(f"device is {device!r}; give several of one kind, as in cuda:0,cuda:1")
    if kinds[0] == "cuda":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [index or "0" for index in indices]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(
            names if seen is None else _shown(seen.split(","), names, device)
        )
    return kinds[0], Actors(min_size=len(kinds), max_size=len(kinds), gpus=float(kinds[0] == "cuda"))


def _shown(seen: Sequence[str], names: Sequence[str], device: str) -> list[str]:
    """The devices by the names that they have outside of this process."""
    try:
        return [seen[int(name)] for name in names]
    except (ValueError, IndexError) as error:
        raise ValueError(f"device is {device!r}; CUDA_VISIBLE_DEVICES shows {', '.join(seen)}") from error


def import_ray() -> Any:
    """The module ray. Raises MissingExtra where it is not there, SecondpassError where it is too old."""
    if find_spec("ray") is None:
        raise MissingExtra("ray", "ray")
    import ray

    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < OLDEST:
        raise SecondpassError(
            f"ray {ray.__version__} is too old; {OLDEST[0]}.{OLDEST[1]} or newer is needed: "
            'pip install --upgrade "secondpass[ray]"'
        )
    return ray


def start_ray(address: str | None = None) -> Any:
    """The module ray, connected to the cluster at `address`; None: one that starts here and ends with the process.

    Raises MissingExtra, and SecondpassError where no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use otherwise
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "secondpass.scale.serving:around_proxy")
    ray = import_ray()
    if not ray.is_initialized():
        try:
            quiet = {"log_to_driver": False, "logging_level": "warning"}
            if address is None:
                ray.init("local", include_dashboard=False, **quiet)
            else:
                ray.init(address, **quiet)
        except Exception as error:  # Ray raises no narrower one where a node does not start
            raise SecondpassError(f"no Ray at {address or 'this machine'}: {error}") from error
    return ray


def score_dataset(
    dataset: Dataset,
    model: ModelOptions | str | Path = "default",
    *,
    query: str = "query",
    document: str = "document",
    actors: Actors | None = None,
    rows_per_batch: int = 2000,
    stall_s: float = STALL_S,
) -> Dataset:
    """The dataset with columns score (raw logits) and probability; lazy, as Ray's own operators are.

    Whatever Ray reads and writes is an input and an output: JSON Lines, parquet, object stores. Sort by query first,
    so that a batch holds whole lists: repeated queries are then tokenised once. What is made of it ends with
    SecondpassError where Ray finishes nothing for stall_s, see StallLimit.
    """
    import_ray()
    return _bounded(dataset, stall_s).map_batches(
        ScoreBatch,
        fn_constructor_args=(model,),
        fn_constructor_kwargs={"query": query, "document": document},
        batch_size=rows_per_batch,
        **_placement(actors or Actors()),
    )


def score_blocks(job: Job, actors: Actors, progress: Progress | None = None, *, stall_s: float = STALL_S) -> None:
    """Score the blocks that the job misses, each by the actor that has room.

    Raises SecondpassError where none is finished for stall_s; those that were are kept.
    """
    ray = import_ray()
    missing, total = job.missing(), len(job.blocks)
    if not missing:
        return
    rows = [{"index": block.index, "block": _plain(block)} for block in missing]
    blocks = _bounded(ray.data.from_items(rows, override_num_blocks=len(rows)), stall_s)
    blocks.context.enable_progress_bars = False  # progress is told below
    dataset = blocks.map_batches(
        _BlockActor,
        fn_constructor_args=(str(job.folder.absolute()), job.options),
        batch_size=1,
        **_placement(actors),
    )
    done = total - len(missing)
    for _ in dataset.iter_rows():
        done += 1
        if progress is not None:
            progress(done, total)


@dataclass
class StallLimit:
    """Ends a run of Ray Data in which no task is finished for stall_s, or ten times the longest wait before.

    Ray itself waits for ever where there is no room for an actor, and where a lost node held rows: reading them anew
    needs a processor, and the actors that wait for these rows hold all that are left. A run whose results nobody
    takes is not stalled. It is an ExecutionCallback of Ray's, which asks for no class.
    """

    stall_s: float = STALL_S
    _finished: int = -1
    _since: float = field(default_factory=time.monotonic)
    _longest: float = 0.0

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing was finished yet."""

    def on_execution_step(self, executor: Any) -> None:
        """Raises SecondpassError."""
        finished = sum(operator.metrics.num_tasks_finished for operator in executor._topology)
        now = time.monotonic()
        waited = now - self._since
        if executor._output_node[1].output_queue.has_next():
            self._since = now
        elif finished != self._finished:
            self._longest = max(self._longest, waited) if self._finished > 0 else 0.0
            self._finished, self._since = finished, now
        elif waited > max(self.stall_s, 10 * self._longest):
            raise SecondpassError(_stalled(waited))

    def after_execution_succeeds(self, executor: Any) -> None:
        """All is well."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Ray says so."""


def _stalled(waited: float) -> str:
    import ray

    kinds = ("CPU", "GPU")
    there, free = ray.cluster_resources(), ray.available_resources()
    room = ", ".join(f"{free.get(kind, 0.0):g} of {there.get(kind, 0.0):g} {kind}s" for kind in kinds)
    return (
        f"Ray has finished nothing for {waited:.0f} s, and {room} are free. Where a node was lost, too little room "
        "is left for the actors, or to read its rows anew: call it again, with fewer actors or more nodes. Where "
        "a block takes so long, give fewer rows to a block, or a longer stall_s"
    )


def _bounded(dataset: Dataset, stall_s: float) -> Dataset:
    """The dataset, what is made of which ends where it stalls."""
    context = dataset.context
    others = [
        each for each in context.custom_execution_callback_classes if getattr(each, "func", None) is not StallLimit
    ]
    context.custom_execution_callback_classes = [*others, partial(StallLimit, stall_s)]
    return dataset


class _BlockActor:
    """A ScoreBlock as Ray Data calls it: a batch of one block in, its outcome out."""

    def __init__(self, folder: str, options: ModelOptions) -> None:
        self._score = ScoreBlock(folder=Path(folder), options=options)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[int]]:
        outcomes = [self._score(_block(plain)) for plain in batch["block"]]
        return {name: [getattr(each, name) for each in outcomes] for name in ("block", "scored", "failed")}


def _plain(block: Block) -> dict[str, Any]:
    return {**vars(block), "file": str(block.file.absolute())}


def _block(plain: Mapping[str, Any]) -> Block:
    return Block(**{**plain, "file": Path(plain["file"])})


def _placement(actors: Actors) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    pool = ActorPoolStrategy(min_size=actors.min_size, max_size=actors.max_size)
    return {"compute": pool, "num_cpus": actors.cpus, "num_gpus": actors.gpus or None}
