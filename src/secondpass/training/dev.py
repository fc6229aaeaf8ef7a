"""A set of queries with candidates that are reranked while a model is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

from secondpass.errors import DataError
from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.evaluation.measures import parse
from secondpass.retrieval.bm25 import BM25
from secondpass.training.data import Example

MEASURES = ("nDCG@10", "MRR@10")


@dataclass(frozen=True, kw_only=True)
class DevQuery:
    """A query and its candidates in the order of the first stage, with their grades.

    missed are the grades of relevant documents that the first stage did not find: no reranker can make up for them.
    """

    query: str
    documents: tuple[str, ...]
    grades: tuple[int, ...]
    missed: tuple[int, ...] = ()

    def figures(self, scores: Sequence[float]) -> dict[str, float]:
        """The measures of the candidates in the order of these scores; equal ones keep the first stage's order."""
        order = sorted(range(len(scores)), key=lambda position: -scores[position])
        grades = {f"{position:06}": grade for position, grade in enumerate((*self.grades, *self.missed))}
        ranking = {f"{position:06}": -float(rank) for rank, position in enumerate(order)}
        return {name: parse(name)(grades, ranking) for name in MEASURES}


@dataclass(frozen=True, kw_only=True)
class DevSet:
    """Queries to measure on. has_first_stage: the candidates' order is that of a search."""

    name: str
    queries: Sequence[DevQuery] = field(repr=False)  # a notebook would show all of them
    has_first_stage: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what is measured."""
        digest = hashlib.sha256()
        for query in self.queries:
            digest.update(json.dumps(asdict(query)).encode() + b"\n")
        return digest.hexdigest()

    def first_stage(self) -> dict[str, float]:
        """The measures of the candidates as they were found."""
        return mean(query.figures([-float(rank) for rank in range(len(query.documents))]) for query in self.queries)


def dev_queries(examples: Iterable[Example], num_queries: int | None = None) -> list[DevQuery]:
    """Queries of training examples, which rerank their own positives and negatives, negatives first."""
    return [
        DevQuery(
            query=example.query,
            documents=example.negatives + example.positives,
            grades=(0,) * len(example.negatives) + (1,) * len(example.positives),
        )
        for example in list(examples)[:num_queries]
    ]


def total(queries: Iterable[DevQuery], score: Callable[[str, Sequence[str]], Sequence[float]]) -> dict[str, float]:
    """The sums of the measures over the queries, each reranked by `score`."""
    sums = dict.fromkeys(MEASURES, 0.0)
    for query in queries:
        scores = score(query.query, query.documents) if query.documents else ()
        for name, value in query.figures(scores).items():
            sums[name] += value
    return sums


def mean(figures: Iterable[dict[str, float]]) -> dict[str, float]:
    every = list(figures)
    return {name: sum(one[name] for one in every) / max(len(every), 1) for name in MEASURES}


def dev_set(dataset: Dataset, *, depth: int, num_queries: int | None = None, seed: int = 0) -> DevSet:
    """Queries with the candidates that the set fixes, else the best `depth` of BM25.

    Queries for which no relevant document is found, or none at all, stay and count as 0, as in `secondpass eval`.
    Raises DataError where none has a candidate.
    """
    dataset = dataset if num_queries is None else dataset.sample(num_queries, seed)
    index = None if dataset.candidates is not None else BM25(dataset.documents.values())
    names = list(dataset.documents)
    queries = []
    for name, query in dataset.queries.items():
        listed = dataset.candidates[name] if dataset.candidates is not None else []
        if index is not None:
            listed = [names[position] for position, _ in index.search(query, depth)]
        queries.append(_dev_query(query, listed, dataset.qrels[name], dataset.documents))
    if not any(query.documents for query in queries):
        raise DataError(f"{dataset.name}: BM25 finds nothing for any of its {len(queries)} queries")
    return DevSet(name=dataset.name, queries=queries, has_first_stage=index is not None)


def _dev_query(
    query: str, listed: Sequence[str], grades: Mapping[str, int], documents: Mapping[str, str]
) -> DevQuery:
    found = set(listed)
    return DevQuery(
        query=query,
        documents=tuple(documents[name] for name in listed),
        grades=tuple(grades.get(name, 0) for name in listed),
        missed=tuple(grade for name, grade in grades.items() if name not in found and grade > 0),
    )
