"""`secondpass score`: files of pairs to scores, on one machine or on Ray."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secondpass.atomic import at_home
from secondpass.command.flags import Model, On, Opening, Revision, SetSplit, refuse_idle, wrong_use
from secondpass.command.output import watched
from secondpass.command.plain import argument, option
from secondpass.command.sets import FirstStage, SetFlags, Sets
from secondpass.errors import WrongUse

if TYPE_CHECKING:
    from secondpass.scale.batch import FolderRows, Job


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Who scores."""

    on: Annotated[On, option(help="This process, or actors on Ray.")] = On.process
    address: Annotated[str | None, option(help="Of a running Ray cluster; else a local one is started.")] = None
    actors: Annotated[int, option(min=1, help="Models that are opened on Ray.")] = 2
    cpus: Annotated[float, option(min=0.0, help="Processors of an actor.")] = 1.0
    gpus: Annotated[float, option(min=0.0, help="GPUs of an actor.")] = 0.0
    stall_s: Annotated[float, option(min=1.0, help="Ray is given up where no block is finished for so long.")] = (
        1800.0
    )

    def over(self, device: str) -> tuple[Placement, str]:
        """Where it is scored, and what each model is told, where the device is a list: on a local Ray."""
        if "," not in device:
            if self.on is On.process:
                with wrong_use():
                    refuse_idle(self, Placement(), ("address", "actors", "cpus", "gpus", "stall_s"), "--on ray")
            return self, device
        from secondpass.scale.ray import over_devices

        with wrong_use():
            device, actors = over_devices(device)
        return replace(self, on=On.ray, actors=actors.max_size, gpus=actors.gpus), device

    def ready(self) -> None:
        """Raises what keeps Ray from starting, before a folder is a job's."""
        if self.on is On.ray:
            from secondpass.scale.ray import start_ray

            start_ray(self.address)

    def run(self, job: Job) -> None:
        from secondpass.scale.batch import ScoreBlock

        with watched("scoring") as progress:
            if self.on is On.process:
                score, total = ScoreBlock(folder=job.folder, options=job.options), len(job.blocks)
                missing = job.missing()
                for done, block in enumerate(missing, total - len(missing) + 1):
                    if not job.part(block.index).is_file():  # another process may be at work on the same job
                        score(block)
                    if progress is not None:
                        progress(done, total)
                return
            from secondpass.scale.ray import Actors, score_blocks

            actors = Actors(min_size=self.actors, max_size=self.actors, cpus=self.cpus, gpus=self.gpus)
            score_blocks(job, actors, progress, stall_s=self.stall_s)


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """What is paired with the queries of a set."""

    first_stage: FirstStage = "bm25"
    depth: Annotated[int, option(min=1, help="Candidates of each query of a folder.")] = 100
    split: SetSplit = None

    def rows(self, opening: Opening) -> FolderRows:
        from secondpass.scale.batch import FolderRows

        def read(folder: Path) -> Iterator[Mapping[str, str]]:
            flags = SetFlags(first_stage=self.first_stage, split=self.split)
            for dataset, run in Sets(sources=[str(folder)], flags=flags, opening=opening).each(self.depth):
                for query, found in run.items():
                    for name in found:
                        yield {
                            "query_id": query,
                            "passage_id": name,
                            "query": dataset.queries[query],
                            "passage": dataset.documents[name],
                        }

        return FolderRows(read=read, choices=asdict(self))


def score(
    inputs: Annotated[
        list[str], argument(metavar="FILE", help="JSON Lines, CSV or parquet with pairs, BEIR folders, - for stdin.")
    ],
    *,
    output: Annotated[str, option(metavar="FOLDER", help="Where the scores go.")],
    model: Model = "default",
    revision: Revision = None,
    rows: Annotated[int, option(min=1, help="Rows of a block, which is finished or not.")] = 2000,
    pairing: Pairing,
    placement: Placement,
    opening: Opening,
) -> None:
    """Score pairs of query and passage, millions of them.

    Rows are objects with "query" and "passage" (or document, text); they come out with score (raw logit) and
    probability, in part-00000.jsonl and on. Of a BEIR folder each query is paired with its candidates. Rows that
    cannot be scored go to errors/ with the reason; the exit code is then 1. Interrupted, it goes on where it stopped
    when it is called again.
    """
    from secondpass.scale.batch import FACTS, open_job
    from secondpass.scoring.open import ModelOptions

    files = [Path("/dev/stdin") if name == "-" else at_home(name) for name in inputs]
    for file in files:
        if not file.exists():
            raise WrongUse(f"{file}: no such file or folder")
    placement, device = placement.over(opening.device)
    options = ModelOptions(
        model=model,
        revision=revision,
        engine=opening.engine,
        device=device,
        dtype=opening.dtype,
        max_length=opening.max_length,
        local_files_only=opening.local_files_only,
    )
    if placement.on is On.process and not (at_home(output) / FACTS).is_file():
        opening.reranker(model, revision=revision).close()  # what it cannot do is said before the folder is a job's
    placement.ready()
    folders = pairing.rows(opening) if any(file.is_dir() for file in files) else None
    with wrong_use():
        job = open_job(files, at_home(output), options, rows_per_block=rows, folders=folders)
    placement.run(job)
    scored, failed = job.totals()
    job.close()
    sys.stderr.write(f"{scored:,} pairs with scores in {job.folder}\n")
    if failed:
        sys.stderr.write(f"{failed:,} rows could not be scored: {job.folder / 'errors'} says why\n")
        raise SystemExit(1)
