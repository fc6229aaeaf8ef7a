"""Files that a stranger wrote: only plain ones of a sane size are read, and every fault names the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Any

from secondpass.errors import CheckpointError

_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_JSON = 64 << 20  # bytes; the largest that are read this way are lists of added tokens, of some megabytes


def check_plain(file: Path, max_bytes: int) -> None:
    """Raises CheckpointError for what is no plain file, such as a link to a device, or is larger than `max_bytes`.

    Also for what Git left in the place of a large file.
    FileNotFoundError where it is not there.
    """
    try:
        facts = file.stat()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a loop of links, a NUL in a name
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    if not S_ISREG(facts.st_mode):
        raise CheckpointError(f"{file}: a plain file is needed, this is none")
    if facts.st_size > max_bytes:
        raise CheckpointError(f"{file}: has {facts.st_size:,} bytes, at most {max_bytes:,} are read of such a file")
    check_fetched(file)


def check_fetched(file: Path) -> None:
    """Raises CheckpointError for what Git leaves in the place of a large file where git-lfs is not installed."""
    try:
        with file.open("rb") as stream:
            is_pointer = stream.read(len(_POINTER)) == _POINTER
    except OSError:
        return  # which is said by who reads it
    if is_pointer:
        raise CheckpointError(
            f"{file}: is only a pointer of Git LFS, not the file; install git-lfs, run `git lfs pull` in its folder"
        )


def read_text(file: Path, max_bytes: int = MAX_JSON) -> str:
    """The text of a plain file. Raises as `check_plain` does, and for what is not UTF-8."""
    check_plain(file, max_bytes)
    try:
        with file.open("rb") as stream:
            return stream.read(max_bytes).decode("utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError that names the file."""
    content = parsed(_text(file), str(file))
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, a JSON object is needed")
    return content


def read_json_list(file: Path) -> Sequence[Any]:
    """A JSON list. Raises CheckpointError that names the file."""
    content = parsed(_text(file), str(file))
    if not isinstance(content, list):
        raise CheckpointError(f"{file}: not a list in JSON, but a {type(content).__name__}")
    return content


def parsed(text: str | bytes, where: str) -> Any:
    """What a JSON text says. `where` begins the message of the CheckpointError for what is none."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise CheckpointError(f"{where}: not readable as JSON: nested too deep") from error
    except ValueError as error:
        raise CheckpointError(f"{where}: not readable as JSON: {error}") from error


def _text(file: Path) -> str:
    try:
        return read_text(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file.parent}: no {file.name}") from error
