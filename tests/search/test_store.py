"""What is written is found, what is gone is not, and a crash, a second writer or a full disk loses nothing."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from secondpass.errors import StoreError
from secondpass.retrieval.words import terms
from secondpass.search.features import digest_of, similarity_of
from secondpass.search.stores import vectors as codes
from secondpass.search.stores.open import index_names, open_store
from secondpass.search.stores.sqlite import SqliteStore
from secondpass.search.stores.store import Change, Chunk, Event, File, Filter, Store
from tests.search.conftest import WordEncoder, WordRetriever

ANY = Filter()


def chunk(text: str, *, heading: str = "", created: float | None = None, **fields: Any) -> Chunk:
    return Chunk(
        text=text,
        heading=heading,
        lines=(1, 2),
        span=(0, len(text)),
        digest=digest_of(heading, text),
        similarity=similarity_of(text),
        created=created,
        entities=("paris",) if "Paris" in text else (),
        fields=fields,
    )


def file(path: str) -> File:
    return File(path=path, root="/notes", digest="d", size=1, modified_ns=1)


def change(path: str, *chunks: Chunk) -> Change:
    rows = WordEncoder().encode([each.passage for each in chunks])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Change(
        file=file(path), chunks=chunks, vectors={c.digest: row for c, row in zip(chunks, rows, strict=True)}
    )


def vector(text: str) -> np.ndarray:
    row = WordEncoder().encode([text])[0]
    return row / np.linalg.norm(row)


def texts(store: Store, query: str, only: Filter = ANY) -> list[str]:
    found = store.search_text(terms(query), 10, only)
    return [each.chunk.text for each in store.fetch([id for id, _ in found])]


@pytest.fixture(
    params=["sqlite", *(pytest.param(name, marks=pytest.mark.clients) for name in ("postgres", "lancedb"))]
)
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where an index may be made."""
    found = str(tmp_path)
    if request.param == "postgres":
        found = request.getfixturevalue("database")
    elif request.param == "lancedb":
        pytest.importorskip("lancedb")
        found = f"lancedb://{tmp_path}"
    yield found
    if "notes" in index_names(found):
        open_store("notes", found, create=False).drop()


@pytest.fixture
def store(folder: str) -> Store:
    return open_store("notes", folder, create=True)


def test_the_newest_chunk_of_those_that_pass(store: Store) -> None:
    dated = [chunk(f"port {at}", created=at, subject="port") for at in (2.0, 3.0, 1.0)]
    store.write([change("a.md", *dated, chunk("port", subject="port"), chunk("tea", created=9.0, subject="tea"))])
    ids = store.ids("a.md")
    assert store.newest(Filter(fields={"subject": "port"})) == ids[1]
    assert store.newest(Filter(fields={"subject": "port"}, until=2.5)) == ids[0]
    assert store.newest(Filter(fields={"subject": "rent"})) is None
    store.supersede(ids[1], ids[4])
    assert store.newest(Filter(fields={"subject": "port"})) == ids[0]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("dogs", "the dogs ran"),
        ("重排序", "什么是重排序模型"),
        ("猫", "猫在哪里"),
        ("傘", "下雨了，记得带伞。"),
        ("タワー", "東京タワーです"),
        ("ไทย", "ภาษาไทย"),
        ("किताब", "किताब पढ़ो"),
        ("كتاب", "قرأت الكتاب"),
        ("uber munchen", "Über München"),
        ("user name", "def getUserName()"),
        ("max_length", "the max_length option"),
    ],
)
def test_words_of_every_script_are_found(store: Store, query: str, text: str) -> None:
    store.write(
        [change("/notes/a", chunk(text), chunk("something else entirely")), change("/notes/b", chunk("无关"))]
    )
    assert texts(store, query) == [text]


def test_any_of_the_words_is_enough_and_more_are_better(store: Store) -> None:
    store.write([change("/notes/a", chunk("red apple pie"), chunk("red car"), chunk("blue sky"))])
    assert texts(store, "red apple unheard") == ["red apple pie", "red car"]


def test_nearest_vectors_are_exact(store: Store) -> None:
    store.write([change("/notes/a", *(chunk(f"text number {n} of many {n * n}") for n in range(400)))])
    asked = vector("text number 7 of many 49")
    found = store.search_vectors(asked, 5, ANY)
    assert store.fetch([found[0][0]])[0].chunk.text == "text number 7 of many 49"
    assert found[0][1] == pytest.approx(1, abs=1e-3)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_a_file_written_again_replaces_what_it_had(store: Store) -> None:
    store.write([change("/notes/a", chunk("old apple")), change("/notes/b", chunk("old pear"))])
    store.search_vectors(vector("apple"), 5, ANY)
    store.write([change("/notes/a", chunk("new plum"))])
    assert texts(store, "old") == ["old pear"]
    assert texts(store, "apple") == []
    assert {
        each.chunk.text for each in store.fetch([i for i, _ in store.search_vectors(vector("plum"), 9, ANY)])
    } == {
        "new plum",
        "old pear",
    }
    assert store.remove(["/notes/b", "/notes/none"]) == 1
    assert store.counts().chunks == store.counts().vectors == 1


def test_filters(store: Store) -> None:
    store.write(
        [
            change("/notes/2024/a.md", chunk("apple one", created=100.0, lang="en", tags="work")),
            change("/notes/2025/b.md", chunk("apple two", created=200.0, lang="zh", tags=["work", 7], draft=True)),
            change("/notes/2025/c.txt", chunk("apple three")),
        ]
    )
    for only, expected in [
        (Filter(path="*.md"), {"apple one", "apple two"}),
        (Filter(path="2025"), {"apple two", "apple three"}),
        (Filter(since=150.0), {"apple two"}),
        (Filter(until=150.0), {"apple one"}),
        (Filter(fields={"lang": "zh"}), {"apple two"}),
        (Filter(fields={"tags": "work"}), {"apple one", "apple two"}),
        (Filter(fields={"tags": "wor"}), set()),
        (Filter(fields={"draft": True, "tags": 7}), {"apple two"}),
        (Filter(path="*.md", since=150.0), {"apple two"}),
    ]:
        assert set(texts(store, "apple", only)) == expected
        near = store.search_vectors(vector("apple"), 9, only)
        assert {each.chunk.text for each in store.fetch([id for id, _ in near])} == expected


def test_a_path_with_the_signs_of_a_glob_is_found_by_its_name(store: Store) -> None:
    slug, s, draft, why = "/app/[slug]/page.tsx", "/app/s/page.tsx", "/notes/[草稿]计划.md", "/notes/why?.md"
    store.write([change(name, chunk(f"apple {name}")) for name in (slug, s, draft, why)])
    for path, found in {
        slug: {slug, s},  # as a glob too
        "[slug]/": {slug},
        draft: {draft},
        "why?.md": {why},
        "*page.tsx": {slug, s},
        "[xs]/page.tsx": {s},
    }.items():
        assert set(texts(store, "apple", Filter(path=path))) == {f"apple {name}" for name in found}, path


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_path_is_found_however_its_letters_are_put_together(store: Store, form: Literal["NFC", "NFD"]) -> None:
    store.write([change(unicodedata.normalize(form, "/notes/Übung/회의.md"), chunk("apple"))])
    for path in ("Übung", "회의.md", "*/회*.md", "/notes/Ü*"):
        for asked in ("NFC", "NFD"):
            assert texts(store, "apple", Filter(path=unicodedata.normalize(asked, path))) == ["apple"]
    assert texts(store, "apple", Filter(path="Ubung")) == []


def _all_bytes(store: Store) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(Path(store.location).parent.rglob("*")) if file.is_file())


def test_the_vector_of_what_is_forgotten_is_in_no_file_any_more(store: Store) -> None:
    if not isinstance(store, SqliteStore):
        pytest.skip("a server's files are its own")
    store.write([change(f"/notes/{n}", chunk(f"note number {n}")) for n in range(300)])
    store.finish()
    row = vector("note number 7")
    ours = [row.astype(np.float16).tobytes(), np.rint(row / np.abs(row).max() * 127).astype(np.int8).tobytes()]
    with store._database.reading() as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    assert any(each in _all_bytes(store) for each in ours)
    store.remove(["/notes/7"])
    with store._database.reading() as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    assert not any(each in _all_bytes(store) for each in ours)
    found = store.search_vectors(vector("note number 8"), 300, ANY)
    assert len(found) == 299
    assert store.fetch([found[0][0]])[0].chunk.text == "note number 8"


def test_superseded_chunks_are_found_only_when_asked_for(store: Store) -> None:
    store.write([change("/notes/a", chunk("port 2222"), chunk("port 2244"))])
    old, new = (id for id, _ in sorted(store.search_text(["port"], 5, ANY)))
    store.supersede(old, new)
    assert texts(store, "port") == ["port 2244"]
    assert len(store.search_vectors(vector("port 2222"), 5, ANY)) == 1
    assert len(texts(store, "port", Filter(has_superseded=True))) == 2
    store.supersede(old, None)
    assert len(texts(store, "port")) == 2


def test_uses_are_kept_across_an_edit_elsewhere_in_the_file(store: Store) -> None:
    kept = chunk("the answer")
    store.write([change("/notes/a", kept)])
    store.record([Event(digest=kept.digest, time=float(n), kind="used") for n in range(20)])
    store.record([Event(digest=kept.digest, time=99.0, kind="rejected")])
    store.write([change("/notes/a", chunk("a new start"), kept)])
    (found,) = [each for each in store.fetch([i for i, _ in store.search_text(["answer"], 5, ANY)])]
    assert found.accessed == tuple(float(n) for n in range(5, 20))  # the last 16 events, one of them a rejection


def test_what_is_done_together_is_done_wholly_or_not(store: Store) -> None:
    with pytest.raises(KeyError), store.together():
        store.write([change("/notes/a", chunk("half"))])
        store.set_meta({"state": "half"})
        raise KeyError
    assert (texts(store, "half"), store.meta("state")) == ([], None)
    with store.together():
        store.write([change("/notes/a", chunk("whole"))])
        store.add_judgement({"query": "whole"})
    assert (texts(store, "whole"), store.judgements()) == (["whole"], [{"query": "whole"}])


def test_a_search_does_not_wait_for_another_threads_transaction(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "notes.sqlite")
    store.write([change("/notes/a", chunk("whole"))])
    assert len(texts(store, "whole")) == 1  # what is common is known from here on
    with store.together(), ThreadPoolExecutor(1) as pool:
        store.write([change("/notes/b", chunk("whole too"))])
        assert len(store.search_text(["whole"], 9, ANY)) == 2
        with store._database.searching() as ours:
            count = "select count(*) from chunks"
            assert ours.execute(count).fetchone() == (2,)

        def counted() -> tuple[int]:
            with store._database.searching() as theirs:
                return theirs.execute(count).fetchone()

        assert pool.submit(counted).result(timeout=10) == (1,)
    assert len(store.search_text(["whole"], 9, ANY)) == 2


def test_the_rarest_words_of_a_query_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondpass.search.stores.sqlite.COMMON_FROM", 10)
    monkeypatch.setattr("secondpass.search.stores.sqlite.MAX_POSTINGS", 30)
    store = SqliteStore(tmp_path / "notes.sqlite")
    texts = [f"the word{n} of paper {'glass' if n % 2 else 'stone'}" for n in range(40)]
    store.write([change(f"/notes/{n}", chunk(text)) for n, text in enumerate(texts)])
    store.finish()
    assert store._common.postings["paper"] == 40
    assert store._common.rarest(["the", "paper", "word3"]) == ["word3"]
    monkeypatch.setattr("secondpass.search.stores.sqlite.MAX_SHARE", 0.6)
    assert store._common.rarest(["glass", "word3", "stone"]) == ["glass", "word3"]  # 1 and 20 and 20 of at most 30
    assert store._common.rarest(["the", "unknown"]) == ["unknown"]
    assert store._common.rarest(["the", "paper"]) == ["the"]
    assert store._common.rarest([]) == []
    assert len(store.search_text(["the", "word3"], 9, ANY)) == 1
    assert len(store.search_text(["the"], 50, ANY)) == 40


def test_vectors_that_come_later_are_found(store: Store) -> None:
    first = change("/notes/a", chunk("one"), chunk("two"))
    store.write([Change(file=first.file, chunks=first.chunks)])
    store.write([change("/notes/b", chunk("three"))])
    assert len(store.search_vectors(vector("one"), 9, ANY)) == 1
    missing = store.without_vectors(10)
    assert [each.chunk.text for each in missing] == ["one", "two"]
    store.add_vectors([each.id for each in missing], np.stack([vector(each.chunk.text) for each in missing]))
    assert len(store.search_vectors(vector("one"), 9, ANY)) == 3
    assert store.without_vectors(10) == []
    store.drop_vectors()
    assert store.search_vectors(vector("one"), 9, ANY) == []


def test_another_process_sees_what_was_written_and_the_copy_of_the_codes_is_only_a_copy(tmp_path: Path) -> None:
    place = tmp_path / "notes.sqlite"
    writer, reader = SqliteStore(place), SqliteStore(place)
    writer.write([change("/notes/a", chunk("one"))])
    assert len(reader.search_vectors(vector("one"), 9, ANY)) == 1
    writer.finish()
    writer.write([change("/notes/b", chunk("two")), change("/notes/a", chunk("three"))])
    expected = {"two", "three"}
    for damage in ("keep", "cut", "noise", "remove"):
        copy = tmp_path / "notes.sqlite-vectors"
        if damage == "cut":
            copy.write_bytes(copy.read_bytes()[:-3])
        elif damage == "noise":
            copy.write_bytes(b"nothing of the kind")
        elif damage == "remove":
            copy.unlink()
        for each in (reader, SqliteStore(place)):
            found = each.fetch([id for id, _ in each.search_vectors(vector("two"), 9, ANY)])
            assert {one.chunk.text for one in found} == expected


def test_codes_are_the_same_after_they_were_saved(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((70, 12)).astype(np.float16)
    made = codes.Codes.of(np.arange(70), rows)
    codes.save(tmp_path / "v", made, codes.Version(3, 4))
    loaded = codes.load(tmp_path / "v")
    assert loaded is not None
    assert loaded[1] == codes.Version(3, 4)
    for name in ("ids", "codes", "scales"):
        assert np.array_equal(getattr(loaded[0], name), getattr(made, name))
    assert set(os.listdir(tmp_path)) == {"v"}


def test_words_are_written_anew_when_their_rules_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondpass.search.stores.sqlite.COMMON_FROM", 1)
    place = tmp_path / "notes.sqlite"
    first = SqliteStore(place)
    first.write([change("/notes/a", chunk("Dogs run"))])
    first.finish()
    first.close()
    for module in ("store", "sqlite"):
        name = f"secondpass.search.stores.{module}.indexed_terms"
        monkeypatch.setattr(name, lambda text: [w[:3] for w in terms(text)])
    second = SqliteStore(place)
    assert [id for id, _ in second.search_text(["dog"], 5, ANY)]
    assert second._common.postings == {"dog": 1, "run": 1}
    second.remove(["/notes/a"])
    assert second.search_text(["dog"], 5, ANY) == []


def test_words_that_another_process_has_written_anew_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SqliteStore(tmp_path / "notes.sqlite")) as first:
        first.write([change("/notes/a", chunk("Dogs run"))])
    meta = SqliteStore.meta
    monkeypatch.setattr(SqliteStore, "meta", lambda self, name: "old" if name == "words" else meta(self, name))
    monkeypatch.setattr("secondpass.search.stores.sqlite.indexed_terms", None)  # would be called
    with closing(SqliteStore(tmp_path / "notes.sqlite")) as second:
        assert second.search_text(["dogs"], 5, ANY)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "notes.sqlite")
    assert stat.S_IMODE((tmp_path / "notes.sqlite").stat().st_mode) == 0o600


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"some text that is long enough to be no database at all" * 20)
    with pytest.raises(StoreError, match=r"a\.sqlite: is not an index; move it away"):
        SqliteStore(tmp_path / "a.sqlite")
    connection = sqlite3.connect(tmp_path / "b.sqlite")
    connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"b\.sqlite: has format 99"):
        SqliteStore(tmp_path / "b.sqlite")
    with closing(sqlite3.connect(tmp_path / "c.sqlite")) as other:
        other.execute("create table recipes(name)")
    before = (tmp_path / "c.sqlite").read_bytes()
    with pytest.raises(StoreError, match=r"c\.sqlite: is not an index; move it away"):
        SqliteStore(tmp_path / "c.sqlite")
    assert (tmp_path / "c.sqlite").read_bytes() == before


@pytest.mark.promise("docs/search.md", "A database that cannot grow is a clear error")
def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "notes.sqlite")
    store.write([change("/notes/a", chunk("kept apple"))])
    with store._database.reading() as connection:
        pages = connection.execute("pragma page_count").fetchone()[0]
        connection.execute(f"pragma max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="the disk is full; free some space and run it again"):
        store.write([change("/notes/b", *(chunk(f"{n} apple " * 300) for n in range(200)))])
    assert texts(store, "apple") == ["kept apple"]
    with store._database.reading() as connection:
        connection.execute("pragma max_page_count = 1000000")
    store.write([change("/notes/b", chunk("new apple"))])
    assert set(texts(store, "apple")) == {"kept apple", "new apple"}


def _mark_files(store: Store) -> list[str]:
    assert isinstance(store, SqliteStore)
    return sorted(file.name for file in store.states.folder.rglob("*") if file.is_file())


def test_states_are_kept_as_long_as_a_chunk_has_their_text(store: Store) -> None:
    if store.states is None:
        pytest.skip("this store keeps no states")
    both, one = chunk("in two files"), chunk("in one file")
    store.write([change("/notes/a", both, one), change("/notes/b", both)])
    assert not store.states.is_kept
    store.states.add("mark", {one.digest: b"early"})  # not kept yet
    store.states.switch(True)
    missing = store.states.missing("mark")
    assert [each.chunk.text for each in store.fetch(missing)] == ["in two files", "in one file"]
    store.states.add("mark", {both.digest: b"both", one.digest: b"one", b"no chunk": b"gone meanwhile"})
    assert store.states.missing("mark") == []
    assert store.states.read("mark", [one.digest, b"no chunk", both.digest]) == [b"one", b"both"]
    assert store.states.read("other", [one.digest]) == []
    store.write([change("/notes/a", chunk("new"), one)])
    assert store.states.read("mark", [both.digest, one.digest]) == [b"both", b"one"]
    store.remove(["/notes/b"])
    assert store.states.read("mark", [both.digest, one.digest]) == [b"one"]
    store.write([change("/notes/a", chunk("newer"))])
    assert _mark_files(store) == []
    store.write([change("/notes/a", one)])
    store.states.add("mark", {one.digest: b"one"})
    size = store.counts().bytes
    store.states.add("mark", {one.digest: b"one" * 1000})
    assert store.counts().bytes == size + 2997
    assert len(store.states.missing("other")) == 1
    assert _mark_files(store) == []  # of another model
    store.states.switch(False)
    assert not store.states.is_kept
    assert store.states.read("mark", [one.digest]) == []


def test_states_for_which_there_is_no_room_are_a_clear_error(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "notes.sqlite")
    first, second = chunk("first"), chunk("second")
    store.write([change("/notes/a", first, second)])
    store.states.switch(True)
    store.states.add("mark", {first.digest: b"first"})
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(StoreError, match=r"notes\.sqlite-states: states of passages cannot be written"):
            store.states.add("mark", {second.digest: b"second" * (1 << 19)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert store.states.read("mark", [first.digest, second.digest]) == [b"first"]
    assert _mark_files(store) == [first.digest.hex()]
    store.states.add("mark", {second.digest: b"second"})
    assert store.states.missing("mark") == []


def _write_states(folder: str, name: str, acknowledged: str) -> None:
    store = open_store("notes", folder, create=True)
    assert store.states is not None
    for number in range(100_000):
        made = [chunk(f"{name} {number} part{part}") for part in range(5)]
        store.write([change(f"/{name}/{number}", *made)])
        store.states.add("mark", {each.digest: each.digest * 10_000 for each in made})
        with open(acknowledged, "a", encoding="utf-8") as log:
            log.write(f"/{name}/{number}\n")
        store.remove([f"/{name}/{number - 1}"])


@pytest.mark.promise("docs/search.md", "none is ever left of a text that was forgotten")
@pytest.mark.slow
def test_kill_at_any_moment_leaves_states_whole_and_none_of_what_is_gone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    chance = random.Random(11)
    store = SqliteStore(tmp_path / "notes.sqlite")
    store.states.switch(True)
    for round in range(8):
        log.write_text("")
        names = (f"r{round}a", f"r{round}b")
        writers = [context.Process(target=_write_states, args=(str(tmp_path), name, str(log))) for name in names]
        for writer in writers:
            writer.start()
        while len(log.read_text().split()) < 10:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.3))
        for writer in writers:
            os.kill(writer.pid or 0, signal.SIGKILL)
            writer.join()
        stored = store.fetch([id for path in store.files() for id in store.ids(path)])
        digests = {each.chunk.digest for each in stored}
        files = [file for file in store.states.folder.rglob("*") if file.is_file()]
        assert {file.name.lstrip(".") for file in files} <= {digest.hex() for digest in digests}
        found = {data[:16]: data for data in store.states.read("mark", sorted(digests))}
        assert all(data == digest * 10_000 for digest, data in found.items())
        last = {path.split("/")[1]: path for path in log.read_text().splitlines(keepends=True) if path.endswith("\n")}
        done = {each.chunk.digest for each in stored if f"{each.path}\n" in last.values()}
        assert done <= found.keys() and len(done) == 5 * len(last)
        store.remove(list(store.files()))
        assert _mark_files(store) == []


def _write_many(folder: str, name: str, count: int, acknowledged: str | None) -> None:
    store = open_store("notes", folder, create=True)
    for number in range(count):
        store.write([change(f"/{name}/{number}", *(chunk(f"{name} {number} part{part}") for part in range(5)))])
        if acknowledged:
            with open(acknowledged, "a", encoding="utf-8") as log:
                log.write(f"{number}\n")


@pytest.mark.slow
@pytest.mark.promise("docs/search.md", "Several processes may read and write one index at once")
def test_writers_that_start_together_all_succeed(folder: str) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(folder, name, 15, None)) for name in ("a", "b", "c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    store = open_store("notes", folder, create=False)
    counts = store.counts()
    store.close()
    assert (counts.files, counts.chunks, counts.vectors) == (45, 225, 225)


def test_who_leaves_last_does_not_take_the_log_of_who_is_still_there(tmp_path: Path) -> None:
    """A process that opens and closes the file beside SQLite gives up the locks of its connections."""
    first, second = open_store("notes", tmp_path, create=True), open_store("notes", tmp_path, create=False)
    first.write([change("/a", chunk("apple"))])
    log = tmp_path / "notes.sqlite-wal"
    inode = log.stat().st_ino
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('select * from meta').fetchall(); c.close()"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "notes.sqlite")], check=True)
        assert log.stat().st_ino == inode
        second.write([change("/b", chunk("pear"))])
    assert first.counts().files == second.counts().files == 2
    first.close()
    second.close()


@pytest.mark.promise("docs/search.md", "loses nothing that was committed and leaves nothing half")
@pytest.mark.slow
def test_kill_at_any_moment_loses_nothing_and_leaves_nothing_half(folder: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    chance = random.Random(7)
    for round in range(8):
        log.write_text("")
        writer = context.Process(target=_write_many, args=(folder, f"r{round}", 100_000, str(log)))
        writer.start()
        while not log.read_text():
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.4))
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        store = open_store("notes", folder, create=False)
        for number in log.read_text().split():
            assert len(store.search_text([f"r{round}"], 10**6, ANY)) % 5 == 0
            assert f"/r{round}/{number}" in store.files()
        counts = store.counts()
        assert counts.chunks == counts.vectors == 5 * counts.files
        if isinstance(store, SqliteStore):
            with store._database.reading() as connection:
                assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
                connection.execute("insert into postings(postings) values('integrity-check')")
        store.close()


def test_an_index_that_is_not_there_is_said_with_those_that_are(folder: str) -> None:
    open_store("notes", folder, create=True).close()
    assert index_names(folder) == ["notes"]
    with pytest.raises(StoreError, match=r"there is no index 'other'; there are notes; make it with: secondpass add"):
        open_store("other", folder, create=False)


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(StoreError, match=r"mysql://...: indexes are kept in a folder, at lancedb://"):
        open_store("notes", "mysql://root:secret@host/db", create=True)


@pytest.mark.clients
def test_a_database_that_does_not_answer_is_named_without_its_password(database: str) -> None:
    with pytest.raises(StoreError, match=r"^postgresql://127\.0\.0\.1:1/notes: ") as caught:
        open_store("notes", "postgresql://me:secret@127.0.0.1:1/notes", create=True)
    assert "secret" not in str(caught.value)


@pytest.mark.clients
def test_the_nearest_are_found_through_the_approximate_index(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondpass.search.stores.postgres.HNSW_FROM", 100)
    store = open_store("notes", database, create=True)
    store.write([change(f"/notes/{n % 7}/{n}", chunk(f"text number {n} of many {n * n}")) for n in range(400)])
    store.finish()
    asked = vector("text number 7 of many 49")
    for only in (ANY, Filter(path="/notes/0/")):
        found = store.search_vectors(asked, 5, only)
        assert store.fetch([found[0][0]])[0].chunk.text == "text number 7 of many 49"
        assert len(found) == 5
    store.drop()


@pytest.mark.clients
def test_a_connection_that_broke_is_made_anew(database: str) -> None:
    import psycopg

    store = open_store("notes", database, create=True)
    store.write([change("/notes/a", chunk("kept apple"))])
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()")
    with suppress(StoreError):  # the call that finds it broken may say so
        store.search_text(["apple"], 5, ANY)
    assert texts(store, "apple") == ["kept apple"]
    store.drop()


@pytest.mark.clients
def test_vectors_in_lancedb_are_indexed_and_rows_that_nobody_names_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lancedb = pytest.importorskip("lancedb")
    monkeypatch.setattr("secondpass.search.stores.lance.INDEXED_FROM", 300)
    monkeypatch.setattr("secondpass.search.stores.lance.FEW", 10)
    store = open_store("notes", f"lancedb://{tmp_path}", create=True)
    for part in range(4):
        store.write(
            [
                change(f"/notes/{n % 7}/{n}", chunk(f"text number {n} of many {n * n}"))
                for n in range(100 * part, 100 * part + 100)
            ]
        )
    store.remove(["/notes/0/0"])
    with suppress(KeyError), store.together():
        store.write([change("/notes/half", chunk("half"))])
        raise KeyError
    table = lancedb.connect(tmp_path / "notes.lancedb").open_table("vectors_64")
    assert table.count_rows() == 400
    asked = vector("text number 7 of many 49")
    for is_indexed in (False, True):
        for only, count in ((ANY, 5), (Filter(path="/notes/0/"), 5), (Filter(path="/notes/0/14"), 3)):
            found = store.search_vectors(asked, 5, only)
            assert len(found) == count
            best = store.fetch([found[0][0]])[0].chunk.text
            assert found[0][1] == pytest.approx(float(vector(best) @ asked), abs=2e-3)
            assert count == 3 or best == "text number 7 of many 49"
        if not is_indexed:
            store.finish()
    table.checkout_latest()
    assert table.count_rows() == 399
    assert {index.index_type for index in table.list_indices()} == {"IvfSq", "BTree"}
    row = asked.astype(np.float16).tobytes()
    assert row in _all_bytes(store)
    store.remove(["/notes/0/7"])
    assert row not in _all_bytes(store)
    assert len(store.search_vectors(asked, 500, ANY)) == 398
    table.checkout_latest()
    assert [table.index_stats(index.name).num_unindexed_rows for index in table.list_indices()] == [0, 0]
    assert stat.S_IMODE((tmp_path / "notes.lancedb").stat().st_mode) == 0o700
    store.drop()
    assert list(tmp_path.iterdir()) == []


def read_by(retriever: WordRetriever, store: Store) -> int:
    """Read what is missing. Returns of how many texts."""
    readings = store.readings(retriever.stage)
    missing = [each.chunk for each in store.fetch(readings.missing(retriever.mark))]
    values = retriever.read([chunk.passage for chunk in missing])
    readings.add(retriever.mark, dict(zip((chunk.digest for chunk in missing), values, strict=True)))
    return len(missing)


def read_texts(store: Store, retriever: WordRetriever, query: str, only: Filter = ANY) -> list[tuple[str, float]]:
    found = store.readings(retriever.stage).search(retriever, query, 9, only)
    return [
        (each.chunk.text, score) for each, (_, score) in zip(store.fetch([id for id, _ in found]), found, strict=True)
    ]


def test_what_a_retriever_read_is_found_filtered_changed_and_forgotten(store: Store, folder: str) -> None:
    retriever = WordRetriever()
    store.write([change("/notes/a", chunk("red apple pie"), chunk("red car")), change("/other/b", chunk("red car"))])
    store.readings("sparse").begin(retriever.mark)
    assert read_by(retriever, store) == 2  # texts, not chunks
    assert read_texts(store, retriever, "red apple") == [("red apple pie", 2), ("red car", 1), ("red car", 1)]
    assert read_texts(store, retriever, "apple", Filter(path="/other")) == []
    assert read_texts(store, retriever, "apple car", Filter(path="/other")) == [("red car", 1)]
    with closing(open_store("notes", folder, create=False)) as of_another_process:
        assert len(read_texts(of_another_process, retriever, "red")) == 3
        store.write([change("/notes/a", chunk("green apple pie"), chunk("red car"))])
        assert read_by(retriever, store) == 1
        for each in (store, of_another_process):
            found = sorted(read_texts(each, retriever, "red apple"))
            assert found == [("green apple pie", 1), ("red car", 1), ("red car", 1)]
        old, new = store.ids("/notes/a")
        store.supersede(old, new)
        assert read_texts(of_another_process, retriever, "apple") == []
        assert read_texts(of_another_process, retriever, "apple", Filter(has_superseded=True)) == [
            ("green apple pie", 1)
        ]
        store.remove(["/notes/a"])
        assert read_texts(of_another_process, retriever, "red green") == [("red car", 1)]
    assert read_by(retriever, store) == 0


def test_readings_of_another_model_are_told_apart_and_dropped(store: Store) -> None:
    retriever, other = WordRetriever(), WordRetriever()
    other.mark = "other words"
    readings = store.readings("sparse")
    with pytest.raises(StoreError, match=r"it keeps no readings for 'sparse'; make them with Index\.update"):
        readings.search(retriever, "red", 5, ANY)
    store.write([change("/notes/a", chunk("red apple"))])
    readings.begin(retriever.mark)
    read_by(retriever, store)
    readings.begin(retriever.mark)
    assert read_by(retriever, store) == 0
    readings.begin(other.mark)
    with pytest.raises(StoreError, match="readings of another model for 'sparse'"):
        readings.search(retriever, "red", 5, ANY)
    with pytest.raises(StoreError, match="another process has taken another model for 'sparse' meanwhile"):
        readings.missing(retriever.mark)
    readings.add(retriever.mark, {chunk("red apple").digest: b"of the one before"})
    assert read_by(other, store) == 1
    assert read_texts(store, other, "red") == [("red apple", 1)]
    readings.drop()
    with pytest.raises(StoreError, match="it keeps no readings"):
        readings.search(other, "red", 5, ANY)


def test_many_readings_that_come_and_go_are_found_as_by_hand(store: Store) -> None:
    """Beyond what is read at a time, in blocks that the store has in another order."""
    retriever, draw = WordRetriever(), random.Random(3)
    store.readings("sparse").begin(retriever.mark)
    known = dict[str, str]()
    for _ in range(12):
        changes = []
        for path in {f"/notes/{draw.randrange(900)}" for _ in range(150)}:
            known[path] = " ".join(f"word{draw.randrange(60)}" for _ in range(5))
            changes.append(change(path, chunk(known[path])))
        store.write(changes)
        gone = draw.sample(sorted(known), 20)
        store.remove(gone)
        for path in gone:
            del known[path]
        read_by(retriever, store)
        word = f"word{draw.randrange(60)}"
        found = store.readings("sparse").search(retriever, word, 2000, ANY)
        assert sorted(each.chunk.text for each in store.fetch([id for id, _ in found])) == sorted(
            text for text in known.values() if word in text.split()
        )


def test_more_threads_than_a_database_has_connections_write_and_search_at_once(store: Store) -> None:
    retriever, num_threads = WordRetriever(), 24
    store.write([change("/notes/first", chunk("red apple"))])
    store.readings("sparse").begin(retriever.mark)
    store.set_meta({"embedder": "words"})

    def work(number: int) -> None:
        store.write([change(f"/notes/{number}", chunk(f"red car {number}"))], embedder="words")
        read_by(retriever, store)
        for _ in range(3):
            assert store.search_vectors(vector("red apple"), 3, ANY)
            assert read_texts(store, retriever, "apple") == [("red apple", 1)]

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(work, range(num_threads)))
    assert store.counts().files == num_threads + 1
    assert read_by(retriever, store) == 0
