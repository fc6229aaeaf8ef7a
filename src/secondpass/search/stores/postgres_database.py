"""A PostgreSQL database that keeps indexes, one schema each: connections, transactions, errors that help."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from secondpass.errors import MissingExtra, StoreError
from secondpass.search.stores.store import Filter, as_json

if TYPE_CHECKING:
    from psycopg import Connection

PREFIX = "secondpass_"  # of the schemas
WAIT_S = 10.0  # for a connection


class PostgresDatabase:
    """The schema of one index, over a pool of connections. `{s}` in a statement stands for the schema.

    Every `transaction` happens wholly or not. Raises StoreError where the database cannot be reached.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url, self._schema = url, schema_of(name)
        self._pool = _open_pool(url)
        self._held = threading.local()  # the connection of a thread that is in a transaction

    @property
    def location(self) -> str:
        """The address without its password."""
        return location_of(self._url)

    @contextmanager
    def reading(self) -> Iterator[Connection[Any]]:
        """A connection in a transaction: this thread's own where it is in one, else another."""
        import psycopg

        held: Connection[Any] | None = getattr(self._held, "connection", None)
        if held is not None:
            yield held
            return
        try:
            with self._pool.connection(WAIT_S) as connection:
                yield connection
        except psycopg.Error as error:
            raise StoreError(f"{self.location}: {_said(error)}") from error

    @contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        """A transaction that waits for other writers of the same index, with all that this thread does inside."""
        with self.reading() as connection:
            connection.execute("select pg_advisory_xact_lock(hashtext(%s))", (self._schema,))
            before = getattr(self._held, "connection", None)
            self._held.connection = connection
            try:
                yield connection
            finally:
                self._held.connection = before

    def one(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> tuple[Any, ...] | None:
        rows = self.all(query, values)
        return rows[0] if rows else None

    def all(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        with self.reading() as connection:
            rows: list[tuple[Any, ...]] = connection.execute(self.sql(query), values).fetchall()
        return rows

    def sql(self, query: str) -> Any:
        return query.replace("{s}", self._schema)

    def close(self) -> None:
        self._pool.close()


def condition(only: Filter) -> tuple[str, dict[str, Any]]:
    """The filter as SQL over the tables c and f, with its values."""
    tests = ["true"] if only.has_superseded else ["c.superseded_by is null"]
    values: dict[str, Any] = {}
    if only.paths:
        globs = [_pattern(path) for path in only.paths if only.is_glob]
        each = [f"position(%(path{n})s in f.path) > 0" for n in range(len(only.paths))]
        each += [f"f.path ~ %(glob{n})s" for n in range(len(globs))]
        tests.append(f"({' or '.join(each)})")
        values |= {f"path{n}": path for n, path in enumerate(only.paths)}
        values |= {f"glob{n}": glob for n, glob in enumerate(globs)}
    if only.since is not None:
        tests.append("c.created >= %(since)s")
        values["since"] = only.since
    if only.until is not None:
        tests.append("c.created <= %(until)s")
        values["until"] = only.until
    if only.held_at is not None:
        tests.append("not coalesce((c.fields->>'superseded_at')::double precision <= %(held_at)s, false)")
        values["held_at"] = only.held_at
    for number, (name, value) in enumerate(only.fields.items()):
        tests.append(f"(c.fields @> %(is{number})s::jsonb or c.fields @> %(has{number})s::jsonb)")
        values |= {f"is{number}": as_json({name: value}), f"has{number}": as_json({name: [value]})}
    return " and ".join(tests), values


def _pattern(glob: str) -> str:
    """A glob over whole paths, or over the ends of paths, as a regular expression of PostgreSQL."""
    parts = re.split(r"(\*|\?|\[!?[^]]+\])", glob)
    signs = {"*": ".*", "?": "."}
    whole = "".join(
        signs.get(part) or (part.replace("[!", "[^", 1) if index % 2 else re.escape(part))
        for index, part in enumerate(parts)
    )
    return f"^{'' if glob.startswith(('/', '*')) else '.*'}{whole}$"


def index_names(url: str) -> list[str]:
    """The indexes in a database. Raises StoreError where it cannot be reached."""
    import psycopg

    with _open_pool(url) as pool:
        try:
            with pool.connection(WAIT_S) as connection:
                rows = connection.execute(
                    "select nspname from pg_namespace where starts_with(nspname, %s) order by 1", (PREFIX,)
                ).fetchall()
        except psycopg.Error as error:
            raise StoreError(f"{location_of(url)}: {_said(error)}") from error
    return [str(row[0]).removeprefix(PREFIX) for row in rows]


def location_of(url: str) -> str:
    """The address of a database for people: without a password."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def schema_of(name: str) -> str:
    """The schema of an index, quoted. Raises ValueError for a name that PostgreSQL would cut."""
    schema = f"{PREFIX}{name}"
    if len(schema.encode()) > 63:
        raise ValueError(
            f"the name of an index in PostgreSQL has at most {63 - len(PREFIX)} bytes; {name!r} has more"
        )
    return f'"{schema}"'


def _open_pool(url: str) -> Any:
    """Connections of one process. Raises StoreError where the first cannot be made."""
    try:
        import psycopg
        from psycopg_pool import ConnectionPool
    except ImportError:
        raise MissingExtra("psycopg", "postgres") from None
    try:
        psycopg.connect(url, connect_timeout=int(WAIT_S)).close()
    except psycopg.Error as error:
        raise StoreError(f"{location_of(url)}: {_said(error)}") from error
    return ConnectionPool(url, min_size=0, max_size=8, open=True, name="secondpass-index")


def _said(error: Exception) -> str:
    """What the database says, and what a person can do about it."""
    import psycopg

    without_vector = "pgvector is not installed there; install it, or ask the administrator to"
    advice: dict[type[Exception], str] = {
        psycopg.errors.UndefinedFile: without_vector,
        psycopg.errors.FeatureNotSupported: without_vector,
        psycopg.errors.InsufficientPrivilege: "the user may not do that; ask the administrator for the right",
        psycopg.errors.DiskFull: "its disk is full; free some space and run it again: what was finished is kept",
    }
    what = " ".join(str(error).split()) or type(error).__name__
    return next((f"{what}; {more}" for kind, more in advice.items() if isinstance(error, kind)), what)
