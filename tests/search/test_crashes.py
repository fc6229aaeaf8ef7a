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
from secondpass.search.memory import Memory
from tests.search.conftest import WordEncoder, WordReranker

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
