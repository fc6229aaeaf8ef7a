"""A store in PostgreSQL with pgvector, for indexes that several machines share: one schema an index.

Words are our own, as in SQLite, in a table of postings; BM25 (k1 1.2, b 0.75, as FTS5 has it) is computed in SQL.
Vectors are float16 (halfvec), compared one by one; from HNSW_FROM chunks on `finish` builds an HNSW index (Malkov
and Yashunin 2018), and the nearest are approximate.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secondpass.errors import StoreError
from secondpass.retrieval.bm25 import Found
from secondpass.retrieval.words import indexed_terms
from secondpass.search.stores.postgres_database import PostgresDatabase, condition, index_names
from secondpass.search.stores.postgres_readings import TABLE, PostgresReadings
from secondpass.search.stores.store import (
    CHUNK_COLUMNS,
    MAX_ACCESSES,
    STAGES,
    STORED_COLUMNS,
    Change,
    Counts,
    Event,
    File,
    Filter,
    Stored,
    Vectors,
    as_json,
    check_embedder,
    columns_of,
    missing,
    passage_of,
    stored_of,
    words_mark,
)

if TYPE_CHECKING:
    from psycopg import Connection

K1, B = 1.2, 0.75
MAX_WORDS = 40  # of a query
MAX_ENDINGS = 50  # words that a single character of a script without blanks stands for
HNSW_FROM = 50_000
_TABLES = """
create table if not exists {s}.meta(name text primary key, value text not null);
create table if not exists {s}.files(id bigserial primary key, path text not null unique, root text not null,
    digest text not null, size bigint not null, modified_ns bigint not null);
create table if not exists {s}.chunks(id bigserial primary key,
    file bigint not null references {s}.files on delete cascade, heading text not null, text text not null,
    first_line int not null, last_line int not null, start int not null, stop int not null, digest bytea not null,
    similarity bigint not null, created double precision, entities jsonb not null, fields jsonb not null,
    superseded_by bigint references {s}.chunks on delete set null, length int not null default 0, vector halfvec);
create index if not exists chunks_file on {s}.chunks(file);
create index if not exists chunks_digest on {s}.chunks(digest);
create index if not exists chunks_superseded on {s}.chunks(superseded_by) where superseded_by is not null;
create table if not exists {s}.postings(word text collate "C" not null,
    chunk bigint not null references {s}.chunks on delete cascade, count int not null,
    primary key(word, chunk) include (count));
create index if not exists postings_chunk on {s}.postings(chunk);
create table if not exists {s}.entities(name text not null,
    chunk bigint not null references {s}.chunks on delete cascade, primary key(name, chunk));
create index if not exists entities_chunk on {s}.entities(chunk);
create table if not exists {s}.accesses(digest bytea not null, time double precision not null, kind text not null);
create index if not exists accesses_digest on {s}.accesses(digest);
create table if not exists {s}.judgements(id bigserial primary key, value jsonb not null);
"""
_BM25 = """
with known as (select word, ln(1 + (t.n - count(*) + 0.5) / (count(*) + 0.5)) as weight from {s}.postings
        cross join (select count(*) as n from {s}.chunks) t where word = any(%(words)s) group by word, t.n),
    usual as (select greatest(avg(length), 1) as length from {s}.chunks)
select c.id, sum(k.weight * p.count * (%(k1)s + 1)
    / (p.count + %(k1)s * (1 - %(b)s + %(b)s * c.length / u.length)))::float8 as score
from {s}.postings p join known k using (word) join {s}.chunks c on c.id = p.chunk join {s}.files f on f.id = c.file
    cross join usual u
where {where} group by c.id order by score desc, c.id limit %(limit)s
"""


class PostgresStore:
    """A Store in the schema `secondpass_NAME` of a database. Raises StoreError where it cannot be reached or written.

    url: postgresql://user:password@host/database. create makes the schema, and the extension `vector`, where they
    are missing; a user who may not do that asks an administrator to.
    """

    states = None  # what lies on one machine cannot follow what another one forgets

    def __init__(self, url: str, name: str, *, create: bool = False) -> None:
        self._db = PostgresDatabase(url, name)
        self._readings = {stage: PostgresReadings(self._db, stage) for stage in STAGES}
        if not create and name not in (names := index_names(url)):
            self.close()
            raise StoreError(f"{self.location}: {missing(name, names)} --folder {self.location}")
        with self._db.transaction() as connection:
            connection.execute("create extension if not exists vector")
            connection.execute(self._db.sql("create schema if not exists {s}"))
            connection.execute(self._db.sql(_TABLES + TABLE))
        self._check_words()

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._db.transaction():
            yield

    def readings(self, stage: str) -> PostgresReadings:
        return self._readings[stage]

    @property
    def location(self) -> str:
        return self._db.location

    def meta(self, name: str) -> str | None:
        row = self._db.one("select value from {s}.meta where name = %s", (name,))
        return None if row is None else str(row[0])

    def set_meta(self, values: Mapping[str, str]) -> None:
        with self._db.transaction() as connection:
            self._set_meta(connection, values)

    def files(self) -> dict[str, File]:
        rows = self._db.all("select path, root, digest, size, modified_ns from {s}.files")
        return {
            row[0]: File(path=row[0], root=row[1], digest=row[2], size=row[3], modified_ns=row[4]) for row in rows
        }

    def write(self, changes: Sequence[Change], *, embedder: str | None = None) -> None:
        words = [[Counter(indexed_terms(chunk.passage)) for chunk in change.chunks] for change in changes]
        with self._db.transaction() as connection:
            check_embedder(self, embedder)
            gone = self._forget(connection, [each.file.path for each in changes])
            for change, counts in zip(changes, words, strict=True):
                self._insert(connection, change, counts)
            self._forget_read(connection, gone)

    def remove(self, paths: Iterable[str]) -> int:
        with self._db.transaction() as connection:
            gone = self._forget(connection, list(paths))
            connection.execute(
                self._db.sql("delete from {s}.accesses where digest not in (select digest from {s}.chunks)")
            )
            self._forget_read(connection, gone)
        return len(gone)

    def _forget(self, connection: Connection, paths: Sequence[str]) -> list[bytes]:
        """Delete files and their chunks. Returns the digests of these."""
        of_files = "n.file in (select id from {s}.files where path = any(%s))"
        gone = connection.execute(self._db.sql(f"select n.digest from {{s}}.chunks n where {of_files}"), (paths,))
        digests = [bytes(row[0]) for row in gone]
        replaced = "update {s}.chunks o set superseded_by = coalesce(nullif(n.superseded_by, n.id), o.id)"
        followed = f"{replaced} from {{s}}.chunks n where o.superseded_by = n.id and {of_files}"
        connection.execute(self._db.sql(followed), (paths,))
        connection.execute(self._db.sql("delete from {s}.files where path = any(%s)"), (paths,))
        return digests

    def _forget_read(self, connection: Connection, digests: Sequence[bytes]) -> None:
        """What retrievers read of texts that no chunk has any more."""
        connection.execute(
            self._db.sql(
                "delete from {s}.readings r where digest = any(%s) "
                "and not exists (select 1 from {s}.chunks c where c.digest = r.digest)"
            ),
            (digests,),
        )

    def search_text(self, words: Sequence[str], limit: int, only: Filter) -> Found:
        where, values = condition(only)
        asked = self._known_words(list(dict.fromkeys(map(_storable, words)))[:MAX_WORDS])
        if not asked or limit < 1:
            return []
        values |= {"words": asked, "k1": K1, "b": B, "limit": limit}
        return [(int(id), float(score)) for id, score in self._db.all(_BM25.replace("{where}", where), values)]

    def search_vectors(self, vector: Vectors, limit: int, only: Filter) -> Found:
        where, values = condition(only)
        kind = f"halfvec({len(vector)})"
        order = f"(c.vector::{kind}) <#> %(vector)s::{kind}"
        values |= {"vector": _halves(vector), "limit": limit}
        iterates = self._iterates  # asked before a connection is taken: threads that hold one never wait for a second
        with self._db.reading() as connection:
            connection.execute(f"set local hnsw.ef_search = {min(1000, max(100, 2 * limit))}")
            if iterates:
                connection.execute("set local hnsw.iterative_scan = relaxed_order")
            rows = connection.execute(
                self._db.sql(
                    f"select c.id, -({order}) from {{s}}.chunks c join {{s}}.files f on f.id = c.file "
                    f"where c.vector is not null and {where} order by {order} limit %(limit)s"
                ),
                values,
            ).fetchall()
        return sorted(((int(id), float(score)) for id, score in rows), key=lambda found: (-found[1], found[0]))

    def ids(self, path: str) -> list[int]:
        of_file = "select c.id from {s}.chunks c join {s}.files f on f.id = c.file where f.path = %s order by c.id"
        return [int(row[0]) for row in self._db.all(of_file, (path,))]

    def newest(self, only: Filter) -> int | None:
        where, values = condition(only)
        latest = f"select c.id from {{s}}.chunks c join {{s}}.files f on f.id = c.file where {where}"
        row = self._db.one(f"{latest} order by c.created desc nulls last, c.id desc limit 1", values)
        return None if row is None else int(row[0])

    def fetch(self, ids: Sequence[int]) -> list[Stored]:
        columns = STORED_COLUMNS.replace("c.entities, c.fields", "c.entities::text, c.fields::text")
        uses = "array(select time from {s}.accesses a where a.digest = c.digest and kind <> 'rejected' order by time)"
        rows = self._db.all(
            f"select {columns}, {uses} from {{s}}.chunks c join {{s}}.files f on f.id = c.file where c.id = any(%s)",
            (list(ids),),
        )
        found = {row[0]: stored_of(row[:-1], tuple(row[-1])) for row in rows}
        return [found[id] for id in ids if id in found]

    def known_vectors(self, digests: Sequence[bytes]) -> dict[bytes, Vectors]:
        rows = self._db.all(
            "select distinct on (digest) digest, vector::real[] from {s}.chunks "
            "where digest = any(%s) and vector is not null",
            (list(digests),),
        )
        return {bytes(digest): np.array(values, np.float32) for digest, values in rows}

    def without_vectors(self, limit: int) -> list[Stored]:
        rows = self._db.all("select id from {s}.chunks where vector is null order by id limit %s", (limit,))
        return self.fetch([row[0] for row in rows])

    def add_vectors(self, ids: Sequence[int], vectors: Vectors, *, embedder: str | None = None) -> None:
        rows = [(_halves(vector), id) for id, vector in zip(ids, vectors, strict=True)]
        with self._db.transaction() as connection, connection.cursor() as cursor:
            check_embedder(self, embedder)
            cursor.executemany(self._db.sql("update {s}.chunks set vector = %s::halfvec where id = %s"), rows)

    def drop_vectors(self) -> None:
        with self._db.transaction() as connection:
            connection.execute(self._db.sql("drop index if exists {s}.chunks_nearest"))  # of the old dimension
            connection.execute(self._db.sql("update {s}.chunks set vector = null"))

    def supersede(self, old: int, new: int | None) -> None:
        with self._db.transaction() as connection:
            connection.execute(self._db.sql("update {s}.chunks set superseded_by = %s where id = %s"), (new, old))

    def change_fields(self, id: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
        with self._db.transaction() as connection:
            row = connection.execute(self._db.sql("select fields from {s}.chunks where id = %s"), (id,)).fetchone()
            if row is not None:
                changed = _storable(as_json(change(row[0])))
                connection.execute(self._db.sql("update {s}.chunks set fields = %s where id = %s"), (changed, id))
        return row is not None

    def record(self, events: Sequence[Event]) -> None:
        with self._db.transaction() as connection, connection.cursor() as cursor:
            cursor.executemany(
                self._db.sql("insert into {s}.accesses values(%s, %s, %s)"),
                [(each.digest, each.time, each.kind) for each in events],
            )
            cursor.executemany(
                self._db.sql(
                    "delete from {s}.accesses where digest = %(d)s and ctid not in (select ctid from {s}.accesses "
                    "where digest = %(d)s order by time desc limit %(most)s)"
                ),
                [{"d": digest, "most": MAX_ACCESSES} for digest in {each.digest for each in events}],
            )

    def fans(self, names: Sequence[str]) -> dict[str, int]:
        rows = self._db.all(
            "select name, count(*) from {s}.entities where name = any(%s) group by name", (list(names),)
        )
        return {**dict.fromkeys(names, 0), **{row[0]: int(row[1]) for row in rows}}

    def similarities(self) -> NDArray[np.uint64]:
        rows = self._db.all("select similarity from {s}.chunks order by id")
        return np.array([row[0] for row in rows], np.int64).view(np.uint64)

    def add_judgement(self, judgement: Mapping[str, Any]) -> None:
        with self._db.transaction() as connection:
            connection.execute(
                self._db.sql("insert into {s}.judgements(value) values(%s)"), (_storable(as_json(judgement)),)
            )

    def judgements(self) -> list[dict[str, Any]]:
        return [row[0] for row in self._db.all("select value from {s}.judgements order by id")]

    def counts(self) -> Counts:
        row = self._db.one(
            "select (select count(*) from {s}.files), count(*), count(vector), (select coalesce(sum("
            "pg_total_relation_size(c.oid)), 0) from pg_class c where c.relnamespace = to_regnamespace('{s}') "
            "and c.relkind = 'r') from {s}.chunks"
        )
        files, chunks, vectors, size = row or (0, 0, 0, 0)
        return Counts(files=files, chunks=chunks, vectors=vectors, bytes=int(size))

    def finish(self) -> None:
        """Statistics for the planner, and from HNSW_FROM vectors on the index of the nearest."""
        row = self._db.one("select count(vector), max(vector_dims(vector)) from {s}.chunks")
        with self._db.transaction() as connection:
            connection.execute(self._db.sql("analyze {s}.chunks, {s}.postings, {s}.files"))
            if row is not None and row[0] >= HNSW_FROM:
                connection.execute(
                    self._db.sql(
                        "create index if not exists chunks_nearest on {s}.chunks "
                        f"using hnsw ((vector::halfvec({row[1]})) halfvec_ip_ops)"
                    )
                )

    def drop(self) -> None:
        with self._db.transaction() as connection:
            connection.execute(self._db.sql("drop schema {s} cascade"))
        self.close()

    def close(self) -> None:
        self._db.close()

    def _insert(self, connection: Connection[Any], change: Change, words: Sequence[Counter[str]]) -> None:
        file = change.file
        row = connection.execute(
            self._db.sql(
                "insert into {s}.files(path, root, digest, size, modified_ns) values(%s, %s, %s, %s, %s) returning id"
            ),
            (file.path, file.root, file.digest, file.size, file.modified_ns),
        ).fetchone()
        assert row is not None
        insert = self._db.sql(
            f"insert into {{s}}.chunks(file, length, vector, {CHUNK_COLUMNS}) values(%s, %s, %s::halfvec, "
            "%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) returning id"
        )
        postings, entities = list[tuple[str, int, int]](), list[tuple[str, int]]()
        for chunk, counts in zip(change.chunks, words, strict=True):
            known = change.vectors.get(chunk.digest)
            columns = [_storable(each) if isinstance(each, str) else each for each in columns_of(chunk)]
            vector = None if known is None else _halves(known)
            found = connection.execute(insert, (row[0], counts.total(), vector, *columns)).fetchone()
            assert found is not None
            postings += [(_storable(word), found[0], count) for word, count in counts.items()]
            entities += [(_storable(name), found[0]) for name in dict.fromkeys(chunk.entities)]
        _copy(connection, self._db.sql("copy {s}.postings(word, chunk, count) from stdin"), postings)
        _copy(connection, self._db.sql("copy {s}.entities(name, chunk) from stdin"), entities)

    def _known_words(self, asked: Sequence[str]) -> list[str]:
        """The words, and for a single character of a script without blanks those that begin with it."""
        alone = [word for word in asked if len(word) == 1 and ord(word) > 0x0E00]
        found = list(asked)
        for word in alone:
            rows = self._db.all(
                "select distinct word from {s}.postings where word > %s and word < %s limit %s",
                (word, word + "\U0010ffff", MAX_ENDINGS),
            )
            found += [str(row[0]) for row in rows]
        return list(dict.fromkeys(found))

    def _check_words(self) -> None:
        """Write the words anew where another release made them otherwise."""
        mark = words_mark()
        known = self.meta("words")
        if known == mark:
            return
        with self._db.transaction() as connection:
            if known is not None:
                connection.execute(self._db.sql("truncate {s}.postings"))
                rows = connection.execute(self._db.sql("select id, heading, text from {s}.chunks")).fetchall()
                counted = [(id, Counter(indexed_terms(passage_of(heading, text)))) for id, heading, text in rows]
                postings = [(word, id, count) for id, counts in counted for word, count in counts.items()]
                _copy(connection, self._db.sql("copy {s}.postings(word, chunk, count) from stdin"), postings)
            self._set_meta(connection, {"words": mark})

    def _set_meta(self, connection: Connection[Any], values: Mapping[str, str]) -> None:
        with connection.cursor() as cursor:
            cursor.executemany(
                self._db.sql(
                    "insert into {s}.meta values(%s, %s) on conflict (name) do update set value = excluded.value"
                ),
                list(values.items()),
            )

    @cached_property
    def _iterates(self) -> bool:
        """Whether this pgvector goes on looking when a filter leaves too few of the nearest."""
        row = self._db.one("select extversion from pg_extension where extname = 'vector'")
        return row is not None and tuple(map(int, str(row[0]).split(".")[:2])) >= (0, 8)


def _copy(connection: Connection[Any], statement: Any, rows: Iterable[Sequence[Any]]) -> None:
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def _halves(vector: Vectors) -> str:
    return json.dumps(np.asarray(vector, np.float16).tolist())


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL, and jsonb none that is spelled."""
    return text.replace("\0", " ").replace("\\u0000", " ")
