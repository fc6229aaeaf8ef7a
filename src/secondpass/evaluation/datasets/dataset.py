"""A set of queries, documents and judgements, and what is checked of one that was read."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

import numpy as np

from secondpass.errors import DataError
from secondpass.evaluation.datasets.trec import Qrels

SPLITS = ("test", "dev", "validation", "train")  # the first that is there is taken, where none is named
LAYOUTS = """a BEIR, MIRACL or MS MARCO folder (queries, qrels, corpus), a reranking set (records with "query", \
"positive", "negative" or "query", "pos", "neg"), ir-datasets:NAME or mteb:NAME"""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Queries with judged documents.

    documents are texts as they are ranked, title before text. qrels has every query, each with a document of grade 1
    or more. candidates, where a set fixes them, are the only documents to rank for a query; their order says nothing.
    notes tells what was left out.
    """

    name: str
    queries: Mapping[str, str]
    documents: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    candidates: Mapping[str, list[str]] | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without the texts, which a notebook would show all of."""
        held = f"{len(self.queries):,} queries, {len(self.documents):,} documents"
        return f"<Dataset {self.name}: {held}{''.join(f'; {note}' for note in self.notes)}>"

    def sample(self, num_queries: int, seed: int = 0) -> Dataset:
        """A random part of the queries, the same for the same seed; the documents stay."""
        if num_queries < 1:
            raise ValueError(f"num_queries is {num_queries}; give 1 or more")
        if num_queries >= len(self.queries):
            return self
        names = sorted(self.queries)
        drawn = np.random.default_rng(seed).choice(len(names), num_queries, replace=False)
        kept = {names[index] for index in drawn}
        note = f"{num_queries} of {len(names)} queries, drawn with seed {seed}"
        return replace(
            self,
            queries={name: text for name, text in self.queries.items() if name in kept},
            qrels={name: grades for name, grades in self.qrels.items() if name in kept},
            notes=(*self.notes, note),
        )


def checked(
    name: str,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    qrels: Qrels,
    *,
    candidates: Mapping[str, list[str]] | None = None,
    notes: tuple[str, ...] = (),
    is_whole: bool = True,
) -> Dataset:
    """A Dataset of what was read, without the queries that measure nothing; notes say how many and why.

    is_whole: documents are the corpus, not only those of it that a run names. Raises DataError where there is no
    document, where no query is left, and where a candidate is not among the documents.
    """
    if not documents:
        raise DataError(f"{name}: {'the corpus is empty' if is_whole else 'has none of the documents of the run'}")
    positive, left_out = _measurable(queries, qrels)
    if candidates is not None:
        kept = {query: grades for query, grades in positive.items() if candidates.get(query)}
        left_out.append((len(positive) - len(kept), "without candidates"))
        positive = kept
        candidates = {query: candidates[query] for query in positive}
        _check_candidates(name, candidates, documents)
    skipped = tuple(f"{counted(count)} {why} skipped" for count, why in left_out if count)
    if not positive:
        raise DataError(f"{name}: no query can be measured: {'; '.join(skipped) or 'there are none'}")
    missing = _missing(positive, documents) if is_whole else ()
    return Dataset(
        name=name,
        queries={query: queries[query] for query in queries if query in positive},
        documents=documents,
        qrels=positive,
        candidates=candidates,
        notes=notes + skipped + missing,
    )


def _measurable(queries: Mapping[str, str], qrels: Qrels) -> tuple[Qrels, list[tuple[int, str]]]:
    """The judgements of queries that have a relevant document, and how many have not, by reason."""
    judged = {query: grades for query, grades in qrels.items() if query in queries}
    positive = {query: grades for query, grades in judged.items() if max(grades.values(), default=0) > 0}
    return positive, [
        (len(qrels) - len(judged), "judged but not among the queries"),
        (len(judged) - len(positive), "without a relevant document"),
        (sum(query not in qrels for query in queries), "without judgements"),
    ]


def _missing(qrels: Qrels, documents: Container[str]) -> tuple[str, ...]:
    """A note on relevant documents that are not in the corpus, where there are any."""
    lacking = [
        sum(grade > 0 and name not in documents for name, grade in grades.items()) for grades in qrels.values()
    ]
    if not any(lacking):
        return ()
    of_queries = counted(sum(count > 0 for count in lacking))
    return (f"{sum(lacking)} relevant documents of {of_queries} are not in the corpus and count against both sides",)


def counted(count: int) -> str:
    return f"{count} {'query' if count == 1 else 'queries'}"


def _check_candidates(name: str, candidates: Mapping[str, list[str]], documents: Mapping[str, str]) -> None:
    for query, listed in candidates.items():
        for document in listed:
            if document not in documents:
                raise DataError(f"{name}: {document}, a candidate of {query}, is not among the documents")
