"""An SQLite file that several processes may open: safe creation, transactions, errors that say what to do."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from secondpass.errors import IndexGone, StoreError
from secondpass.search.stores.store import Filter

Condition = tuple[str, Sequence[object]]  # SQL over a chunk's id, and its values

FORMAT = 1
BUSY_S = 30.0  # how long a writer waits for another one
# What SQLite says, and what a person can do about it.
_ADVICE = {
    "full": "the disk is full; free some space and run it again: what was finished is kept",
    "disk I/O error": "the disk cannot be written or read; free some space or look at the disk, then run it again",
    "locked": f"another process is writing, and did not end within {BUSY_S:.0f} s; try again later",
    "readonly": "it cannot be written; look at the permissions of the file and of its folder",
    "unable to open": "it cannot be opened; look at the permissions of the file and of its folder",
    "not a database": "is not an index; move it away and run secondpass add again",
    "malformed": "is damaged; move it away and run secondpass add again",
}
_SCHEMA = """
create table meta(name text primary key, value text not null) without rowid;
create table files(id integer primary key, path text not null unique, root text not null, digest text not null,
    size integer not null, modified_ns integer not null);
create table chunks(id integer primary key autoincrement, file integer not null, heading text not null,
    text text not null, first_line integer not null, last_line integer not null, start integer not null,
    stop integer not null, digest blob not null, similarity integer not null, created real, superseded_by integer,
    entities text not null, fields text not null);
create index chunks_file on chunks(file);
create index chunks_digest on chunks(digest);
create index chunks_superseded on chunks(id) where superseded_by is not null;
create table vectors(chunk integer primary key, vector blob not null);
create table entities(name text not null, chunk integer not null, primary key(name, chunk)) without rowid;
create index entities_chunk on entities(chunk);
create table accesses(digest blob not null, time real not null, kind text not null);
create index accesses_digest on accesses(digest);
create table judgements(id integer primary key, value text not null);
create virtual table postings using fts5(words, content='', tokenize='ascii');
"""


_MAKING = threading.Lock()


def _make_file(file: Path) -> None:
    """An empty file that nobody else reads, if there is none.

    One that is there is never opened beside SQLite: a process that closes a file gives up all its locks on it, those
    of connections too. Others would then take a log that is in use for a left one, and delete it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _MAKING:
        if not file.exists():
            with suppress(FileExistsError):
                os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


class SqliteDatabase:
    """A connection that threads share in turn, and one for long searches beside it.

    Every `transaction` happens wholly or not, also after a crash.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock, self._searching = threading.RLock(), threading.Lock()
        self._writer: int | None = None  # the thread of the transaction that is open
        with self._explained():
            self._connection = self._open()
            self._beside = self._open()
            # a writer would go through all of the file, and have as much of it in its memory
            self._beside.execute("pragma mmap_size = 268435456")
            self._opened = os.stat(file)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for statements that only read."""
        with self._lock, self._explained():
            self._check_there()
            yield self._connection

    @contextmanager
    def searching(self) -> Iterator[sqlite3.Connection]:
        """A connection for a statement that reads for long: others go on meanwhile. It sees what was committed.

        Within a transaction of this thread it is the transaction's.
        """
        if self._writer == threading.get_ident():
            yield self._connection
            return
        with self._searching, self._explained():
            self._check_there()
            yield self._beside

    @contextmanager
    def transaction(self, *, has_new_content: bool = True) -> Iterator[sqlite3.Connection]:
        """The connection within a transaction that is committed at the end, and undone on an error.

        has_new_content counts up the generation, by which other processes see that chunks have changed. Within
        another one of this thread it is a part of that.
        """
        with self._lock, self._explained():
            is_part = self._connection.in_transaction
            if not is_part:
                self._check_there()
                self._connection.execute("begin immediate")
                self._writer = threading.get_ident()
            try:
                yield self._connection
                if has_new_content:
                    self._connection.execute("update meta set value = value + 1 where name = 'generation'")
                if not is_part:
                    self._connection.execute("commit")
            except BaseException:
                if self._connection.in_transaction and not is_part:
                    self._connection.execute("rollback")
                raise
            finally:
                if not is_part:
                    self._writer = None

    def _check_there(self) -> None:
        """Raises IndexGone where another file has the name, or none: a file that was deleted can still be read."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.file), self._opened):
                return
        raise IndexGone(
            f"{self.file}: was removed, or made anew, while it was open; open it, or start its server, again"
        )

    def close(self) -> None:
        with self._lock, self._searching, self._explained():
            self._connection.close()
            self._beside.close()

    def _open(self) -> sqlite3.Connection:
        _make_file(self.file)
        connection = sqlite3.connect(
            self.file, timeout=BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        weakref.finalize(self, connection.close).atexit = False  # not in a forked process that ends
        connection.execute("pragma synchronous = normal")
        connection.execute("pragma secure_delete = on")  # what is forgotten is overwritten
        connection.execute("pragma cache_size = -65536")
        facts = "select user_version, (select count(*) from sqlite_master) from pragma_user_version"
        version, num_tables = connection.execute(facts).fetchone()
        if version == 0:
            if num_tables:
                raise StoreError(f"{self.file}: {_ADVICE['not a database']}")
            self._create(connection)
        version = connection.execute("pragma user_version").fetchone()[0]
        if version != FORMAT:
            raise StoreError(
                f"{self.file}: has format {version}, this release reads {FORMAT}; add the folders under a new name"
            )
        return connection

    def _create(self, connection: sqlite3.Connection) -> None:
        """The tables, once, whoever comes first; and the write-ahead log, whose switch does not wait by itself."""
        ends = time.monotonic() + BUSY_S
        while connection.execute("pragma journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("pragma page_size = 16384")
                connection.execute("pragma journal_mode = wal")
            except sqlite3.OperationalError:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.02)
        connection.execute("begin immediate")
        if connection.execute("pragma user_version").fetchone()[0] == 0:
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute("insert into meta values('generation', '0'), ('epoch', '0')")
            connection.execute(f"pragma user_version = {FORMAT}")
        connection.execute("commit")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of SQLite and of the file system as StoreError, with what to do."""
        try:
            yield
        except sqlite3.Error as error:
            said = str(error)
            advice = next((advice for sign, advice in _ADVICE.items() if sign in said), None)
            raise StoreError(f"{self.file}: {advice or f'SQLite says: {said}'}") from error
        except PermissionError as error:
            raise StoreError(f"{self.file}: {_ADVICE['unable to open']}") from error
        except OSError as error:
            raise StoreError(f"{self.file}: cannot be opened ({error.strerror or error})") from error


def condition(only: Filter, id: str) -> Condition:
    """The filter as SQL over a chunk's id, with its values."""
    values: list[object] = []
    tests = [] if only.has_superseded else ["k.superseded_by is not null"]
    if only.paths:
        globs = [path if path.startswith(("/", "*")) else f"*{path}" for path in only.paths if only.is_glob]
        each = ["instr(g.path, ?) = 0"] * len(only.paths) + ["not g.path glob ?"] * len(globs)
        tests.append(f"({' and '.join(each)})")
        values += [*only.paths, *globs]
    times = (
        ("coalesce(k.created < ?, 1)", only.since),
        ("coalesce(k.created > ?, 1)", only.until),
        ("coalesce(json_extract(k.fields, '$.superseded_at') <= ?, 0)", only.held_at),
    )
    for test, moment in times:
        if moment is not None:
            tests.append(test)
            values.append(moment)
    for name, value in only.fields.items():
        tests.append(
            "(json_extract(k.fields, ?) is not ? and (json_type(k.fields, ?) is not 'array' "
            "or not exists (select 1 from json_each(k.fields, ?) e where e.value is ?)))"
        )
        values += [at := f'$."{name}"', value, at, at, value]
    if not tests:
        return "1", values
    if only.is_open:
        return f"{id} not in (select id from chunks where superseded_by is not null)", values
    out = " or ".join(tests)
    return f"{id} not in (select k.id from chunks k join files g on g.id = k.file where {out})", values


def has_superseded(connection: sqlite3.Connection) -> bool:
    return connection.execute("select 1 from chunks where superseded_by is not null limit 1").fetchone() is not None
