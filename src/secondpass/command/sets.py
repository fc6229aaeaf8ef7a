"""What eval and calibrate share: the sets they are given, first stages, scorers, and progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from secondpass.command.progress import watched
from secondpass.errors import WrongUse

if TYPE_CHECKING:
    from secondpass.embedder import Embedder
    from secondpass.evaluation.datasets.dataset import Dataset
    from secondpass.evaluation.datasets.trec import Run
    from secondpass.types import Scorer

FIRST_STAGES = "bm25, run:FILE or embedder:NAME"


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a model of a command is opened."""

    revision: str | None = None
    engine: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    max_length: int | None = None
    local_files_only: bool = False
    cache: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sets:
    """The sets of a command: where they are, the part to take, and what finds their candidates."""

    sources: Sequence[str]
    first_stage: str
    split: str | None
    num_queries: int | None
    seed: int
    loading: Loading

    def each(self, depth: int) -> Iterator[tuple[Dataset, Run]]:
        """Each set with its candidates. Raises WrongUse, DataError or MissingExtra."""
        from secondpass.evaluation.first_stage import bm25_run, given_run, vector_run

        kind, _, name = self.first_stage.partition(":")
        if kind not in ("bm25", "run", "embedder") or (kind == "bm25") == bool(name):
            raise WrongUse(f"--first-stage {self.first_stage}: give {FIRST_STAGES}")
        for source in self.sources:
            with watched(f"reading {source}") as progress:
                if kind == "run":
                    dataset, run = self._with_run(source, name)
                    yield dataset, given_run(dataset, run, depth)
                elif kind == "bm25":
                    dataset = self._load(source)
                    yield dataset, bm25_run(dataset, depth)
                else:
                    dataset = self._load(source)
                    yield dataset, vector_run(dataset, self._embedder, depth, progress)

    def _with_run(self, source: str, name: str) -> tuple[Dataset, Run]:
        """A set with only those documents in memory that the run names."""
        from secondpass.evaluation.datasets.trec import read_run
        from secondpass.evaluation.first_stage import run_file

        run = read_run(run_file(name, source))
        return self._load(source, {document for scores in run.values() for document in scores}), run

    def _load(self, source: str, wanted: set[str] | None = None) -> Dataset:
        from secondpass.evaluation.datasets.dataset import load_dataset

        dataset = load_dataset(source, split=self.split, wanted=wanted)
        return dataset if self.num_queries is None else dataset.sample(self.num_queries, self.seed)

    @cached_property
    def _embedder(self) -> Embedder:
        return open_embedder(self.first_stage.partition(":")[2], replace(self.loading, max_length=None))


def open_embedder(name: str, loading: Loading) -> Embedder:
    from secondpass.embedder import Embedder

    try:
        return Embedder(name, **_shared(loading))
    except ValueError as error:
        raise WrongUse(str(error)) from error


def open_scorer(name: str, loading: Loading) -> tuple[Scorer, Mapping[str, Any]]:
    """A reranker, or what `embedder:NAME` and `colbert:NAME` say, with what it runs on."""
    kind, _, rest = name.partition(":")
    if kind == "embedder" and rest:
        embedder = open_embedder(rest, loading)
        return embedder, asdict(embedder.info())
    try:
        if kind == "colbert" and rest:
            from secondpass.colbert.colbert import ColBERT

            late = ColBERT(rest, **_shared(loading))
            return late, asdict(late.info())
        from secondpass.reranker import Reranker

        reranker = Reranker(
            name,
            revision=loading.revision,
            engine=loading.engine,
            score_cache=loading.cache,
            **_shared(loading),
        )
        return reranker, asdict(reranker.info())
    except ValueError as error:
        raise WrongUse(str(error)) from error


def _shared(loading: Loading) -> dict[str, Any]:
    """The options that every kind of model has."""
    names = ("device", "dtype", "max_length", "local_files_only")
    return {name: getattr(loading, name) for name in names}
