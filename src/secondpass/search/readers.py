"""Files to pages of text: plain text, Markdown, code, HTML, records in JSON; other formats are in formats.py."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from secondpass.cognitive import MAX_SECONDS, seconds_of
from secondpass.data import markdown
from secondpass.data.files import (
    PASSAGE_NAMES,
    Source,
    delimiter_of,
    has_names,
    json_lines,
    json_values,
    lines,
    objects,
    text_in,
)
from secondpass.data.files import suffix as suffix_of
from secondpass.errors import DataError
from secondpass.search import formats
from secondpass.search.pages import MAX_UNZIPPED, Page, decoded, html_page, markdown_page

MAX_BYTES = 50_000_000  # of a file that is read whole
_DATE_IN_NAME = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_.]?([01]\d)[-_.]?([0-3]\d)(?!\d)")
_EAST_ASIAN_DAY = re.compile(r"(?<!\d)(\d{4})\s?[年년]\s?(\d\d?)\s?[月월]\s?(\d\d?)\s?[日일]")
# A day where the time after it is no ISO 8601, or a month, which stands for its first day.
_DAYS = (
    re.compile(r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)(?!\d)"),
    re.compile(r"(?P<year>\d{4})[-/.]\s?(?P<month>\d\d?)(?:[-/.]\s?(?P<day>\d\d?))?(?!\d)"),
    re.compile(r"(?P<year>\d{4})\s?[年년]\s?(?P<month>\d\d?)\s?[月월](?:\s?(?P<day>\d\d?)\s?[日일])?"),
    re.compile(r"(?P<day>\d\d?)\.\s?(?P<month>\d\d?)\.\s?(?P<year>\d{4})(?!\d)"),
)
_CHARSET = re.compile(
    rb"<(?:meta|\?xml)\s[^>]*?(?:charset|encoding)\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE | re.ASCII
)
_DECLARED_IN = 1024  # bytes of a page, as HTML asks
_SOURCE = re.compile(r'"source"\s*:\s*\[?\s*')  # what stands before the text of a notebook's cell
_YEAR = re.compile(r"(?:19|20)\d\d")
_TIMES = ("created", "timestamp", "date", "time")  # fields of records and front matter, the first that is there
CODE = (
    ".py .pyi .js .mjs .cjs .jsx .ts .tsx .java .kt .kts .scala .go .rs .c .h .cc .cpp .cxx .hpp .cs .swift .rb .php "
    ".lua .pl .sh .bash .zsh .fish .ps1 .sql .r .jl .ex .exs .erl .hs .ml .clj .dart .vue .svelte .proto .nix .zig"
).split()
PLAIN = ".txt .text .log .rst .org .tex .adoc .toml .yaml .yml .ini .cfg .conf .srt .vtt".split()
MARKDOWN = (".md", ".markdown", ".mdx", ".qmd")


Reader = Callable[[Path], Iterable[Page]]


def read(file: Path) -> Iterator[Page]:
    """The pages of a file that say something, if by their title alone, as mails do.

    Raises DataError that says why it cannot be read, MissingExtra where a package lacks.
    """
    reader = READERS.get(suffix_of(file))
    if reader is None:
        raise DataError(f"{file}: files that end in {suffix_of(file) or 'nothing'} are not read")
    try:
        for page in reader(file):
            if page.text.strip() or page.title.strip():
                yield page if page.text.strip() else replace(page, text=page.title)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise DataError(f"{file}: is nested too deeply") from error


def text_of(file: Path) -> str:
    """The text of a file, gzipped or not, in UTF-8, UTF-16, one of encodings.USUAL or else Windows-1252."""
    return decoded(_unzipped(file), str(file))


def _unzipped(file: Path) -> bytes:
    if file.stat().st_size > MAX_BYTES:
        raise DataError(f"{file}: has {file.stat().st_size / 1e6:.0f} MB; {MAX_BYTES / 1e6:.0f} are read at most")
    data = file.read_bytes()
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.open(file) as stream:
            data = stream.read(MAX_UNZIPPED + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: is not a whole gzip file: {error}") from error
    if len(data) > MAX_UNZIPPED:
        raise DataError(f"{file}: is more than {MAX_UNZIPPED / 1e6:.0f} MB when unpacked")
    return data


def _read_plain(file: Path) -> Iterator[Page]:
    yield Page(text=text_of(file), created=_date_in_name(file))


def _read_table(file: Path) -> Iterator[Page]:
    """The names of its columns stand above every part of a table, where it has them."""
    text = text_of(file)
    names = text.partition("\n")[0].strip().replace("\t", ", ") if has_names(text, delimiter_of(text)) else ""
    yield Page(text=text, title=f"{file.name} > {names}" if names else "", created=_date_in_name(file))


def _read_code(file: Path) -> Iterator[Page]:
    yield Page(text=text_of(file), kind="code")


def _read_markdown(file: Path) -> Iterator[Page]:
    text = text_of(file)
    front, start = front_matter(text)
    body = "\n" * text.count("\n", 0, start) + text[start:]  # so that lines and characters stay where they are
    body = " " * (start - text.count("\n", 0, start)) + body
    heading = re.match(r"\s*# +(.+)", body)
    title = str(front.get("title") or (heading[1].strip() if heading else ""))
    yield Page(text=body, kind="markdown", title=title, created=_created(front) or _date_in_name(file), fields=front)


def _read_notebook(file: Path) -> Iterator[Page]:
    """A Jupyter notebook (nbformat 4) as Markdown, its code between fences; what the code gave out is left out."""
    text = text_of(file)
    try:
        notebook = json.loads(text)
    except ValueError as error:
        raise DataError(f"{file}: is no notebook: {error}") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise DataError(f'{file}: has no list of "cells"; notebooks of nbformat 4 are read')
    parts, line, at = list[tuple[str, int]](), 1, 0
    for cell in cells:
        source = cell.get("source") if isinstance(cell, dict) else None
        whole = "".join(map(str, source)) if isinstance(source, list) else str(source or "")
        if not (said := whole.strip("\n")).strip():
            continue
        begin = json.dumps(whole.partition("\n")[0], ensure_ascii=text.isascii())[:-1]
        before, places = at, (found.end() for found in _SOURCE.finditer(text, at))
        at = next((place for place in places if text.startswith(begin, place)), at)
        line += text.count("\n", before, at)
        parts.append((f"````\n{said}\n````" if cell.get("cell_type") == "code" else said, line))
    title = next((found[1].strip() for part, _ in parts if (found := re.match(r"# +(.+)", part))), "")
    yield markdown_page(parts, title, _date_in_name(file))


def _read_html(file: Path) -> Iterator[Page]:
    data = _unzipped(file)
    declared = _CHARSET.search(data[:_DECLARED_IN])
    text = decoded(data, str(file), "" if declared is None else declared[1].decode())
    yield html_page(text, _date_in_name(file))


def _read_records(file: Path) -> Iterator[Page]:
    return _pages_of(json_lines(lines(file)))


def _read_list(file: Path) -> Iterator[Page]:
    return _pages_of(json_values(text_of(file), str(file)))


def _pages_of(values: Iterable[tuple[Source, Any]]) -> Iterator[Page]:
    """Each record a page; its text in "text", and "title" as the title, the others as fields."""
    for location, record in objects(values):
        text = next((record[name] for name in PASSAGE_NAMES if isinstance(record.get(name), str)), None)
        if text is None:
            text = text_in(record, PASSAGE_NAMES, location)
        line = location.rpartition(":")[2]
        metadata = record.get("metadata")
        others = {**(metadata if isinstance(metadata, dict) else {}), **record}
        yield Page(
            text=text,
            title=str(record.get("title") or ""),
            created=_created(others),
            first_line=int(line) if line.isdigit() else 1,
            fields={name: value for name, value in others.items() if name not in ("text", "title", "metadata")},
        )


def front_matter(text: str) -> tuple[dict[str, Any], int]:
    """Keys of YAML front matter with their values, as far as they are plain or lists, and where the text begins."""
    front = markdown.front_matter(text)
    found: dict[str, Any] = {}
    key = ""
    for line in front.splitlines()[1:-1]:
        name, colon, value = line.partition(":")
        if line.startswith((" ", "-", "\t")) and line.strip().startswith("- ") and key:
            earlier = found[key] if isinstance(found[key], list) else []
            found[key] = [*earlier, _plain_value(line.strip()[2:])]
        elif colon and name.strip() and not name.startswith((" ", "#")):
            key = name.strip()
            found[key] = _plain_value(value.strip())
    return found, len(front)


def _plain_value(value: str) -> Any:
    if value.startswith("[") and value.endswith("]"):
        return [_plain_value(each.strip()) for each in value[1:-1].split(",") if each.strip()]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    try:
        number = json.loads(value)
    except ValueError:
        return value
    return number if isinstance(number, int | float | bool) else value


def _created(record: Mapping[str, Any]) -> float | None:
    """The first time among the fields that can be read."""
    times = (_moment(record.get(name)) for name in _TIMES)
    return next((time for time in times if time is not None), None)


def _moment(value: object) -> float | None:
    """Seconds since 1970 of ISO 8601, a day such as 20240115 or 2024/1/15, a year, seconds or milliseconds."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int) and _YEAR.fullmatch(str(value)):
        return _day(value, 1, 1)
    if isinstance(value, str) or _DATE_IN_NAME.fullmatch(str(value)):
        return _written_moment(str(value).strip())
    seconds = value if abs(value) <= MAX_SECONDS else value / 1000  # as JavaScript has them
    return float(seconds) if abs(seconds) <= MAX_SECONDS else None


def _written_moment(text: str) -> float | None:
    with suppress(ValueError):
        return seconds_of(text, "date")
    found = next(filter(None, (pattern.match(text) for pattern in _DAYS)), None)
    return None if found is None else _day(int(found["year"]), int(found["month"]), int(found["day"] or 1))


def _date_in_name(file: Path) -> float | None:
    name = unicodedata.normalize("NFC", file.name)  # macOS takes Hangul apart
    found = _DATE_IN_NAME.search(name) or _EAST_ASIAN_DAY.search(name)
    return None if found is None else _day(*map(int, found.groups()))


def _day(year: int, month: int, day: int) -> float | None:
    try:
        return datetime(year, month, day, tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


READERS: dict[str, Reader] = {
    **dict.fromkeys(PLAIN, _read_plain),
    **dict.fromkeys((".csv", ".tsv"), _read_table),
    **dict.fromkeys(MARKDOWN, _read_markdown),
    **dict.fromkeys(CODE, _read_code),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _read_html),
    ".ipynb": _read_notebook,
    **dict.fromkeys((".jsonl", ".ndjson"), _read_records),
    ".json": _read_list,
    **dict.fromkeys(formats.FORMATS, formats.read),
}
