"""What retrievers read of the texts of an SQLite store: rows of the same file, searched through what is gathered."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secondpass.search.stores.gathered import Gathered
from secondpass.search.stores.readings import GatheredReadings
from secondpass.search.stores.sqlite_database import SqliteDatabase, condition, has_superseded
from secondpass.search.stores.store import Filter
from secondpass.search.stores.vectors import discard

_TABLE = """create table if not exists readings(id integer primary key autoincrement, stage text not null,
    digest blob not null, value blob not null, unique(stage, digest))"""


class SqliteReadings(GatheredReadings[sqlite3.Connection]):
    """The Readings of one stage, by the digests of texts.

    Made with the first reading: an index without retrievers has no table for them.
    """

    copy: Path

    def __init__(self, database: SqliteDatabase, stage: str, copy: Path) -> None:
        super().__init__(stage, str(database.file), copy)
        self._database = database

    def begin(self, mark: str) -> None:
        with self._database.transaction(has_new_content=False) as connection:
            connection.execute(_TABLE)
            before = self._mark(connection)
            # of texts that are gone: what a release left there that knew of no readings
            gone = "and digest not in (select digest from chunks)" if before == mark else ""
            connection.execute(f"delete from readings where stage = ? {gone}", (self.stage,))
            connection.execute("insert or replace into meta values(?, ?)", (f"readings:{self.stage}", mark))

    def missing(self, mark: str) -> list[int]:
        with self._database.reading() as connection:
            self._check_mark(connection, mark)
            rows = connection.execute(
                "select min(id) from chunks where digest not in (select digest from readings where stage = ?) "
                "group by digest",
                (self.stage,),
            ).fetchall()
        return sorted(row[0] for row in rows)

    def add(self, mark: str, values: Mapping[bytes, bytes]) -> None:
        with self._database.transaction(has_new_content=False) as connection:
            if self._mark(connection) == mark:  # else another process changed it meanwhile
                connection.executemany(
                    "insert or ignore into readings(stage, digest, value) select :stage, :digest, :value "
                    "where exists (select 1 from chunks where digest = :digest)",
                    [{"stage": self.stage, "digest": digest, "value": value} for digest, value in values.items()],
                )

    def forget(self, connection: sqlite3.Connection, digests: Iterable[bytes]) -> None:
        """Within a transaction that deletes chunks: forget the readings of texts that no chunk has any more."""
        if self._mark(connection) is not None:
            connection.executemany(
                "delete from readings where stage = :stage and digest = :digest "
                "and not exists (select 1 from chunks where digest = :digest)",
                [{"stage": self.stage, "digest": digest} for digest in set(digests)],
            )

    def trim(self, connection: sqlite3.Connection) -> None:
        """After chunks were removed: nothing of their readings is left in the copy."""
        mark = self._mark(connection)
        base = None if mark is None else Gathered.load(self.copy, mark)
        if mark is None or base is None:
            discard(self.copy)
            return
        with suppress(OSError):
            base.only(self._ids(connection)).save(self.copy, mark)

    def drop(self) -> None:
        """Forget them all: there is no such retriever any more."""
        with self._database.transaction(has_new_content=False) as connection:
            if self._mark(connection) is not None:
                connection.execute("delete from readings where stage = ?", (self.stage,))
                connection.execute("delete from meta where name = ?", (f"readings:{self.stage}",))
        self._gathered = None
        discard(self.copy)

    def _reading(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._database.reading()

    def _mark(self, connection: sqlite3.Connection) -> str | None:
        row = connection.execute("select value from meta where name = ?", (f"readings:{self.stage}",)).fetchone()
        return None if row is None else str(row[0])

    def _count(self, connection: sqlite3.Connection) -> tuple[int, int | None]:
        query = "select count(*), max(id) from readings where stage = ?"
        count, last = connection.execute(query, (self.stage,)).fetchone()
        return count, last

    def _ids(self, connection: sqlite3.Connection) -> NDArray[np.int64]:
        rows = connection.execute("select id from readings where stage = ? order by id", (self.stage,))
        return np.fromiter((row[0] for row in rows), np.int64)

    def _values(self, connection: sqlite3.Connection, ids: NDArray[np.int64]) -> dict[int, bytes]:
        rows = connection.execute(
            "select id, value from readings where id in (select value from json_each(?)) order by id",
            (json.dumps(ids.tolist()),),
        )
        return {row[0]: bytes(row[1]) for row in rows}

    def _allowed(self, connection: sqlite3.Connection, only: Filter) -> NDArray[np.int64] | None:
        if only.is_open and not has_superseded(connection):
            return None
        where, values = condition(only, "c.id")
        rows = connection.execute(
            f"select r.id from readings r join chunks c on c.digest = r.digest where r.stage = ? and {where}",
            (self.stage, *values),
        )
        return np.fromiter((row[0] for row in rows), np.int64)

    def _chunks(
        self, connection: sqlite3.Connection, ids: NDArray[np.int64], only: Filter
    ) -> Iterable[tuple[int, int]]:
        where, values = condition(only, "c.id")
        return connection.execute(
            "select c.id, r.id from chunks c join readings r on r.digest = c.digest and r.stage = ? "
            f"where r.id in (select value from json_each(?)) and {where}",
            (self.stage, json.dumps(ids.tolist()), *values),
        )
