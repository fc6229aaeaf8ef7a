"""Reranking sets: every line has a query with its relevant and its other texts.

MTEB and C-MTEB name them "positive" and "negative", FlagEmbedding "pos" and "neg".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secondpass.data.files import SUFFIXES, Source, records, suffix, text_in, texts_in
from secondpass.errors import DataError
from secondpass.evaluation.datasets.dataset import LAYOUTS, SPLITS, Dataset, checked, counted
from secondpass.evaluation.datasets.trec import Qrels

NAMES = (("positive", "negative"), ("pos", "neg"))


def list_files(folder: Path, split: str | None) -> list[Path]:
    """The files of a reranking set in a folder or in its data/: those of the split, else of the first there is."""
    here = [*folder.glob("*"), *folder.glob("data/*")]
    files = sorted(file for file in here if file.is_file() and suffix(file) in SUFFIXES)
    for name in SPLITS if split is None else (split,):
        of_split = [file for file in files if file.name.lower().startswith(name)]
        if of_split:
            return of_split
    return files if split is None and len(files) == 1 else []


def load_lists(name: str, files: Sequence[Path]) -> Dataset:
    """The set in the files; the candidates of a query are its own texts. Raises DataError."""
    return from_records(name, [item for file in files for item in records(file)])


def from_records(name: str, items: Sequence[tuple[Source, Mapping[str, Any]]]) -> Dataset:
    """The set of records, each with a source for errors.

    Names of documents are digests of their texts, so that neither the order of a list nor a name tells which texts
    are relevant where scores are equal. A text that is in both lists counts as relevant.
    """
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    qrels: Qrels = {}
    one_sided = 0
    for number, (source, record) in enumerate(items, 1):
        positive, negative = _sides(record, source)
        if not positive or not negative:
            one_sided += 1
            continue
        query = f"q{number}"
        queries[query] = text_in(record, ("query",), source)
        named = {_digest(text): text for text in [*negative, *positive]}
        documents |= named
        relevant = {_digest(text) for text in positive}
        qrels[query] = {document: int(document in relevant) for document in sorted(named)}
    notes = (f"{counted(one_sided)} without a positive or without a negative text skipped",) if one_sided else ()
    if not queries:
        raise DataError(f"{name}: no query has both positive and negative texts")
    return checked(name, queries, documents, qrels, candidates={q: list(g) for q, g in qrels.items()}, notes=notes)


def _sides(record: Mapping[str, Any], source: Source) -> tuple[list[str], list[str]]:
    for positive, negative in NAMES:
        if positive in record:
            return texts_in(record, positive, source), texts_in(record, negative, source)
    there = ", ".join(map(str, record)) or "nothing"
    raise DataError(f'{source}: has neither "positive" nor "pos" (it has {there}); give {LAYOUTS}')


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
