"""Passages and judged queries: what negatives are mined from, and what a model is measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.retrieval.bm25 import BM25
from secondpass.training.data import Data
from secondpass.training.dev import DevQuery, DevSet


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A query with the places of its relevant passages; source says where it comes from."""

    query: str
    positives: tuple[int, ...]
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Passages, and queries with judgements on some of them."""

    name: str
    passages: Sequence[str]
    queries: Sequence[Judged]


def collection_of(dataset: Dataset) -> Collection:
    """The queries of a set, with every document that has a grade above 0 as a positive."""
    places = {name: place for place, name in enumerate(dataset.documents)}
    queries = []
    for name, query in dataset.queries.items():
        relevant = [document for document, grade in dataset.qrels[name].items() if grade > 0]
        positives = tuple(places[document] for document in relevant if document in places)
        if positives:
            queries.append(Judged(query=query, positives=positives, source=f"{dataset.name} {name}"))
    return Collection(name=dataset.name, passages=list(dataset.documents.values()), queries=queries)


def collection_of_examples(data: Data, name: str) -> Collection:
    """The passages of examples, in which each example's positives are relevant to its query."""
    texts = dict.fromkeys(text for one in data.examples for text in (*one.positives, *one.negatives))
    places = {text: place for place, text in enumerate(texts)}
    queries = [
        Judged(query=one.query, positives=tuple(places[text] for text in one.positives), source=one.source)
        for one in data.examples
    ]
    return Collection(name=name, passages=list(texts), queries=queries)


def dev_set(dataset: Dataset, *, depth: int, num_queries: int | None = None, seed: int = 0) -> DevSet:
    """Queries with the candidates that the set fixes, else the best `depth` of BM25.

    Queries for which no relevant document is found stay, as they do where the first stage is measured.
    """
    dataset = dataset if num_queries is None else dataset.sample(num_queries, seed)
    index = None if dataset.candidates is not None else BM25(dataset.documents.values())
    names = list(dataset.documents)
    queries = []
    for name, query in dataset.queries.items():
        listed = dataset.candidates[name] if dataset.candidates is not None else []
        if index is not None:
            listed = [names[place] for place, _ in index.search(query, depth)]
        if listed:
            queries.append(_dev_query(query, listed, dataset.qrels[name], dataset.documents))
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
