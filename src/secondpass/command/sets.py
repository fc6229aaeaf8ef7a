"""What eval, calibrate and score share: the sets they are given, and what finds their candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from secondpass.command.flags import EMBEDDER, Opening, Seed, SetSplit
from secondpass.command.output import watched
from secondpass.command.plain import option
from secondpass.errors import WrongUse

if TYPE_CHECKING:
    from secondpass.evaluation.datasets.dataset import Dataset
    from secondpass.evaluation.datasets.trec import Run

FIRST_STAGES = "bm25, run:FILE or embedder:NAME"


FirstStage = Annotated[
    str, option(metavar="bm25|run:FILE|embedder:NAME", help="FILE: a path, or in the folder of the set.")
]


@dataclass(frozen=True, kw_only=True)
class SetFlags:
    first_stage: FirstStage = "bm25"
    num_queries: Annotated[
        int | None, option("--queries", min=1, help="Only so many queries of each set, drawn once.")
    ] = None
    split: SetSplit = None
    seed: Seed = 0
    cache: Annotated[str | None, option(metavar="FILE", help="Keep scores there, to go on or run again.")] = None


@dataclass(frozen=True, kw_only=True)
class Sets:
    """The sets of a command, and how an embedder that finds candidates is opened."""

    sources: Sequence[str]
    flags: SetFlags
    opening: Opening

    def each(self, depth: int) -> Iterator[tuple[Dataset, Run]]:
        """Each set with its candidates. Raises WrongUse, DataError or MissingExtra."""
        from secondpass.evaluation.first_stage import bm25_run, given_run, vector_run

        kind, _, name = self.flags.first_stage.partition(":")
        if kind not in ("bm25", "run", "embedder") or (kind == "bm25") == bool(name):
            raise WrongUse(f"--first-stage {self.flags.first_stage}: give {FIRST_STAGES}")
        embedder = self.opening.embedder(name) if f"{kind}:" == EMBEDDER else None
        for source in self.sources:
            with watched(f"reading {source}") as progress:
                if kind == "run":
                    dataset, run = self._with_run(source, name)
                    yield dataset, given_run(dataset, run, depth)
                    continue
                dataset = self._load(source)
                if embedder is None:
                    yield dataset, bm25_run(dataset, depth)
                else:
                    yield dataset, vector_run(dataset, embedder, depth, progress)

    def _with_run(self, source: str, name: str) -> tuple[Dataset, Run]:
        """A set with only those documents in memory that the run names."""
        from secondpass.evaluation.datasets.trec import read_run
        from secondpass.evaluation.first_stage import run_file

        run = read_run(run_file(name, source))
        return self._load(source, {document for scores in run.values() for document in scores}), run

    def _load(self, source: str, wanted: set[str] | None = None) -> Dataset:
        from secondpass.evaluation.datasets.load import load_dataset

        dataset = load_dataset(source, split=self.flags.split, wanted=wanted)
        number = self.flags.num_queries
        return dataset if number is None else dataset.sample(number, self.flags.seed)
