"""Files of data to records and columns; each comes with its place, file:line, so that an error can name it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from secondpass.errors import DataError, MissingExtra

Place = str  # file:line, as editors jump to
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK\x03\x04": "a zip or office file", b"%PDF-": "a PDF"}
_GZIP = b"\x1f\x8b"


def suffix(file: Path) -> str:
    """The suffix without regard to .gz: .jsonl of corpus.jsonl.gz."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def lines(file: Path) -> Iterator[tuple[Place, str]]:
    """Lines of a UTF-8 text file, gzipped or not, that are not blank. Raises DataError with the line at fault."""
    number = 0
    try:
        with file.open("rb") as raw:
            start = raw.read(4)
            raw.seek(0)
            for mark, kind in _MARKS.items():
                if start.startswith(mark):
                    raise DataError(f"{file}: is {kind}; convert it to UTF-8 text first")
            stream = cast("IO[bytes]", gzip.open(raw) if start.startswith(_GZIP) else raw)
            for number, line in enumerate(stream, 1):
                text = _decoded(line, f"{file}:{number}")
                if text and not text.isspace():
                    yield f"{file}:{number}", text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}:{number + 1}: is not a whole gzip file: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def _decoded(line: bytes, place: Place) -> str:
    try:
        return line.rstrip(b"\r\n").decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        seen = f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8"
        raise DataError(f"{place}: {seen}; convert the file: iconv -f latin1 -t utf-8") from error


def columns(file: Path) -> Iterator[tuple[Place, list[str]]]:
    """The tab-separated columns of each line; those between blanks, where a line has no tab."""
    for place, line in lines(file):
        yield place, line.split("\t") if "\t" in line else line.split()


def records(file: Path) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Objects of a JSON Lines, JSON (a list of objects) or parquet file. Raises DataError, or MissingExtra."""
    kind = suffix(file)
    if kind == ".parquet":
        return _parquet(file)
    return _json_list(file) if kind == ".json" and _first_character(file) == "[" else _json_lines(file)


def _json_lines(file: Path) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    for place, line in lines(file):
        yield place, _object(parsed(line, place), place)


def _json_list(file: Path) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    for number, value in enumerate(parsed("\n".join(line for _, line in lines(file)), str(file))):
        place = f"{file}[{number}]"
        yield place, _object(value, place)


def _parquet(file: Path) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "datasets") from error
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=4096):
                for value in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", value
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}: is not a parquet file that can be read: {error}") from error


def parsed(text: str, place: Place) -> Any:
    """The value of JSON text. Raises DataError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError(f"{place}: is nested too deeply to be data") from error


def _first_character(file: Path) -> str:
    return next((line.lstrip()[:1] for _, line in lines(file)), "")


def _object(value: Any, place: Place) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: holds a {type(value).__name__}; a JSON object is needed")
    return value


def text_in(record: Mapping[str, Any], names: tuple[str, ...], place: Place) -> str:
    """The first of the named fields that is there, as text. Raises DataError where none is, or it is no text."""
    name = next((name for name in names if name in record), None)
    if name is None:
        there = ", ".join(map(str, record)) or "nothing"
        raise DataError(f'{place}: has no "{names[0]}" (it has {there})')
    value = record[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # identifiers are numbers in some sets
    if not isinstance(value, str):
        raise DataError(f'{place}: "{name}" is {_kind(value)}; a string is needed')
    return value


def texts_in(record: Mapping[str, Any], name: str, place: Place) -> list[str]:
    """A field that is a list of strings; [] where it is null or not there."""
    values = record.get(name)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        odd = (
            next((value for value in values if not isinstance(value, str)), "") if isinstance(values, list) else None
        )
        seen = _kind(values) if odd is None else f"a list with {_kind(odd)}"
        raise DataError(f'{place}: "{name}" is {seen}; a list of strings is needed')
    return list(values)


def _kind(value: object) -> str:
    return {"NoneType": "null", "dict": "an object", "str": "a string", "list": "a list"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )
