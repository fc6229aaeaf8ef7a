"""Judgements (qrels) and runs, in TREC's columns, BEIR's and MS MARCO's, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from secondpass.atomic import write_text
from secondpass.data.files import SUFFIXES, Source, columns, lines, parsed, records, suffix, text_in
from secondpass.errors import CheckpointError, DataError
from secondpass.evaluation.measures import ranked

Qrels = dict[str, dict[str, int]]  # query -> document -> grade
Run = dict[str, dict[str, float]]  # query -> document -> score, higher is better
QUERY_NAMES = ("query-id", "query_id", "qid")
DOCUMENT_NAMES = ("corpus-id", "corpus_id", "docno", "docid", "doc_id", "pid")
_LISTS = ("candidate-ids", "corpus-ids")


def read_qrels(file: Path) -> Qrels:
    """Grades from `query 0 document grade`, from BEIR's `query-id corpus-id score`, or from records with those names.

    Raises DataError for other columns, a grade that is no whole number, or a pair that is judged in two ways.
    """
    qrels: Qrels = {}
    for source, query, document, grade in _judgements(file):
        known = qrels.setdefault(query, {})
        if known.setdefault(document, grade) != grade:
            raise DataError(f"{source}: {query} {document} is judged {grade} here and {known[document]} above")
    if not qrels:
        raise DataError(f"{file}: holds no judgements")
    return qrels


def _judgements(file: Path) -> Iterator[tuple[Source, str, str, int]]:
    if suffix(file) in SUFFIXES:
        for source, record in records(file):
            query, document = text_in(record, QUERY_NAMES, source), text_in(record, DOCUMENT_NAMES, source)
            yield source, query, document, _grade(record.get("score", record.get("relevance")), source)
        return
    for index, (source, row) in enumerate(columns(file)):
        if len(row) not in (3, 4):
            raise DataError(
                f"{source}: has {len(row)} columns; judgements are `query 0 document grade` or `query document grade`"
            )
        if index == 0 and not _is_number(row[-1]):
            continue  # BEIR's header
        yield source, row[0], row[-2], _grade(row[-1], source)


def _grade(value: object, source: Source) -> int:
    number = float(str(value)) if _is_number(value) else math.nan
    if not number.is_integer():
        raise DataError(f"{source}: the grade is {value!r}; a whole number is needed")
    return int(number)


def _is_number(value: object) -> bool:
    try:
        return math.isfinite(float(str(value)))
    except ValueError:
        return False


def read_run(file: Path) -> Run:
    """Scores of a ranking per query.

    TREC's `query Q0 document rank score tag` counts by score, as trec_eval does; a file with a header, like
    `query-id corpus-id rank score`, counts by rank where it has one, and so does CSV. JSON: {query: {document:
    score}}, or a `candidates` file, whose lists are best first. Raises DataError.
    """
    if suffix(file) in (".jsonl", ".parquet"):
        return {query: _by_rank(listed) for query, listed in read_candidates(file).items()}
    if suffix(file) == ".json":
        return _json_run(file)
    rows = _csv(file) if suffix(file) == ".csv" else columns(file)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{file}: holds no ranking")
    names = [name.strip().lower() for name in first[1]]
    if any(name in QUERY_NAMES for name in names):
        return _collected(_named_rows(rows, names, first[0]), file)
    return _collected(_trec_rows(_chained(first, rows)), file)


def _csv(file: Path) -> Iterator[tuple[Source, list[str]]]:
    """The row of names, and the others, as `columns` gives them."""
    for index, (source, record) in enumerate(records(file)):
        if index == 0:
            yield str(file), list(record)
        yield source, list(record.values())


def _chained(
    first: tuple[Source, list[str]], rest: Iterator[tuple[Source, list[str]]]
) -> Iterator[tuple[Source, list[str]]]:
    yield first
    yield from rest


def _trec_rows(rows: Iterator[tuple[Source, list[str]]]) -> Iterator[tuple[Source, str, str, float]]:
    for source, row in rows:
        if len(row) != 6:
            raise DataError(
                f"{source}: has {len(row)} columns; a run has 6, `query Q0 document rank score tag`, or a header"
            )
        yield source, row[0], row[2], _score(row[4], source)


def _named_rows(
    rows: Iterator[tuple[Source, list[str]]], names: Sequence[str], header: Source
) -> Iterator[tuple[Source, str, str, float]]:
    query = next((names.index(name) for name in QUERY_NAMES if name in names), None)
    document = next((names.index(name) for name in DOCUMENT_NAMES if name in names), None)
    by = next((name for name in ("rank", "score") if name in names), None)
    if query is None or document is None or by is None:
        raise DataError(
            f"{header}: the header names {', '.join(names)}; query-id, corpus-id, rank or score is needed"
        )
    for source, row in rows:
        if len(row) != len(names):
            raise DataError(f"{source}: has {len(row)} columns; the header has {len(names)}")
        value = _score(row[names.index(by)], source)
        yield source, row[query], row[document], -value if by == "rank" else value


def _score(value: str, source: Source) -> float:
    if not _is_number(value):
        raise DataError(f"{source}: {value!r} is not a number")
    return float(value)


def _collected(rows: Iterator[tuple[Source, str, str, float]], file: Path) -> Run:
    run: Run = {}
    for source, query, document, score in rows:
        if document in run.setdefault(query, {}):
            raise DataError(f"{source}: {document} is ranked twice for {query}")
        run[query][document] = score
    if not run:
        raise DataError(f"{file}: holds no ranking")
    return run


def _json_run(file: Path) -> Run:
    value = parsed("\n".join(line for _, line in lines(file)), str(file))
    if not isinstance(value, dict) or not all(isinstance(scores, dict) for scores in value.values()):
        raise DataError(f"{file}: a run in JSON is {{query: {{document: score}}}}")
    return {
        query: {document: _score(str(score), f"{file}: {query} {document}") for document, score in scores.items()}
        for query, scores in value.items()
    }


def check_names(run: Run, file: Path, tag: str) -> None:
    """Raises DataError for a query or document that `write_run` cannot write."""
    for query, scores in run.items():
        for name in (query, *scores, tag):
            if len(name.split()) != 1:
                raise DataError(f"{file}: {name!r} of query {query!r}: TREC's columns hold no names with blanks")


def write_run(file: Path, run: Run, tag: str) -> None:
    """The ranking in TREC's six columns, which trec_eval reads in the same order.

    Raises DataError for a name that has blanks, which columns cannot hold, or a file that cannot be written.
    """
    check_names(run, file, tag)
    rows = []
    for query, scores in run.items():
        for rank, document in enumerate(ranked(scores), 1):
            rows.append(" ".join((query, "Q0", document, str(rank), repr(scores[document]), tag)) + "\n")
    try:
        write_text(file, "".join(rows))
    except CheckpointError as error:
        raise DataError(str(error)) from error


def read_candidates(file: Path) -> dict[str, list[str]]:
    """The fixed candidates of each query, from records with "query-id" and "candidate-ids" or "corpus-ids"."""
    found: dict[str, list[str]] = {}
    for source, record in records(file):
        name = next((name for name in _LISTS if isinstance(record.get(name), list)), None)
        if name is None:
            raise DataError(f'{source}: has no list "{_LISTS[0]}" or "{_LISTS[1]}"')
        query = text_in(record, QUERY_NAMES, source)
        found[query] = list(dict.fromkeys(map(str, record[name])))
    return found


def _by_rank(names: Sequence[str]) -> dict[str, float]:
    return {name: -float(source) for source, name in enumerate(names, 1)}
