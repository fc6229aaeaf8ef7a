"""Folders with queries, judgements and a corpus in files of their own: BEIR, MIRACL, MS MARCO, TREC."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from secondpass.data.files import SUFFIXES, TEXT_NAMES, Source, columns, records, suffix, text_in, titled_text
from secondpass.errors import DataError, NoSuchSplit
from secondpass.evaluation.datasets.dataset import LAYOUTS, SPLITS, Dataset, checked
from secondpass.evaluation.datasets.trec import read_candidates, read_qrels

# What a file may be called, first match first; * is BEIR's or MIRACL's split, language and shard.
QUERIES = ("queries.*", "queries/*", "topics/*", "topics*", "*/topics/*", "queries*")
QRELS = ("qrels/*", "qrels.*", "*.qrels", "*/qrels/*", "qrels*")
CORPUS = ("corpus.*", "corpus/*", "docs-*", "collection.*", "collection/*", "*corpus*/docs-*", "*corpus*/*/docs-*")
CANDIDATES = ("candidates.*", "top_ranked.*", "top_ranked/*")
_TABLES = (".tsv", ".txt", ".trec", ".qrels")
_ID_NAMES = ("_id", "id", "docid", "doc_id", "query_id", "query-id", "pid")


def is_collection(folder: Path) -> bool:
    """Whether it has judgements in files of their own."""
    return bool(_files(folder, QRELS))


def collection_files(folder: Path) -> list[Path]:
    """Queries, judgements of all splits and documents in the folder."""
    return [file for patterns in (QUERIES, QRELS, CORPUS) for file in _files(folder, patterns)]


def load_folder(folder: Path, split: str | None, wanted: Container[str] | None) -> Dataset:
    """The set in a folder. Raises DataError that says which of its parts is not there."""
    qrels, split = _chosen(_found(folder, QRELS, "judgements"), split, folder)
    topics = _found(folder, QUERIES, "queries")
    queries = dict(_texts(_of_split(topics, split), None))
    candidates = _files(folder, CANDIDATES)
    listed = read_candidates(_of_split(candidates, split)[0]) if candidates else None
    documents = dict(_texts(_corpus(folder), wanted))
    if wanted is not None:
        listed = None  # the documents to rank are named by a run
    return checked(
        folder.resolve().name,
        queries,
        documents,
        read_qrels(qrels),
        candidates=listed,
        is_whole=wanted is None,
    )


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of the first pattern that has any."""
    for pattern in patterns:
        found = [file for file in sorted(folder.glob(pattern)) if suffix(file) in (*SUFFIXES, *_TABLES)]
        if found := [file for file in found if file.is_file() and not file.name.startswith((".", "README"))]:
            return found
    return []


def _found(folder: Path, patterns: Sequence[str], what: str) -> list[Path]:
    files = _files(folder, patterns)
    if not files:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder}: holds no {what} ({', '.join(patterns[:3])}; there is {there}); give {LAYOUTS}")
    return files


def _corpus(folder: Path) -> list[Path]:
    """The shards of the corpus; MIRACL keeps it in a folder of its own beside the queries'."""
    beside = folder.parent / folder.resolve().name.replace("miracl-v", "miracl-corpus-v")
    if not _files(folder, CORPUS) and beside != folder and beside.is_dir():
        return _found(beside, CORPUS, "documents")
    return _found(folder, CORPUS, "documents")


def _chosen(files: Sequence[Path], split: str | None, folder: Path) -> tuple[Path, str]:
    """The judgements of the split, and its name."""
    names = {file: _words_of(file) for file in files}
    for name in SPLITS if split is None else (split,):
        of_split = [file for file in files if name in names[file]]
        if of_split:
            return of_split[0], name
    if split is None and len(files) == 1:
        return files[0], ""
    there = ", ".join(file.name for file in files)
    raise NoSuchSplit(f"{folder}: judgements are {there}; name a split that is there")


def _of_split(files: Sequence[Path], split: str) -> list[Path]:
    """The files whose name has the split; all, where none has."""
    return [file for file in files if split in _words_of(file)] or list(files)


def _words_of(file: Path) -> list[str]:
    return re.split(r"[^a-z0-9]+", file.name.lower())


def _texts(files: Sequence[Path], wanted: Container[str] | None) -> Iterator[tuple[str, str]]:
    """(name, text) of queries or documents. Raises DataError for a name that comes twice."""
    sources: dict[str, Source] = {}
    for file in files:
        for source, name, text in _entries(file):
            if wanted is not None and name not in wanted:
                continue
            if name in sources:
                raise DataError(f"{source}: {name!r} is there twice, first at {sources[name]}")
            sources[name] = source
            yield name, text


def _entries(file: Path) -> Iterator[tuple[Source, str, str]]:
    if suffix(file) in SUFFIXES:
        for source, record in records(file):
            yield source, text_in(record, _ID_NAMES, source), titled_text(record, source)
        return
    for index, (source, row) in enumerate(columns(file)):
        if len(row) not in (2, 3):
            raise DataError(f"{source}: has {len(row)} columns; a name, a tab and a text are needed")
        if index == 0 and row[0].lower() in _ID_NAMES and row[-1].lower() in TEXT_NAMES:
            continue  # a header
        yield source, row[0], " ".join(row[1:])  # a third column is a text after its title
