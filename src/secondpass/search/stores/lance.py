"""Vectors in LanceDB, for indexes whose vectors are too many to be compared one by one.

All else stays in the SQLite file, for LanceDB has no transaction over several tables. Rows are only ever added, under
random keys, before the transaction that names their keys is committed: a process that is killed leaves at most rows
that nobody names, and `tidy` deletes those. Up to INDEXED_FROM vectors the nearest are exact; from there `tidy`
builds an index of LanceDB's and they are approximate.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from secrets import randbits
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from secondpass.errors import MissingExtra, StoreError
from secondpass.retrieval.bm25 import Found
from secondpass.search.stores.sqlite_database import Condition
from secondpass.search.stores.sqlite_vectors import Kept
from secondpass.search.stores.store import Vectors

if TYPE_CHECKING:
    import pyarrow as pa

INDEXED_FROM = 100_000
FEW = 2000  # chunks that pass a filter, up to which all of them are compared
NAMED = 1000  # keys in one condition
KEPT_FOR = timedelta(minutes=10)  # old versions of a table, for who still reads them
Result = TypeVar("Result")
AT_ONCE = timedelta(milliseconds=1)  # 0 would do the same, with a warning
_PREFIX = "vectors_"  # of tables, one for each width


class LanceVectors:
    """A VectorTable in a folder of LanceDB. Raises MissingExtra, and StoreError where it cannot be used."""

    def __init__(self, folder: Path) -> None:
        try:
            import lancedb
        except ImportError:
            raise MissingExtra("lancedb", "lancedb") from None
        self._folder = folder
        with self._explained():
            folder.mkdir(0o700, parents=True, exist_ok=True)
            self._connection = lancedb.connect(folder, read_consistency_interval=timedelta(0))

    def kept(self, rows: Sequence[Vectors]) -> list[int]:
        keys = [randbits(63) for _ in rows]
        if rows:
            with self._explained():
                batch = _batch(keys, np.asarray(rows, np.float16))
                table = self._connection.create_table(f"{_PREFIX}{len(rows[0])}", schema=batch.schema, exist_ok=True)
                table.add(batch)
        return keys

    def read(self, kept: Sequence[Kept]) -> list[Vectors]:
        wanted = [int(key) for key in kept]

        def read() -> dict[int, Vectors]:
            found: dict[int, Vectors] = {}
            for table in self._tables():
                for start in range(0, len(wanted), NAMED):
                    rows = table.search().where(_named(wanted[start : start + NAMED])).to_arrow()
                    found |= dict(zip(rows["key"].to_pylist(), _matrix(rows), strict=True))
            return found

        found = self._twice(read)
        return [found[key] for key in wanted]

    def nearest(self, connection: sqlite3.Connection, vector: Vectors, limit: int, only: Condition | None) -> Found:
        name = f"{_PREFIX}{len(vector)}"
        if name not in self._names() or limit < 1:
            return []
        if only is not None:
            few = connection.execute(
                f"select c.id, v.vector from chunks c join vectors v on v.chunk = c.id where {only[0]} limit ?",
                (*only[1], FEW + 1),
            ).fetchall()
            if len(few) <= FEW:
                rows = self.read([key for _, key in few])
                return _best([id for id, _ in few], np.array([row @ vector for row in rows]), limit)
        return self._twice(
            lambda: self._searched(connection, self._connection.open_table(name), vector, (limit, only))
        )

    def tidy(self, connection: sqlite3.Connection) -> None:
        with self._explained():
            for table in self._tables():
                with _alone(connection):
                    self._delete_unnamed(connection, table)
                _index(table)
                table.optimize(cleanup_older_than=KEPT_FOR)

    def forget(self, connection: sqlite3.Connection) -> None:
        """LanceDB only marks deleted rows, and rewrites a part of a table when a tenth is gone, or to join two.

        So one row is moved into a part of its own, and all parts of fewer than a million rows are joined; those that
        are in an index would not be. Who reads meanwhile reads again; who would write has to wait.
        """
        with self._explained():
            for table in self._tables():
                with _alone(connection):
                    self._delete_unnamed(connection, table)
                    for index in table.list_indices():
                        table.drop_index(index.name)
                    for row in table.search().select(["key"]).limit(1).to_list():
                        table.update(where=_named([row["key"]]), values_sql={"key": "key"})
                    table.optimize(cleanup_older_than=KEPT_FOR)
                    time.sleep(10 * AT_ONCE.total_seconds())  # else the version before may be too young to go
                    table.optimize(cleanup_older_than=AT_ONCE)
                _index(table)

    def files(self) -> list[Path]:
        return [self._folder]

    def _searched(
        self, connection: sqlite3.Connection, table: Any, vector: Vectors, asked: tuple[int, Condition | None]
    ) -> Found:
        """The nearest that the database names and the condition lets pass; more are read until they are enough."""
        limit, only = asked
        count, looked_at = table.count_rows(), 2 * limit
        where, values = only or ("1", ())
        while True:
            rows = table.search(vector).distance_type("dot").refine_factor(2).limit(looked_at).to_arrow()
            at = {key: row for row, key in enumerate(rows["key"].to_pylist())}
            named = connection.execute(
                "select c.id, v.vector from vectors v join chunks c on c.id = v.chunk "
                f"where v.vector in (select value from json_each(?)) and {where}",
                (json.dumps(list(at)), *values),
            ).fetchall()
            if len(named) >= limit or looked_at >= count:
                matrix = _matrix(rows)[[at[key] for _, key in named]]
                return _best([id for id, _ in named], matrix @ vector, limit)
            looked_at *= 4

    def _delete_unnamed(self, connection: sqlite3.Connection, table: Any) -> None:
        """Delete the rows that the database does not name, while nobody adds any: those are not named yet."""
        named = np.fromiter((row[0] for row in connection.execute("select vector from vectors")), np.int64)
        there = table.search().select(["key"]).to_arrow()["key"].to_numpy()
        stale = np.setdiff1d(there, named).tolist()
        if len(stale) == len(there):
            table.delete("true")
        else:
            for start in range(0, len(stale), NAMED):
                table.delete(_named(stale[start : start + NAMED]))

    def _names(self) -> list[str]:
        with self._explained():
            return [name for name in self._connection.list_tables().tables if name.startswith(_PREFIX)]

    def _tables(self) -> Iterator[Any]:
        for name in self._names():
            yield self._connection.open_table(name)

    def _twice(self, read: Callable[[], Result]) -> Result:
        """What `read` gives; again where another process removed meanwhile what was being read."""
        with suppress(OSError, RuntimeError):
            return read()
        with self._explained():
            return read()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            raise StoreError(f"{self._folder}: LanceDB says: {said}; what was finished is kept") from error


@contextmanager
def _alone(connection: sqlite3.Connection) -> Iterator[None]:
    """Writers wait meanwhile."""
    connection.execute("begin immediate")
    try:
        yield
    finally:
        connection.execute("rollback")


def _index(table: Any) -> None:
    """An index for a table that is large and has none."""
    from lancedb.index import BTree, IvfSq

    if table.count_rows() >= INDEXED_FROM and not table.list_indices():
        table.create_index("vector", config=IvfSq(distance_type="dot"))
        table.create_index("key", config=BTree())


def _batch(keys: Sequence[int], rows: np.ndarray[Any, np.dtype[np.float16]]) -> pa.RecordBatch:
    import pyarrow as pa

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    return pa.RecordBatch.from_arrays([pa.array(keys, pa.int64()), vectors], ["key", "vector"])


def _matrix(rows: pa.Table) -> Vectors:
    column = rows["vector"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    matrix: Vectors = values.astype(np.float32).reshape(len(column), -1)
    return matrix


def _named(keys: Sequence[int]) -> str:
    return f"key in ({', '.join(map(str, keys))})"


def _best(ids: Sequence[int], scores: Vectors, limit: int) -> Found:
    order = np.lexsort((np.array(ids), -scores))[:limit]
    return [(ids[at], float(scores[at])) for at in order]
