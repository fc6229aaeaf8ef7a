"""Inputs to passages: files, folders, standard input and arguments. Each passage knows where it stands."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secondpass.data import markdown as blocks
from secondpass.errors import InputError, WrongUse
from secondpass.types import Document

STDIN = "-"
FOLDER_SUFFIXES = (".txt", ".md", ".markdown", ".jsonl")
_FORMATS_NOT_TEXT = {
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a zip or office file",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True, slots=True)
class Passage:
    """A document to rank and where it comes from, as file:line."""

    document: Document
    source: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How inputs are read: the way texts are split, and the fields of JSON that are ranked."""

    split: str = "auto"
    fields: tuple[str, ...] = ()


Reader = Callable[[str, str, Reading], list[Passage]]  # text, name, how
SPLITS = {"auto": blocks.automatic, "line": blocks.lines, "paragraph": blocks.paragraphs, "whole": blocks.whole}


def read_passages(paths: Sequence[str], arguments: Sequence[str], how: Reading) -> list[Passage]:
    """The passages of arguments, then of paths in their order; without either those of standard input.

    Raises WrongUse where there is no such input, InputError where one cannot be read or nothing is in any.
    """
    passages = [Passage(Document(text), f"argument:{n}") for n, text in enumerate(arguments, 1)]
    if not paths and not arguments:
        if sys.stdin is None or sys.stdin.isatty():
            raise WrongUse(
                'nothing to rank; name a file, as in: secondpass rank "how long" notes.txt, or pipe text in'
            )
        paths = [STDIN]
    for path in paths:
        passages += _read(path, how)
    if not any(passage.document.text or passage.document.fields for passage in passages):
        where = ", ".join("standard input" if path == STDIN else path for path in paths)
        raise InputError(f"there is nothing to rank in {where or 'the arguments'}")
    return passages


def _read(path: str, how: Reading) -> Iterator[Passage]:
    if path == STDIN:
        yield from _read_text(sys.stdin.buffer.read(), "stdin", how)
        return
    place = Path(path).expanduser()
    for file in _files_of(place) if place.is_dir() else [place]:
        try:
            data = file.read_bytes()
        except FileNotFoundError as error:
            raise WrongUse(f"{file}: there is no such file{_near(file)}") from error
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from error
        yield from _read_text(data, str(file), how)


def _files_of(folder: Path) -> list[Path]:
    """The corpus of a BEIR folder, else every text file below that is not hidden."""
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if (folder / name).is_file():
            return [folder / name]
    found = sorted(file for file in folder.rglob("*") if _suffix(file.name) in FOLDER_SUFFIXES and file.is_file())
    visible = [f for f in found if not any(part.startswith(".") for part in f.relative_to(folder).parts)]
    if not visible:
        raise InputError(f"{folder}: holds no corpus.jsonl and no {', '.join(FOLDER_SUFFIXES)} file")
    return visible


def _suffix(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _near(file: Path) -> str:
    """A suggestion of names in the file's folder that look like it."""
    from difflib import get_close_matches

    if not file.parent.is_dir():
        return f", nor a folder {file.parent}"
    names = get_close_matches(file.name, [other.name for other in file.parent.iterdir()], n=2)
    return f"; did you mean {' or '.join(str(file.parent / name) for name in names)}?" if names else ""


def _read_text(data: bytes, name: str, how: Reading) -> list[Passage]:
    text = _decode(_unzipped(data, name), name)
    reader = READERS.get(_suffix(name)) or _sniffed(text)
    return reader(text, name, how)


def _unzipped(data: bytes, name: str) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}: is not a whole gzip file: {error}") from error


def _decode(data: bytes, name: str) -> str:
    """UTF-8 text with \\n at the end of its lines. Raises InputError that names the byte at fault."""
    for start, kind in _FORMATS_NOT_TEXT.items():
        if data.startswith(start):
            raise InputError(f"{name}: is {kind}; convert it to UTF-8 text first")
    mark = len(b"\xef\xbb\xbf") if data.startswith(b"\xef\xbb\xbf") else 0
    if b"\0" in data[:8192]:
        raise InputError(f"{name}: is a binary file (byte {data.index(0)} is 0); text is needed")
    try:
        text = data[mark:].decode()
    except UnicodeDecodeError as error:
        at = mark + error.start
        line = data.count(b"\n", 0, at) + 1
        raise InputError(
            f"{name}: byte {at} (0x{data[at]:02x}, line {line}) is not UTF-8; convert it: iconv -f latin1 -t utf-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _sniffed(text: str) -> Reader:
    """The reader for text of unknown kind: JSON where the first line is an object or the whole is a list."""
    first = text.lstrip()[:1]
    try:
        if first == "{" and isinstance(json.loads(text.strip().partition("\n")[0]), dict):
            return _json_lines
        if first == "[" and isinstance(json.loads(text), list):
            return _json_list
    except ValueError:
        pass  # text may begin with a bracket
    return _plain


def _plain(text: str, name: str, how: Reading) -> list[Passage]:
    return [Passage(Document(block.text), f"{name}:{block.line}") for block in SPLITS[how.split](text)]


def _markdown(text: str, name: str, how: Reading) -> list[Passage]:
    if how.split in ("line", "whole"):
        return _plain(text, name, how)
    return [
        Passage(Document(block.text, {"heading": block.heading} if block.heading else {}), f"{name}:{block.line}")
        for block in blocks.markdown(text)
    ]


def _json_lines(text: str, name: str, how: Reading) -> list[Passage]:
    passages = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            source = f"{name}:{number}"
            passages.append(Passage(_as_document(_parsed(line, source), source, how), source))
    return passages


def _json_list(text: str, name: str, how: Reading) -> list[Passage]:
    values = _parsed(text, name) if text.strip() else []
    if not isinstance(values, list):
        raise InputError(
            f"{name}: holds one {_kind(values)}; a list is needed, or one object a line in a .jsonl file"
        )
    sources = [f"{name}[{index}]" for index in range(len(values))]
    return [Passage(_as_document(value, at, how), at) for value, at in zip(values, sources, strict=True)]


def _parsed(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise InputError(f"{source}: is not JSON: {error.msg} at {at}") from error


def _as_document(value: Any, source: str, how: Reading) -> Document:
    if isinstance(value, str):
        return Document(value)
    if not isinstance(value, dict):
        raise InputError(f'{source}: holds a {_kind(value)}; an object with "text" or a string is needed')
    there = ", ".join(map(str, value)) or "nothing"
    if how.fields:
        if not any(field in value for field in how.fields):
            raise InputError(f"{source}: has none of the fields {', '.join(how.fields)} (it has {there})")
        text = value.get("text")
        return Document(text if isinstance(text, str) else "", value)
    if not isinstance(value.get("text"), str):
        raise InputError(f'{source}: has no "text" (it has {there}); name what to read, as in --fields title,body')
    return Document(_with_title(value, source), value)


def _with_title(value: Mapping[str, Any], source: str) -> str:
    """The text; in a BEIR corpus "title text", as its benchmarks read it."""
    title, text = value.get("title"), str(value["text"])
    is_beir = Path(source).name.startswith("corpus.jsonl")
    return f"{title} {text}".strip() if is_beir and isinstance(title, str) else text


def _kind(value: object) -> str:
    return {"dict": "object", "NoneType": "null", "int": "number", "float": "number"}.get(
        type(value).__name__, type(value).__name__
    )


READERS: dict[str, Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_list,
    ".md": _markdown,
    ".markdown": _markdown,
    ".txt": _plain,
}
