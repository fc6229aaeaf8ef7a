"""What is reranked: for each query of a set the candidates that a first stage finds, with its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secondpass.atomic import at_home
from secondpass.errors import DataError
from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.evaluation.datasets.trec import Run
from secondpass.evaluation.measures import ranked
from secondpass.retrieval.bm25 import BM25, Found
from secondpass.retrieval.vectors import TextEmbedder, VectorIndex
from secondpass.types import Progress


class SetSearch(Protocol):
    """A search over the documents of a set, by their indexes."""

    def scores(self, query: str) -> NDArray[np.float32]: ...
    def search(self, query: str, top_k: int) -> Found: ...


def bm25_run(dataset: Dataset, depth: int) -> Run:
    """The first `depth` documents by BM25, or all fixed candidates in its order. Raises MissingExtra."""
    return _run(dataset, BM25(dataset.documents.values()), depth)


def vector_run(dataset: Dataset, encoder: TextEmbedder, depth: int, progress: Progress | None = None) -> Run:
    """The first `depth` documents by the cosine of an embedder's vectors."""
    texts: Sequence[str] = list(dataset.documents.values())
    return _run(dataset, VectorIndex(encoder, texts, progress=progress), depth)


def _run(dataset: Dataset, search: SetSearch, depth: int) -> Run:
    names = list(dataset.documents)
    if dataset.candidates is None:
        return {
            query: {names[index]: score for index, score in search.search(text, depth)}
            for query, text in dataset.queries.items()
        }
    indexes = {name: index for index, name in enumerate(names)}
    run: Run = {}
    for query, text in dataset.queries.items():
        scores = search.scores(text)
        run[query] = cut({name: float(scores[indexes[name]]) for name in dataset.candidates[query]}, depth)
    return run


def cut(scores: Mapping[str, float], depth: int) -> dict[str, float]:
    """The best `depth` of them, best first."""
    return {name: scores[name] for name in ranked(scores)[:depth]}


def given_run(dataset: Dataset, run: Mapping[str, Mapping[str, float]], depth: int) -> Run:
    """A run that was read, for the queries of the set; a query that it lacks has no candidates.

    Raises DataError for a document that is not in the set, and where nothing is ranked for any query of the set.
    """
    found = {query: cut(run.get(query, {}), depth) for query in dataset.queries}
    if not any(run.values()):
        raise DataError(f"{dataset.name}: the first stage found nothing for any of its {len(found)} queries")
    if not any(found.values()):
        theirs, ours = next(iter(run), "none"), next(iter(dataset.queries))
        raise DataError(f"{dataset.name}: the run has none of its queries (one is {theirs!r} there, {ours!r} here)")
    for query, scores in found.items():
        for name in scores:
            if name not in dataset.documents:
                raise DataError(f"{dataset.name}: {name!r}, ranked for {query}, is not among the documents")
    return found


def run_file(name: str, source: str | Path) -> Path:
    """The file of `run:NAME`: a path, or a file in the folder of the set."""
    inside = at_home(source) / name
    return inside if inside.is_file() else at_home(name)
