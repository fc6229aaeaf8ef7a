"""Uses and statements of a process that is killed at any moment: what was done stays, nothing is there by half."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from secondpass.search.index import Index
from secondpass.search.indexing import Indexing
from secondpass.search.memory import Memory
from secondpass.search.stores.sqlite import SqliteStore
from secondpass.search.stores.store import Filter
from tests.search.conftest import WordEncoder, WordReranker, WordRetriever

ROUNDS = 4
Work = Callable[[Path, int], None]


def killed(work: Work, place: Path, round: int, chance: random.Random) -> list[int]:
    """Has a process at work, kills it at a random moment, and returns what it had said to be done."""
    log = place / "log"
    log.write_text("")
    worker = multiprocessing.get_context("spawn").Process(target=work, args=(place, round))
    worker.start()
    while not log.read_text():
        assert worker.is_alive()
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.3))
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join()
    return [int(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def say(place: Path, number: int) -> None:
    with (place / "log").open("a", encoding="utf-8") as log:
        log.write(f"{number}\n")


def opened(place: Path) -> Memory:
    return Memory(folder=place, embedder=WordEncoder(), reranker=WordReranker())


def remember(place: Path, round: int) -> None:
    memory = opened(place)
    for number in range(100_000):
        id = memory.remember(f"r{round}n{number} is old", source="a", now=number)
        memory.confirm(id, source="b")
        memory.supersede(id, f"r{round}n{number} is new", now=number + 1)
        say(place, number)


@pytest.mark.slow
@pytest.mark.promise("docs/search.md", "A replacement happens wholly or not")
def test_a_memory_keeps_what_it_was_told_and_no_half_of_it(tmp_path: Path) -> None:
    chance = random.Random(5)
    for round in range(ROUNDS):
        done = killed(remember, tmp_path, round, chance)
        memory = opened(tmp_path)
        for number in done[-20:]:
            assert memory.recall(f"r{round}n{number}", 1).texts == [f"r{round}n{number} is new"]
            assert memory.recall(f"r{round}n{number}", 1, as_of=number).texts == [f"r{round}n{number} is old"]
        store = memory.index.store
        stored = store.fetch([id for path in store.files() for id in store.ids(path)])
        new = [each for each in stored if each.chunk.text.endswith("new")]
        old = [each for each in stored if each.superseded_by is not None]
        assert {each.superseded_by for each in old} == {each.id for each in new}
        assert all("superseded_at" in each.chunk.fields for each in old)
        assert all(each.chunk.fields["supports"] == 1 for each in old)
        assert store.counts().vectors == len(stored)
        memory.close()


def judge(place: Path, round: int) -> None:
    index = Index(folder=place, embedder=WordEncoder(), reranker=WordReranker())
    ranking = index.search("apple")
    for number in range(100_000):
        index.feedback(ranking, ranking[number % len(ranking)], "used", now=round * 100_000.0 + number)
        say(place, number)


@pytest.mark.slow
@pytest.mark.promise("docs/search.md", "a judgement is kept with its use, also where the process is killed")
def test_an_index_keeps_each_judgement_with_its_use(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for name in ("a", "b", "c"):
        (notes / f"{name}.txt").write_text(f"an apple for {name} and {name * 40}")
    index = Index(folder=tmp_path, embedder=WordEncoder(), reranker=WordReranker(), create=True)
    index.add(notes)
    index.close()
    chance = random.Random(3)
    before = 0
    for round in range(ROUNDS):
        done = killed(judge, tmp_path, round, chance)
        index = Index(folder=tmp_path, embedder=WordEncoder(), reranker=WordReranker())
        times = [float(judgement["time"]) for judgement in index.store.judgements()]
        assert len(times) - before in (len(done), len(done) + 1)  # one may have been killed before it could say so
        before = len(times)
        file = sqlite3.connect(index.store.location)
        assert file.execute("select max(time) from accesses").fetchone() == (max(times),)
        assert file.execute("pragma integrity_check").fetchone() == ("ok",)
        file.close()
        index.close()


def updated(store: SqliteStore, retriever: WordRetriever, notes: Path) -> None:
    indexing = Indexing(store=store, encoder=WordEncoder(), retrievers=[retriever])
    indexing.begin()
    indexing.update([notes])


def rewrite(place: Path, round: int) -> None:
    """Files that change, come and go, with what a retriever reads of them."""
    store, notes = SqliteStore(place / "notes.sqlite"), place / "notes"
    chance = random.Random(round)
    for number in range(100_000):
        for name in chance.sample(range(40), 5):
            file = notes / f"{name}.txt"
            if file.exists() and chance.random() < 0.3:
                file.unlink()
            else:
                file.write_text(f"word{name} r{round}n{number} and so on")
        updated(store, WordRetriever(), notes)
        say(place, number)


@pytest.mark.slow
@pytest.mark.promise("docs/search.md", "changes and goes with the text")
def test_what_retrievers_read_fits_the_texts_whenever_the_process_is_killed(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    chance = random.Random(9)
    for round in range(2 * ROUNDS):
        killed(rewrite, tmp_path, round, chance)
        file = sqlite3.connect(tmp_path / "notes.sqlite")
        assert file.execute("pragma integrity_check").fetchone() == ("ok",)
        left = file.execute("select count(*) from readings where digest not in (select digest from chunks)")
        assert left.fetchone() == (0,)  # nothing of a text that is gone
        file.close()
        store = SqliteStore(tmp_path / "notes.sqlite")
        retriever, readings = WordRetriever(), store.readings("sparse")
        for path in store.files():  # what was read is found, and only where it is said
            word = Path(path).stem
            found = readings.search(retriever, f"word{word}", 50, Filter())
            assert {each.chunk.text.split()[0] for each in store.fetch([id for id, _ in found])} <= {f"word{word}"}
        updated(store, retriever, tmp_path / "notes")
        for path in store.files():  # a file that was being written has no chunk
            found = readings.search(retriever, f"word{Path(path).stem}", 50, Filter())
            assert len(found) == bool(Path(path).read_text())
        store.close()
