"""PassageInputs to passages: files, folders, standard input and arguments. Each passage knows where it stands."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from secondpass.atomic import at_home
from secondpass.data import markdown, sections
from secondpass.data.files import (
    PASSAGE_NAMES,
    Piped,
    Source,
    csv_rows,
    files_below,
    has_names,
    json_values,
    kind_of,
    parsed,
    read_text,
    suffix,
    text_in,
    titled_text,
    values,
)
from secondpass.data.sections import Section
from secondpass.errors import DataError, WrongUse
from secondpass.types import Document

STDIN = "-"
SPLITS: Mapping[str, Callable[[str], Iterable[Section]]] = {
    "auto": sections.automatic,
    "line": sections.lines,
    "paragraph": sections.paragraphs,
    "whole": sections.whole,
}


def _of_html(text: str) -> Iterable[Section]:
    from secondpass.data import html  # whose parser takes 8 ms to import

    return html.sections(text)


# Kinds of text that have sections of their own; cut by lines or not at all, their text is read so first.
PAGES: Mapping[str, Callable[[str], Iterable[Section]]] = {
    ".md": markdown.sections,
    ".markdown": markdown.sections,
    ".html": _of_html,
    ".htm": _of_html,
}
RECORDS: Mapping[str, Callable[[str, str], Iterator[tuple[Source, Any]]]] = {
    ".json": json_values,
    ".csv": csv_rows,
    ".tsv": partial(csv_rows, delimiters="\t"),
}
TABLES = (".csv", ".tsv")
NO_FIELDS: Mapping[str, Any] = {}  # one for all, since there may be many
TextReader = Callable[[Mapping[str, Any], Source], str]
STREAMED = (".jsonl", ".ndjson", ".parquet")
FOLDER_SUFFIXES = (".txt", ".rst", *PAGES, *RECORDS, *STREAMED)


@dataclass(frozen=True, slots=True)
class Passage:
    """A document to rank and where it comes from, as file:line."""

    document: Document
    source: Source


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How inputs are read: the way texts are split, and the fields of records that are ranked."""

    split: str = "auto"
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PassageInputs:
    """What was read; problems of files that could not be, and what folders left out, a sentence each."""

    passages: list[Passage]
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_passages(paths: Sequence[str], arguments: Sequence[str], options: ReadOptions) -> PassageInputs:
    """The passages of arguments, then of paths in their order; without either those of standard input.

    A file among several that cannot be read is a problem, one alone a DataError. Raises WrongUse where there is no
    such input, DataError where nothing can be ranked in any.
    """
    inputs = PassageInputs(passages=[Passage(Document(text), f"argument:{n}") for n, text in enumerate(arguments, 1)])
    if not paths and not arguments:
        if sys.stdin is None or sys.stdin.isatty():
            raise WrongUse(
                'nothing to rank; name a file, as in: secondpass rank "how long" notes.txt, or pipe text in'
            )
        paths = [STDIN]
    files = [file for path in paths for file in _files_of(path, inputs)]
    for file in files:
        try:
            inputs.passages.extend(_read(file, options))
        except DataError as error:
            if len(files) == 1:
                raise
            inputs.problems.append(str(error))
    if not any(passage.document.text or passage.document.fields for passage in inputs.passages):
        where = ", ".join("standard input" if path == STDIN else path for path in paths)
        why = "".join(f"; {problem}" for problem in inputs.problems)
        raise DataError(f"there is nothing to read in {where or 'the arguments'}{why}")
    return inputs


def _files_of(path: str, inputs: PassageInputs) -> list[Path | Piped]:
    """The files of a path: itself, the corpus of a BEIR folder, or every file of a folder that can be read."""
    if path == STDIN:
        return [Piped("stdin", sys.stdin.buffer)]
    if not path:
        raise WrongUse("a path is empty; name a file or folder, the current one as .")
    file = at_home(path)
    if not file.is_dir():
        if not file.exists():
            raise WrongUse(f"{file}: there is no such file{_near(file)}")
        return [file]
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if (file / name).is_file():
            return [file / name]
    unread: list[OSError] = []
    every = files_below(file, unread.append)
    problems = [f"{each.filename}: cannot be looked into: {each.strerror}" for each in unread]
    inputs.problems.extend(problems)
    readable: list[Path | Piped] = [found for found in every if suffix(found) in FOLDER_SUFFIXES]
    if not readable:
        why = "".join(f"; {problem}" for problem in problems)
        raise DataError(f"{file}: holds no corpus.jsonl and no {', '.join(FOLDER_SUFFIXES)} file{why}")
    others = Counter(suffix(found) or "no suffix" for found in every if suffix(found) not in FOLDER_SUFFIXES)
    if others:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in others.most_common())
        inputs.left_out.append(f"{file}: left out {kinds}")
    return readable


def _near(file: Path) -> str:
    """Where a link leads that leads nowhere, else names in the file's folder that look like it."""
    from difflib import get_close_matches

    if file.is_symlink():
        return f", but a link to {os.readlink(file)}, which is not there"
    if not file.parent.is_dir():
        return f", nor a folder {file.parent}"
    names = get_close_matches(file.name, [other.name for other in file.parent.iterdir()], n=2)
    return f"; did you mean {' or '.join(str(file.parent / name) for name in names)}?" if names else ""


def _read(file: Path | Piped, options: ReadOptions) -> Iterable[Passage]:
    kind = suffix(file)
    if kind in STREAMED:
        return _of_records(values(file), _text_reader(file, kind), options)
    text = read_text(file)
    if kind == ".tsv" and not has_names(text):
        kind = ".txt"  # as MS MARCO has them
    elif kind not in (*RECORDS, *PAGES, ".txt"):
        kind = _sniffed(text)
    if kind in RECORDS:
        return _of_records(RECORDS[kind](text, str(file)), _text_reader(file, kind), options)
    return _of_sections(_sections(text, kind, options), file, options)


def _sniffed(text: str) -> str:
    """The suffix for text of unknown kind: JSON where the first line is an object or the whole is a list."""
    start = text.lstrip()[:16].lower()
    if start.startswith(("<!doctype html", "<html")):
        return ".html"
    try:
        if start.startswith("{") and isinstance(parsed(text.strip().partition("\n")[0], ""), dict):
            return ".json"
        if start.startswith("[") and isinstance(parsed(text, ""), list):
            return ".json"
    except DataError:
        pass  # text may begin with a bracket
    return ".txt"


def _sections(text: str, kind: str, options: ReadOptions) -> Iterable[Section]:
    """A page by its own sections; by lines or as a whole it is cut as plain text, HTML without its markup."""
    if kind not in PAGES:
        return SPLITS[options.split](text)
    if options.split in ("auto", "paragraph"):
        return PAGES[kind](text)
    if PAGES[kind] is not _of_html:
        return SPLITS[options.split](text)
    found = list(_of_html(text))
    if options.split == "whole":
        return [Section(found[0].line, "\n\n".join(section.text for section in found))] if found else []
    return [Section(section.line, line) for section in found for line in section.text.split("\n") if line.strip()]


def _of_sections(found: Iterable[Section], file: Path | Piped, options: ReadOptions) -> Iterator[Passage]:
    for section in found:
        fields = {"heading": section.heading} if section.heading else NO_FIELDS
        _check_fields(("text", *fields), f"{file}:{section.line}", options)
        yield Passage(Document(section.text, fields), f"{file}:{section.line}")


def _of_records(found: Iterable[tuple[Source, Any]], read: TextReader, options: ReadOptions) -> Iterator[Passage]:
    for source, value in found:
        yield Passage(_as_document(value, source, read, options), source)


def _as_document(value: Any, source: Source, read: TextReader, options: ReadOptions) -> Document:
    if isinstance(value, str):
        _check_fields(("text",), source, options)
        return Document(value)
    if not isinstance(value, dict):
        raise DataError(f'{source}: holds {kind_of(value)}; an object with "text" or a string is needed')
    if not options.fields:
        return Document(read(value, source), value)
    _check_fields(value, source, options)
    text = value.get("text")
    return Document(text if isinstance(text, str) else "", value)


def _check_fields(there: Collection[str], source: Source, options: ReadOptions) -> None:
    if options.fields and not any(name in there for name in options.fields):
        names = ", ".join(map(str, there)) or "nothing"
        raise DataError(f"{source}: has none of the fields {', '.join(options.fields)} (it has {names})")


def _text_reader(file: Path | Piped, kind: str) -> TextReader:
    """What reads the text of a record: of a BEIR corpus title and text, as its benchmarks do."""
    if Path(str(file)).name.startswith("corpus.jsonl"):
        return titled_text
    return _text_of_row if kind in TABLES else _text_of


def _text_of(record: Mapping[str, Any], source: Source) -> str:
    if any(name in record for name in PASSAGE_NAMES):
        return text_in(record, PASSAGE_NAMES, source)
    there = ", ".join(map(str, record)) or "nothing"
    raise DataError(
        f'{source}: has no "text" (it has {there}); rename what is to be read, or for rank name it, '
        "as in --fields title,body"
    )


def _text_of_row(record: Mapping[str, Any], source: Source) -> str:
    """The column "text", else all columns with their names."""
    if "text" in record:
        return text_in(record, ("text",), source)
    return "\n".join(f"{name}: {value}" for name, value in record.items() if value)
