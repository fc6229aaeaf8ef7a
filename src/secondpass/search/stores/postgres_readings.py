"""What retrievers read of the texts of a PostgreSQL store: rows of its schema, gathered by each process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secondpass.search.stores.postgres_database import PostgresDatabase, condition
from secondpass.search.stores.readings import GatheredReadings
from secondpass.search.stores.store import Filter

if TYPE_CHECKING:
    from psycopg import Connection

TABLE = """
create table if not exists {s}.readings(id bigserial primary key, stage text not null, digest bytea not null,
    value bytea not null, unique(stage, digest));
"""


class PostgresReadings(GatheredReadings["Connection[Any]"]):
    """The Readings of one stage, by the digests of texts.

    Writers of an index wait for one another, so later readings have higher ids.
    """

    def __init__(self, database: PostgresDatabase, stage: str) -> None:
        super().__init__(stage, database.location)
        self._database = database

    def begin(self, mark: str) -> None:
        with self._database.transaction() as connection:
            before = self._mark(connection)
            gone = "and digest not in (select digest from {s}.chunks)" if before == mark else ""
            self._run(connection, f"delete from {{s}}.readings where stage = %s {gone}", (self.stage,))
            self._run(
                connection,
                "insert into {s}.meta values(%s, %s) on conflict (name) do update set value = excluded.value",
                (f"readings:{self.stage}", mark),
            )

    def missing(self, mark: str) -> list[int]:
        with self._database.reading() as connection:
            self._check_mark(connection, mark)
            rows = self._run(
                connection,
                "select min(c.id) from {s}.chunks c where not exists (select 1 from {s}.readings r "
                "where r.stage = %s and r.digest = c.digest) group by c.digest order by 1",
                (self.stage,),
            )
            return [row[0] for row in rows]

    def add(self, mark: str, values: Mapping[bytes, bytes]) -> None:
        with self._database.transaction() as connection, connection.cursor() as cursor:
            if self._mark(connection) == mark:  # else another process changed it meanwhile
                cursor.executemany(
                    self._database.sql(
                        "insert into {s}.readings(stage, digest, value) select %(stage)s, %(digest)s, %(value)s "
                        "where exists (select 1 from {s}.chunks where digest = %(digest)s) on conflict do nothing"
                    ),
                    [{"stage": self.stage, "digest": digest, "value": value} for digest, value in values.items()],
                )

    def drop(self) -> None:
        with self._database.transaction() as connection:
            self._run(connection, "delete from {s}.readings where stage = %s", (self.stage,))
            self._run(connection, "delete from {s}.meta where name = %s", (f"readings:{self.stage}",))
        self._gathered = None

    def _reading(self) -> AbstractContextManager[Connection[Any]]:
        return self._database.reading()

    def _mark(self, connection: Connection[Any]) -> str | None:
        rows = self._run(connection, "select value from {s}.meta where name = %s", (f"readings:{self.stage}",))
        return next((str(row[0]) for row in rows), None)

    def _count(self, connection: Connection[Any]) -> tuple[int, int | None]:
        query = "select count(*), max(id) from {s}.readings where stage = %s"
        ((count, last),) = self._run(connection, query, (self.stage,))
        return count, last

    def _ids(self, connection: Connection[Any]) -> NDArray[np.int64]:
        query = "select id from {s}.readings where stage = %s order by id"
        return np.fromiter((row[0] for row in self._run(connection, query, (self.stage,))), np.int64)

    def _values(self, connection: Connection[Any], ids: NDArray[np.int64]) -> dict[int, bytes]:
        query = "select id, value from {s}.readings where id = any(%s) order by id"
        return {id: bytes(value) for id, value in self._run(connection, query, (ids.tolist(),))}

    def _allowed(self, connection: Connection[Any], only: Filter) -> NDArray[np.int64] | None:
        superseded = "select 1 from {s}.chunks where superseded_by is not null limit 1"
        if only.is_open and not list(self._run(connection, superseded)):
            return None
        where, values = condition(only)
        rows = self._run(
            connection,
            "select r.id from {s}.readings r join {s}.chunks c using (digest) join {s}.files f on f.id = c.file "
            f"where r.stage = %(stage)s and {where}",
            {**values, "stage": self.stage},
        )
        return np.fromiter((row[0] for row in rows), np.int64)

    def _chunks(self, connection: Connection[Any], ids: NDArray[np.int64], only: Filter) -> Iterable[tuple[int, int]]:
        where, values = condition(only)
        return self._run(
            connection,
            "select c.id, r.id from {s}.readings r join {s}.chunks c using (digest) "
            f"join {{s}}.files f on f.id = c.file where r.id = any(%(ids)s) and {where}",
            {**values, "ids": ids.tolist()},
        )

    def _run(self, connection: Connection[Any], query: str, values: Any = ()) -> Iterable[tuple[Any, ...]]:
        rows: Iterable[tuple[Any, ...]] = connection.execute(self._database.sql(query), values)
        return rows
