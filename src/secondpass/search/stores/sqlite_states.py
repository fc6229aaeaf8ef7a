"""States of passages beside an SQLite index: a file for each text, in a folder for what made them.

They are what a reranker would compute, so whatever is missing is computed. A file appears whole, while a chunk with
its text is in the index for certain, and goes before that does: a process that is killed may lose states that could
have stayed, and leaves none of a text that was forgotten.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from secondpass.errors import StoreError
from secondpass.search.stores.sqlite_database import SqliteDatabase


class SqliteStates:
    """The PassageStates of a database's chunks, kept while `folder` is there."""

    def __init__(self, database: SqliteDatabase, folder: Path) -> None:
        self._database = database
        self.folder = folder

    @property
    def is_kept(self) -> bool:
        return self.folder.is_dir()

    def switch(self, is_kept: bool) -> None:
        if is_kept == self.is_kept:
            return
        with self._database.transaction(has_new_content=False):  # nobody writes any meanwhile
            if is_kept:
                self.folder.mkdir(0o700)
            else:
                shutil.rmtree(self.folder)

    def missing(self, mark: str) -> list[int]:
        for other in self._marks():
            if other != mark:
                shutil.rmtree(self.folder / other, ignore_errors=True)
        there = {file.name for file in self.folder.glob(f"{mark}/*/*")}
        with self._database.reading() as connection:
            rows = connection.execute("select min(id), digest from chunks group by digest").fetchall()
        return sorted(id for id, digest in rows if digest.hex() not in there)

    def read(self, mark: str, digests: Sequence[bytes]) -> list[bytes]:
        found = []
        for digest in digests:
            with suppress(OSError):
                found.append(self._file(mark, digest).read_bytes())
        return found

    def add(self, mark: str, states: Mapping[bytes, bytes]) -> None:
        with self._database.transaction(has_new_content=False) as connection:
            if not self.is_kept:
                return
            try:
                for digest in _of_chunks(connection, states):
                    _write(self._file(mark, digest), states[digest])
            except OSError as error:
                raise StoreError(
                    f"{self.folder}: states of passages cannot be written ({error.strerror}); free some space and "
                    "run it again: what was finished is kept"
                ) from error

    def forget(self, connection: sqlite3.Connection, digests: Iterable[bytes]) -> None:
        """Within a transaction that deletes chunks: forget the states of those that no chunk has any more."""
        marks = self._marks()
        for digest in set(digests) - _of_chunks(connection, digests) if marks else ():
            for mark in marks:
                for file in _both(self._file(mark, digest)):
                    file.unlink(missing_ok=True)

    def _marks(self) -> list[str]:
        return os.listdir(self.folder) if self.is_kept else []

    def _file(self, mark: str, digest: bytes) -> Path:
        return self.folder / mark / digest.hex()[:2] / digest.hex()


def _write(file: Path, data: bytes) -> None:
    """A file that appears whole, also after a power cut."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _, partial = _both(file)
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _both(file: Path) -> tuple[Path, Path]:
    """A file, and the name under which it is written, by the one writer that there is at a time.

    `atomic.whole_file` names it by the process: what one that was killed left there could not be forgotten.
    """
    return file, file.with_name(f".{file.name}")


def _of_chunks(connection: sqlite3.Connection, digests: Iterable[bytes]) -> set[bytes]:
    """Those of the digests that chunks have."""
    there = "select 1 from chunks where digest = ? limit 1"
    return {digest for digest in set(digests) if connection.execute(there, (digest,)).fetchone()}
