"""The vectors of an SQLite store: float16 in a table of the same file, searched exactly through their int8 codes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from secondpass.retrieval.bm25 import Found
from secondpass.search.stores import vectors as codes
from secondpass.search.stores.sqlite_database import Condition
from secondpass.search.stores.store import Vectors

RESCORED = 200  # nearest by int8 that are scored again, at least
READ = 4096  # vectors that are read at a time, so that memory stays small
Kept = bytes | int  # what the table `vectors` has for a chunk


class VectorTable(Protocol):
    """Where the vectors of an SQLite store are. Its table `vectors` has for each chunk that has one what `kept` says.

    All is called within a transaction of the connection, but for `tidy` and `forget`.
    """

    def kept(self, rows: Sequence[Vectors]) -> Sequence[Kept]:
        """What to write into the table for vectors (C,)."""
        ...

    def read(self, kept: Sequence[Kept]) -> list[Vectors]:
        """The vectors of what the table has, in that order."""
        ...

    def nearest(self, connection: sqlite3.Connection, vector: Vectors, limit: int, only: Condition | None) -> Found:
        """Ids and cosines of the nearest chunks, best first."""
        ...

    def tidy(self, connection: sqlite3.Connection) -> None:
        """After many writes."""
        ...

    def forget(self, connection: sqlite3.Connection) -> None:
        """After chunks were removed: nothing of their vectors is left in any file."""
        ...

    def files(self) -> list[Path]:
        """What lies beside the database, for its size and to be removed with it."""
        ...


class OwnVectors:
    """Vectors in the table itself. file: of the database; beside it lies a copy of the codes, which is mapped."""

    def __init__(self, file: Path) -> None:
        self._copy = file.with_name(f"{file.name}-vectors")
        self._codes = codes.empty()
        self._state = codes.Version(-1, -1)

    def kept(self, rows: Sequence[Vectors]) -> list[bytes]:
        return [np.asarray(row, np.float16).tobytes() for row in rows]

    def read(self, kept: Sequence[Kept]) -> list[Vectors]:
        return [np.frombuffer(row, np.float16).astype(np.float32) for row in kept if isinstance(row, bytes)]

    def nearest(self, connection: sqlite3.Connection, vector: Vectors, limit: int, only: Condition | None) -> Found:
        self._refresh(connection)
        allowed = None
        if only is not None:
            rows = connection.execute(f"select c.id from chunks c where {only[0]}", only[1]).fetchall()
            allowed = np.array([row[0] for row in rows], np.int64)
        near = self._codes.nearest(vector, max(2 * limit, RESCORED), allowed)
        found = connection.execute(
            "select chunk, vector from vectors where chunk in (select value from json_each(?))",
            (json.dumps(near.tolist()),),
        ).fetchall()
        return codes.rescored(vector, found, limit)

    def tidy(self, connection: sqlite3.Connection) -> None:
        self._refresh(connection)
        with suppress(OSError):  # a copy, made again when it is missing
            codes.save(self._copy, self._codes, self._state)

    def forget(self, connection: sqlite3.Connection) -> None:
        if self._copy.exists():
            self.tidy(connection)

    def files(self) -> list[Path]:
        return [self._copy]

    def _refresh(self, connection: sqlite3.Connection) -> None:
        """Read the codes of what other writers have changed."""
        facts = dict(connection.execute("select name, value from meta where name in ('generation', 'epoch')"))
        state = codes.Version(int(facts["generation"]), int(facts["epoch"]))
        if state == self._state:
            return
        known = (self._codes, self._state)
        base, of = known if self._state.epoch == state.epoch else codes.load(self._copy) or known
        if of != state:
            base = _caught_up(connection, base if of.epoch == state.epoch else codes.empty())
        self._codes, self._state = base, state


def _caught_up(connection: sqlite3.Connection, base: codes.Codes) -> codes.Codes:
    """The codes as the store has them now: without the rows of chunks that went, with the new ones."""
    last = int(base.ids[-1]) if len(base) else -1
    live = np.fromiter((row[0] for row in connection.execute("select id from chunks")), np.int64)
    is_kept = np.isin(base.ids, live)
    count, size = connection.execute(
        "select count(*), length(vector) from vectors where chunk > ?", (last,)
    ).fetchone()
    if is_kept.all() and not count:
        return base
    filled = int(is_kept.sum())
    found = codes.room(filled + count, size // 2 if count else base.codes.shape[1])
    if filled:
        base.copy_to(found, is_kept)
    # others may write meanwhile: what is newer than the count is read when it is next asked for
    newer = "select chunk, vector from vectors where chunk > ? order by chunk limit ?"
    rows = connection.execute(newer, (last, count))
    while some := rows.fetchmany(READ):
        matrix = np.frombuffer(b"".join(row[1] for row in some), np.float16).reshape(len(some), -1)
        found.fill(filled, codes.Codes.of(np.array([row[0] for row in some], np.int64), matrix))
        filled += len(some)
    return found.first(filled)
