"""The embedded store: one SQLite file with texts, words, vectors, uses and judgements, nothing to install.

Words are our own, joined by blanks, in FTS5's `ascii` tokenizer, which takes every character beyond ASCII as part of
a word: its other tokenizers make Chinese unsearchable. The table keeps no copy of the texts, so a deletion says the
old words again. Vectors are in the file too (see sqlite_vectors.py), or in LanceDB (see lance.py).
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.retrieval.bm25 import Found
from secondpass.retrieval.words import indexed_terms
from secondpass.search.stores.sqlite_database import SqliteDatabase, condition, has_superseded
from secondpass.search.stores.sqlite_readings import SqliteReadings
from secondpass.search.stores.sqlite_states import SqliteStates
from secondpass.search.stores.sqlite_vectors import Kept, OwnVectors, VectorTable
from secondpass.search.stores.store import (
    CHUNK_COLUMNS,
    MAX_ACCESSES,
    STAGES,
    STORED_COLUMNS,
    Change,
    Chunk,
    Counts,
    Event,
    File,
    Filter,
    Stored,
    Vectors,
    as_json,
    check_embedder,
    columns_of,
    passage_of,
    stored_of,
    words_mark,
)

PREPARED = 4096  # chunks whose words are made before a transaction
MAX_WORDS = 40  # of a query
# A word costs as many steps as chunks have it. A query takes its rarest words: those in at most this share of the
# chunks, until they are in so many, or that share, together. The others cost most and say least.
MAX_POSTINGS, MAX_SHARE = 50_000, 0.25
SAMPLE, COMMON_SHARE, COMMON_FROM = 2000, 0.01, 20_000  # chunks that are looked at for words in a hundredth

# Vectors of old chunks have come or gone, so that the copy of their codes is of no use.
_NEXT_EPOCH = "update meta set value = value + 1 where name = 'epoch'"


class SqliteStore:
    """A Store in one file, with its vectors there or elsewhere. Raises StoreError where it cannot be used."""

    def __init__(self, file: Path, vectors: VectorTable | None = None) -> None:
        self._database = SqliteDatabase(file)
        self._vectors = OwnVectors(file) if vectors is None else vectors
        self.states = SqliteStates(self._database, self._beside("-states"))
        self._readings = {stage: SqliteReadings(self._database, stage, self._beside(f"-{stage}")) for stage in STAGES}
        self._common = _Common()
        self._generation = ""
        self._check_words()

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._database.transaction(has_new_content=False):
            yield

    def readings(self, stage: str) -> SqliteReadings:
        return self._readings[stage]

    @property
    def location(self) -> str:
        return str(self._database.file)

    def meta(self, name: str) -> str | None:
        with self._database.reading() as connection:
            row = connection.execute("select value from meta where name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, values: Mapping[str, str]) -> None:
        with self._database.transaction(has_new_content=False) as connection:
            connection.executemany("insert or replace into meta values(?, ?)", list(values.items()))

    def files(self) -> dict[str, File]:
        with self._database.reading() as connection:
            rows = connection.execute("select path, root, digest, size, modified_ns from files").fetchall()
        return {
            row[0]: File(path=row[0], root=row[1], digest=row[2], size=row[3], modified_ns=row[4]) for row in rows
        }

    def write(self, changes: Sequence[Change], *, embedder: str | None = None) -> None:
        # Made before others have to wait for the transaction, but where they are so many that they fill the memory.
        words: Iterable[Iterable[str]] = (map(_words_of, change.chunks) for change in changes)
        if sum(len(change.chunks) for change in changes) <= PREPARED:
            words = [list(each) for each in words]
        rows = {c.digest: each.vectors[c.digest] for each in changes for c in each.chunks if c.digest in each.vectors}
        with self._database.transaction() as connection:
            check_embedder(self, embedder)
            kept = dict(zip(rows, self._vectors.kept(list(rows.values())), strict=True))
            gone = list[bytes]()
            for change, each in zip(changes, words, strict=True):
                gone += _forget(connection, change.file.path)
                _insert(connection, change, each, kept)
            self._forget_read(connection, gone)

    def remove(self, paths: Iterable[str]) -> int:
        with self._database.transaction() as connection:
            gone = [digest for path in paths for digest in _forget(connection, path)]
            connection.execute("delete from accesses where digest not in (select digest from chunks)")
            self._forget_read(connection, gone)
        if gone:
            self._trim()
        return len(gone)

    def search_text(self, words: Sequence[str], limit: int, only: Filter) -> Found:
        self._refresh()
        asked = self._common.rarest(list(dict.fromkeys(words)))
        if not asked or limit < 1:
            return []
        query = " OR ".join(_quoted(word) for word in asked[:MAX_WORDS])
        where, values = condition(only, "postings.rowid")
        with self._database.searching() as connection:
            rows = connection.execute(
                f"select rowid, -rank from postings where postings match ? and {where} order by rank, rowid limit ?",
                (query, *values, limit),
            ).fetchall()
        return [(int(row[0]), float(row[1])) for row in rows]

    def search_vectors(self, vector: Vectors, limit: int, only: Filter) -> Found:
        where = condition(only, "c.id")
        with self._database.reading() as connection:
            is_open = only.is_open and not has_superseded(connection)
            return self._vectors.nearest(connection, vector, limit, None if is_open else where)

    def ids(self, path: str) -> list[int]:
        of_file = "select c.id from chunks c join files f on f.id = c.file where f.path = ? order by c.id"
        with self._database.reading() as connection:
            return [int(row[0]) for row in connection.execute(of_file, (path,))]

    def newest(self, only: Filter) -> int | None:
        where, values = condition(only, "c.id")
        latest = f"select c.id from chunks c where {where} order by c.created desc, c.id desc limit 1"
        with self._database.reading() as connection:
            row = connection.execute(latest, values).fetchone()
        return None if row is None else int(row[0])

    def fetch(self, ids: Sequence[int]) -> list[Stored]:
        with self._database.reading() as connection:
            found = {each.id: each for each in _stored(connection, "c.id in (select value from json_each(?))", ids)}
        return [found[id] for id in ids if id in found]

    def known_vectors(self, digests: Sequence[bytes]) -> dict[bytes, Vectors]:
        found: dict[bytes, Any] = {}
        with self._database.reading() as connection:
            for digest in dict.fromkeys(digests):
                row = connection.execute(
                    "select vector from vectors join chunks on id = chunk where digest = ? limit 1", (digest,)
                ).fetchone()
                if row is not None:
                    found[digest] = row[0]
            return dict(zip(found, self._vectors.read(list(found.values())), strict=True))

    def without_vectors(self, limit: int) -> list[Stored]:
        with self._database.reading() as connection:
            rows = connection.execute(
                "select id from chunks where id not in (select chunk from vectors) order by id limit ?", (limit,)
            ).fetchall()
        return self.fetch([row[0] for row in rows])

    def add_vectors(self, ids: Sequence[int], vectors: Vectors, *, embedder: str | None = None) -> None:
        with self._database.transaction() as connection:
            check_embedder(self, embedder)
            connection.executemany(
                "insert or replace into vectors select id, ? from chunks where id = ?",
                list(zip(self._vectors.kept(list(vectors)), ids, strict=True)),
            )
            connection.execute(_NEXT_EPOCH)

    def drop_vectors(self) -> None:
        with self._database.transaction() as connection:
            connection.execute("delete from vectors")
            connection.execute(_NEXT_EPOCH)

    def supersede(self, old: int, new: int | None) -> None:
        with self._database.transaction(has_new_content=False) as connection:
            connection.execute("update chunks set superseded_by = ? where id = ?", (new, old))

    def change_fields(self, id: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
        with self._database.transaction(has_new_content=False) as connection:
            row = connection.execute("select fields from chunks where id = ?", (id,)).fetchone()
            if row is not None:
                connection.execute(
                    "update chunks set fields = ? where id = ?", (as_json(change(json.loads(row[0]))), id)
                )
        return row is not None

    def record(self, events: Sequence[Event]) -> None:
        with self._database.transaction(has_new_content=False) as connection:
            connection.executemany(
                "insert into accesses values(?, ?, ?)", [(each.digest, each.time, each.kind) for each in events]
            )
            for digest in {each.digest for each in events}:
                connection.execute(
                    "delete from accesses where digest = ? and rowid not in (select rowid from accesses "
                    "where digest = ? order by time desc limit ?)",
                    (digest, digest, MAX_ACCESSES),
                )

    def fans(self, names: Sequence[str]) -> dict[str, int]:
        count = "select count(*) from entities where name = ?"
        with self._database.reading() as connection:
            return {name: int(connection.execute(count, (name,)).fetchone()[0]) for name in names}

    def similarities(self) -> NDArray[np.uint64]:
        with self._database.reading() as connection:
            rows = connection.execute("select similarity from chunks order by id").fetchall()
        return np.array([row[0] for row in rows], np.int64).view(np.uint64)

    def add_judgement(self, judgement: Mapping[str, Any]) -> None:
        with self._database.transaction(has_new_content=False) as connection:
            connection.execute("insert into judgements(value) values(?)", (as_json(judgement),))

    def judgements(self) -> list[dict[str, Any]]:
        with self._database.reading() as connection:
            return [json.loads(row[0]) for row in connection.execute("select value from judgements order by id")]

    def counts(self) -> Counts:
        with self._database.reading() as connection:
            files, chunks, vectors = (
                int(connection.execute(f"select count(*) from {table}").fetchone()[0])
                for table in ("files", "chunks", "vectors")
            )
        there = [self._database.file, self._beside("-wal"), *self._files_beside()]
        return Counts(files=files, chunks=chunks, vectors=vectors, bytes=_bytes_of(there))

    def finish(self) -> None:
        with self._database.transaction() as connection:
            connection.execute("insert into postings(postings) values('optimize')")
            _count_common(connection)
        self._refresh()
        with self._database.reading() as connection:
            connection.execute("pragma wal_checkpoint(passive)")
            self._vectors.tidy(connection)

    def drop(self) -> None:
        self.close()
        own = (self._database.file, self._beside("-wal"), self._beside("-shm"))
        for file in (*own, *self._files_beside()):
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)

    def close(self) -> None:
        self._database.close()

    def _beside(self, ending: str) -> Path:
        return self._database.file.with_name(self._database.file.name + ending)

    def _files_beside(self) -> list[Path]:
        return [self.states.folder, *(each.copy for each in self._readings.values()), *self._vectors.files()]

    def _forget_read(self, connection: sqlite3.Connection, digests: Sequence[bytes]) -> None:
        """Within a transaction that deletes chunks: what models have read of their texts."""
        self.states.forget(connection, digests)
        for readings in self._readings.values():
            readings.forget(connection, digests)

    def _trim(self) -> None:
        """What lies beside holds nothing of chunks that are not in the file."""
        with self._database.reading() as connection:
            if not connection.in_transaction:  # of `together`, after which the next call does it
                self._vectors.forget(connection)
                for readings in self._readings.values():
                    readings.trim(connection)

    def _refresh(self) -> None:
        """Read which words are common, where other writers have changed the index."""
        with self._database.reading() as connection:
            facts = dict(connection.execute("select name, value from meta where name in ('generation', 'common')"))
        if facts["generation"] != self._generation:
            self._generation = facts["generation"]
            self._common = _Common.read(facts.get("common", "{}"))

    def _check_words(self) -> None:
        """Write the words anew where another release made them otherwise."""
        mark, before = words_mark(), self.meta("words")
        if before == mark:
            return
        if before is None:  # a new file; what lies beside is of one that was moved away, with the same ids
            self._trim()
        with self._database.transaction() as connection:
            if connection.execute("select value from meta where name = 'words'").fetchone() == (mark,):
                return  # another process has done it meanwhile
            connection.execute("insert into postings(postings) values('delete-all')")
            for id, heading, text in connection.execute("select id, heading, text from chunks"):
                words = " ".join(indexed_terms(passage_of(heading, text)))
                connection.execute("insert into postings(rowid, words) values(?, ?)", (id, words))
            _count_common(connection)
            connection.execute("insert or replace into meta values('words', ?)", (mark,))


def _bytes_of(paths: Iterable[Path]) -> int:
    """The sizes of files, and of all in folders; others may come and go meanwhile."""
    total = 0
    for file in {file for path in paths for file in (path, *path.rglob("*"))}:
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def _insert(
    connection: sqlite3.Connection, change: Change, words: Iterable[str], vectors: Mapping[bytes, Kept]
) -> None:
    file = change.file
    cursor = connection.execute(
        "insert into files(path, root, digest, size, modified_ns) values(?, ?, ?, ?, ?)",
        (file.path, file.root, file.digest, file.size, file.modified_ns),
    )
    for chunk, said in zip(change.chunks, words, strict=True):
        id = connection.execute(
            f"insert into chunks(file, {CHUNK_COLUMNS}) values(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (cursor.lastrowid, *columns_of(chunk)),
        ).lastrowid
        connection.execute("insert into postings(rowid, words) values(?, ?)", (id, said))
        connection.executemany("insert or ignore into entities values(?, ?)", [(name, id) for name in chunk.entities])
        if chunk.digest in vectors:
            connection.execute("insert into vectors values(?, ?)", (id, vectors[chunk.digest]))


def _words_of(chunk: Chunk) -> str:
    return " ".join(indexed_terms(chunk.passage))


def _forget(connection: sqlite3.Connection, path: str) -> list[bytes]:
    """Delete a file with its chunks and all that is known of them. Returns the chunks' digests."""
    row = connection.execute("select id from files where path = ?", (path,)).fetchone()
    if row is None:
        return []
    chunks = connection.execute("select id, digest from chunks where file = ?", row).fetchall()
    for id, _ in chunks:  # the texts one by one, for a file may have very many
        heading, text = connection.execute("select heading, text from chunks where id = ?", (id,)).fetchone()
        said = " ".join(indexed_terms(passage_of(heading, text)))
        connection.execute("insert into postings(postings, rowid, words) values('delete', ?, ?)", (id, said))
        connection.execute("delete from vectors where chunk = ?", (id,))
        connection.execute("delete from entities where chunk = ?", (id,))
        connection.execute(
            "update chunks set superseded_by = "
            "coalesce(nullif((select superseded_by from chunks where id = :id), :id), id) where superseded_by = :id",
            {"id": id},
        )
    connection.execute("delete from chunks where file = ?", row)
    connection.execute("delete from files where id = ?", row)
    return [digest for _, digest in chunks]


def _stored(connection: sqlite3.Connection, where: str, values: Sequence[int]) -> list[Stored]:
    rows = connection.execute(
        f"select {STORED_COLUMNS} from chunks c join files f on f.id = c.file where {where}",
        (json.dumps(list(values)),),
    ).fetchall()
    return [stored_of(row, _accesses(connection, row[9])) for row in rows]


def _accesses(connection: sqlite3.Connection, digest: bytes) -> tuple[float, ...]:
    rows = connection.execute(
        "select time from accesses where digest = ? and kind <> 'rejected' order by time", (digest,)
    )
    return tuple(float(row[0]) for row in rows)


@dataclass(frozen=True, kw_only=True)
class _Common:
    """About how many of num_chunks have each of the common words."""

    num_chunks: int = 0
    postings: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> _Common:
        """As `counted` wrote it; an index that was tidied by an older release has a list, of words without counts."""
        known = json.loads(text)
        return cls(**known) if isinstance(known, dict) else cls()

    @classmethod
    def counted(cls, connection: sqlite3.Connection) -> _Common:
        """By a sample; none where there are few chunks."""
        first, last, count = connection.execute("select min(id), max(id), count(*) from chunks").fetchone()
        if count < COMMON_FROM:
            return cls()
        step = max(1, (last - first) // SAMPLE)
        texts = connection.execute("select text from chunks where (id - ?) % ? = 0", (first, step)).fetchall()
        seen = Counter(word for (text,) in texts for word in set(indexed_terms(text)))
        postings = {w: n * count // len(texts) for w, n in seen.items() if n > COMMON_SHARE * len(texts)}
        return cls(num_chunks=count, postings=postings)

    def rarest(self, words: list[str]) -> list[str]:
        """Of the words of a query those that are looked up, the rarest in any case."""
        counts = {word: self.postings.get(word, 0) for word in words}
        ordered = sorted(words, key=counts.__getitem__)
        totals = dict(zip(ordered, accumulate(counts[word] for word in ordered), strict=True))
        each, most = MAX_SHARE * self.num_chunks, max(MAX_POSTINGS, MAX_SHARE * self.num_chunks)
        return [word for word in words if word == ordered[0] or (counts[word] <= each and totals[word] <= most)]


def _count_common(connection: sqlite3.Connection) -> None:
    said = as_json(asdict(_Common.counted(connection)))
    connection.execute("insert or replace into meta values('common', ?)", (said,))


def _quoted(word: str) -> str:
    """A word of an FTS5 query; a single character of a script without blanks begins any pair that has it first."""
    is_alone = len(word) == 1 and ord(word) > 0x0E00
    return f'"{word}"' + (" *" if is_alone else "")
