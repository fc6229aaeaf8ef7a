"""Files of data to text, lines, columns and records; each comes with its source, file:line, that errors name.

UTF-8, gzipped or not; JSON Lines, JSON, CSV and parquet. Everything that cannot be read is a DataError that says what
it is.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from secondpass.errors import DataError, MissingExtra

Source = str  # file:line, as editors jump to
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")  # of files with records
PASSAGE_NAMES = ("text", "contents", "content", "page_content", "passage", "body")
TEXT_NAMES = (*PASSAGE_NAMES, "query")
# How files begin that are no UTF-8 text: where, what stands there, what that is.
MARKS = (
    (0, b"\xff\xfe", "UTF-16"),
    (0, b"\xfe\xff", "UTF-16"),
    (0, b"PK\x03\x04", "a zip or office file"),
    (0, b"%PDF-", "a PDF"),
    (4, b"1AY&SY", "bzip2"),
    (0, b"\xfd7zXZ", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
)
_GZIP = b"\x1f\x8b"
_BEGINNING = 8192  # bytes that are looked at before a file is read
# A gzip file may unpack to so many bytes, or to so many times its own size: text shrinks to a third, logs to a tenth.
FREE_BYTES, MAX_RATIO = 16 << 20, 32
MAX_LINE = 50_000_000  # bytes
MAX_NAME = 32  # characters of a column's name
_NO_NAME = re.compile(r"\d|[.?!。？！]$")
_KINDS = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a string", "bool": "true or false"}


@dataclass(frozen=True)
class Piped:
    """A stream that is read as a file would be, by a name for errors."""

    name: str
    stream: IO[bytes]

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """All of it; the stream itself stays open."""
        return io.BufferedReader(cast("io.RawIOBase", io.BytesIO(self.stream.read())))

    def __str__(self) -> str:
        return self.name


def suffix(file: Path | Piped) -> str:
    """The suffix without regard to .gz: .jsonl of corpus.jsonl.gz."""
    return Path(str(file).lower().removesuffix(".gz")).suffix


def files_below(folder: Path, onerror: Callable[[OSError], object] | None = None) -> list[Path]:
    """The files of a folder and of those in it, in order of their paths, but for hidden ones and links into nowhere.

    onerror is called with what says why a folder cannot be looked into.
    """
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=onerror):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if os.path.isfile(file))  # Path.is_file raises for some links


@contextmanager
def _opened(file: Path | Piped) -> Iterator[io.BufferedReader]:
    """Its bytes, unpacked. Raises DataError where it is no text, also for what goes wrong while it is read."""
    try:
        with file.open("rb") as raw:
            stream = raw
            if raw.peek(len(_GZIP)).startswith(_GZIP):
                stream = io.BufferedReader(_Unpacked(raw, str(file)))
            _check_beginning(stream.peek(_BEGINNING)[:_BEGINNING], file)
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: is not a whole gzip file: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def is_packed(file: Path) -> bool:
    """Whether it is gzipped, whatever its name. Raises DataError where it begins as no text does."""
    try:
        with file.open("rb") as stream:
            beginning = stream.peek(_BEGINNING)[:_BEGINNING]
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    _check_mark(beginning, file)
    return beginning.startswith(_GZIP)


def is_list(file: Path) -> bool:
    """Whether a JSON file begins as a list does, which may be one line of any length."""
    with _opened(file) as stream:
        return stream.peek(_BEGINNING).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _check_mark(beginning: bytes, file: Path | Piped) -> None:
    for offset, mark, kind in MARKS:
        if beginning[offset:].startswith(mark):
            raise DataError(f"{file}: is {kind}; convert it to UTF-8 text first")


def _check_beginning(beginning: bytes, file: Path | Piped) -> None:
    _check_mark(beginning, file)
    if b"\0" in beginning:
        raise DataError(f"{file}: is a binary file (byte {beginning.index(0)} is 0); text is needed")


class _Unpacked(io.RawIOBase):
    """A gzip stream that does not grow without end."""

    def __init__(self, packed: IO[bytes], name: str) -> None:
        self._packed, self._name = _Counted(packed), name
        self._stream = gzip.GzipFile(fileobj=cast("IO[bytes]", self._packed))
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._num_bytes += len(data)
        if self._num_bytes > max(FREE_BYTES, MAX_RATIO * self._packed.num_bytes):
            raise DataError(
                f"{self._name}: unpacks to more than {MAX_RATIO} times its size; if that is meant, gunzip it first"
            )
        return len(data)


class _Counted:
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.num_bytes = stream, 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.num_bytes += len(data)
        return data


def read_text(file: Path | Piped) -> str:
    """All of a file, with \\n at the end of its lines. Raises DataError that names the line at fault."""
    with _opened(file) as stream:
        data = stream.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        _decoded(data.split(b"\n")[number - 1], f"{file}:{number}")
        raise
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines(file: Path | Piped) -> Iterator[tuple[Source, str]]:
    """Lines of a UTF-8 text file, gzipped or not, that are not blank. Raises DataError with the line at fault."""
    for source, line in raw_lines(file):
        text = _decoded(line, source)
        if text and not text.isspace():
            yield source, text


def raw_lines(file: Path | Piped) -> Iterator[tuple[Source, bytes]]:
    """All lines of a text file, gzipped or not, as they stand there. Raises DataError for one that is too long."""
    with _opened(file) as stream:
        for number, line in enumerate(iter(partial(stream.readline, MAX_LINE + 1), b""), 1):
            if len(line) > MAX_LINE:
                raise DataError(f"{file}:{number}: the line has more than {MAX_LINE / 1e6:.0f} MB")
            yield f"{file}:{number}", line


def _decoded(line: bytes, source: Source) -> str:
    try:
        return line.rstrip(b"\r\n").decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        seen = f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8"
        advice = "convert the file: iconv -f ENCODING -t utf-8, as latin1 or gb18030"
        raise DataError(f"{source}: {seen}; {advice}") from error


def columns(file: Path | Piped) -> Iterator[tuple[Source, list[str]]]:
    """The tab-separated columns of each line; those between blanks, where a line has no tab."""
    for source, line in lines(file):
        yield source, line.split("\t") if "\t" in line else line.split()


def records(file: Path | Piped) -> Iterator[tuple[Source, Mapping[str, Any]]]:
    """Objects of a JSON Lines, JSON, CSV or parquet file. Raises DataError, or MissingExtra."""
    return objects(values(file))


def objects(values: Iterable[tuple[Source, Any]]) -> Iterator[tuple[Source, Mapping[str, Any]]]:
    """The values, which have to be JSON objects. Raises DataError."""
    for source, value in values:
        if not isinstance(value, dict):
            raise DataError(f"{source}: holds {kind_of(value)}; a JSON object is needed")
        yield source, value


def values(file: Path | Piped) -> Iterator[tuple[Source, Any]]:
    """What a file of records holds, which in JSON may be something else than objects."""
    kind = suffix(file)
    if kind == ".parquet":
        return _parquet(file)
    if kind == ".csv":
        return csv_rows(read_text(file), str(file))
    return json_values(read_text(file), str(file)) if kind == ".json" else json_lines(lines(file))


def json_lines(numbered: Iterable[tuple[Source, str]]) -> Iterator[tuple[Source, Any]]:
    for source, line in numbered:
        yield source, parsed(line, source)


def json_values(text: str, name: str) -> Iterator[tuple[Source, Any]]:
    """The items of a JSON list, a JSON object alone, or JSON Lines."""
    first = next((line.strip() for line in io.StringIO(text) if line.strip()), "")
    if first.startswith("[") or first == "{":
        value = parsed(text, name)
        if not isinstance(value, list):
            yield name, value
            return
        for index, item in enumerate(value):
            yield f"{name}[{index}]", item
    else:
        yield from json_lines((f"{name}:{n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip())


def has_names(table: str, delimiter: str = "\t") -> bool:
    """Whether the first row of a table names its columns: in short, without figures, each once."""
    names = [cell.strip().strip('"') for cell in table.partition("\n")[0].split(delimiter)]
    are_names = all(0 < len(name) <= MAX_NAME and not _NO_NAME.search(name) for name in names)
    return are_names and 1 < len(names) == len(set(names))


def delimiter_of(table: str, delimiters: str = ",;\t") -> str:
    """What parts the columns of a table: that of the delimiters which its first row has most often."""
    return max(delimiters, key=table.partition("\n")[0].count)


def csv_rows(text: str, name: str, delimiters: str = ",;\t") -> Iterator[tuple[Source, Mapping[str, str]]]:
    """The rows of a table under the names of its first row; one of the delimiters parts them."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))  # of the process; 131,072 characters are no long text
    rows = csv.reader(io.StringIO(text), delimiter=delimiter_of(text, delimiters))
    names: list[str] = []
    number = 1
    try:
        for row in rows:
            source, number = f"{name}:{number}", rows.line_num + 1
            if not names:
                names = [column.strip() for column in row]
            elif len(row) > len(names):
                raise DataError(f"{source}: has {len(row)} columns; the first row names {len(names)}")
            elif any(row):
                yield source, dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise DataError(f"{name}:{rows.line_num}: is not CSV: {error}") from error


def _parquet(file: Path | Piped) -> Iterator[tuple[Source, Any]]:
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


def parsed(text: str, source: Source) -> Any:
    """The value of JSON text. Raises DataError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise DataError(f"{source}: is not JSON: {error.msg} at {at}") from error
    except RecursionError as error:
        raise DataError(f"{source}: is nested too deeply to be data") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise DataError(f"{source}: cannot be read: {error}") from error


def kind_of(value: object) -> str:
    """The kind of a JSON value, as people call it."""
    return _KINDS.get(type(value).__name__, "a number" if isinstance(value, int | float) else type(value).__name__)


def text_in(record: Mapping[str, Any], names: tuple[str, ...], source: Source) -> str:
    """The first of the named fields that is there, as text. Raises DataError where none is, or it is no text."""
    name = next((name for name in names if name in record), None)
    if name is None:
        there = ", ".join(map(str, record)) or "nothing"
        raise DataError(f'{source}: has no "{names[0]}" (it has {there})')
    value = record[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # identifiers are numbers in some sets
    if not isinstance(value, str):
        raise DataError(f'{source}: "{name}" is {kind_of(value)}; a string is needed')
    return value


def titled_text(record: Mapping[str, Any], source: Source) -> str:
    """Title and text of a record, as BEIR and MTEB rank them."""
    title = record.get("title")
    text = text_in(record, TEXT_NAMES, source)
    return f"{title} {text}".strip() if isinstance(title, str) else text


def texts_in(record: Mapping[str, Any], name: str, source: Source) -> list[str]:
    """A field that is a list of strings; [] where it is null or not there. Raises DataError."""
    values = record.get(name)
    if values is None:
        return []
    if not isinstance(values, list):
        raise DataError(f'{source}: "{name}" is {kind_of(values)}; a list of strings is needed')
    odd = [kind_of(value) for value in values if not isinstance(value, str)]
    if odd:
        raise DataError(f'{source}: "{name}" is a list with {odd[0]}; a list of strings is needed')
    return list(values)
