"""Work on examples one after the other that can be interrupted: what is done is in a file, and is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from secondpass.errors import DataError
from secondpass.training.data import Example, read_example
from secondpass.types import Progress


def continued(
    file: Path,
    key: str,
    num_examples: int,
    make: Callable[[int], Iterator[Example]],
    *,
    progress: Progress | None = None,
) -> list[Example]:
    """All examples: those in `file` from an interrupted run of the same `key`, and make(their count) for the rest.

    Every finished example is appended to the file, which the caller removes when the result is safe.
    """
    done = _read(file, key)
    if not done:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"key": key}) + "\n", "utf-8")
    with file.open("a", encoding="utf-8") as stream:
        for example in make(len(done)):
            done.append(example)
            stream.write(example.as_json() + "\n")
            stream.flush()
            if progress is not None:
                progress(len(done), num_examples)
    return done


def _read(file: Path, key: str) -> list[Example]:
    """The whole lines of a file of the same key; what is half written is cut off."""
    if not file.is_file():
        return []
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    lines = whole.decode(errors="replace").split("\n")[:-1]
    if not lines or lines[0] != json.dumps({"key": key}):
        return []
    with file.open("rb+") as stream:
        stream.truncate(len(whole))
    try:
        return [
            read_example(json.loads(line), f"{file}:{number}", needs_negatives=False)
            for number, line in enumerate(lines[1:], 2)
        ]
    except ValueError as error:
        raise DataError(f"{file}: cannot be read ({error}); remove it to begin anew") from error
