"""An agent's memory: what is kept, confirmed, contradicted, replaced and forgotten, at moments that are given."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from secondpass.errors import StoreError
from secondpass.search.memory import Memory
from tests.search.conftest import WordEncoder, WordReranker

NOW = "2026-11-28"


def opened(place: Path, namespace: str = "default") -> Memory:
    return Memory(folder=place, namespace=namespace, embedder=WordEncoder(), reranker=WordReranker())


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    memory = opened(tmp_path)
    yield memory
    memory.close()


def texts(memory: Memory, query: str, top_n: int = 5, **options: object) -> list[str]:
    return memory.recall(query, top_n, **{"now": NOW, **options}).texts  # type: ignore[arg-type]


def test_what_is_remembered_is_recalled_in_its_namespace_alone(memory: Memory, tmp_path: Path) -> None:
    id = memory.remember("Ada likes green tea", subject="tea", importance=0.9, now="2026-01-01")
    other = opened(tmp_path, "other")
    other.remember("Bob likes black tea", now="2026-01-01")
    assert texts(memory, "who likes tea") == ["Ada likes green tea"]
    assert texts(other, "who likes tea") == ["Bob likes black tea"]
    stored = memory.get(id)
    assert stored.chunk.fields["subject"] == "tea"
    with pytest.raises(StoreError, match=f"no statement {id} in the memory 'other'"):
        other.get(id)


def test_the_same_words_again_are_a_confirmation(memory: Memory) -> None:
    first = memory.remember("The port is 2222", source="mail", now=NOW)
    assert memory.remember("the port  is 2222", source="mail", now=NOW) == first
    assert "supports" not in memory.get(first).chunk.fields
    assert memory.remember("The port is 2222", source="wiki", now=NOW) == first
    assert memory.get(first).chunk.fields["supports"] == 1


@pytest.mark.parametrize("subject", ["port", None])
def test_what_is_said_again_after_another_statement_about_its_subject_holds_again(
    memory: Memory, subject: str | None
) -> None:
    first = memory.remember("The ssh port is 2222", subject="port", importance=0.9, now="2026-01-01")
    memory.remember("The ssh port is 2244", subject="port", now="2026-02-01")
    assert memory.remember("The ssh port is 2222", subject="port", valid_from="2026-01-15", now="2026-02-15") == first
    again = memory.remember("The ssh port is 2222", subject=subject, now="2026-03-01")
    assert texts(memory, "the ssh port") == ["The ssh port is 2222", "The ssh port is 2244"]
    assert memory.get(first).superseded_by == again
    assert memory.get(again).chunk.fields["importance"] == 0.9
    assert memory.remember("The ssh port is 2222", subject=subject, now="2026-03-02") == again
    assert "The ssh port is 2222" in texts(memory, "the ssh port", as_of="2026-01-20")


def test_the_same_words_about_another_subject_are_another_statement(memory: Memory) -> None:
    memory.remember("It is 2222", now="2026-01-01")
    ssh = memory.remember("It is 2222", subject="ssh port", now="2026-01-02")
    assert memory.get(ssh).chunk.fields["subject"] == "ssh port"
    web = memory.remember("It is 2222", subject="web port", now="2026-01-03")
    assert {ssh, web} == {hit.index for hit in memory.recall("it is 2222", now=NOW)}


def test_what_was_to_hold_later_holds_when_it_is_said_to_hold_now(memory: Memory) -> None:
    later = memory.remember("Dana pays 950 euros", valid_from="2027-01-01", now="2026-01-02")
    assert memory.remember("Dana pays 950 euros", valid_from="2027-01-01", now="2026-01-03") == later
    assert texts(memory, "what does Dana pay") == []
    memory.remember("Dana pays 950 euros", now="2026-11-01")
    assert texts(memory, "what does Dana pay") == ["Dana pays 950 euros"]
    assert texts(memory, "what does Dana pay", now="2027-02-01") == ["Dana pays 950 euros"]


def test_the_same_words_in_other_code_points_are_the_same(memory: Memory) -> None:
    first = memory.remember("Ада любит чай", now=NOW)
    assert memory.remember(unicodedata.normalize("NFD", "Ада любит чай"), now=NOW) == first
    cafe = memory.remember("Le café est à Genève", now=NOW)
    assert memory.remember(unicodedata.normalize("NFD", "Le café est à Genève"), now=NOW) == cafe


class MeetingEncoder(WordEncoder):
    """Waits until two threads are here, as long as that may take."""

    def __init__(self, meeting: threading.Barrier) -> None:
        super().__init__()
        self.meeting = meeting

    def encode(self, texts: Iterable[str], *, kind: str = "document") -> NDArray[np.float32]:
        with suppress(threading.BrokenBarrierError):
            self.meeting.wait(0.3)
        return super().encode(texts, kind=kind)


def test_two_that_remember_the_same_at_once_keep_it_once(tmp_path: Path) -> None:
    meeting = threading.Barrier(2)
    both = [Memory(folder=tmp_path, embedder=MeetingEncoder(meeting), reranker=WordReranker()) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        ids = list(threads.map(lambda memory: memory.remember("The port is 2222", source="mail", now=NOW), both))
    assert ids[0] == ids[1]


@pytest.mark.parametrize("reranker", [None, WordReranker()])
def test_of_one_subject_the_newest_comes_first_also_where_nothing_reranks(
    reranker: WordReranker | None, tmp_path: Path
) -> None:
    memory = Memory(folder=tmp_path, embedder="none", reranker=reranker)
    memory.remember("The ssh port of the house is 2222", subject="port", now="2026-01-03")
    memory.remember("The house has an ssh key", now="2026-01-02")
    memory.remember("The ssh port is 2244 now", subject="port", now="2026-01-04")
    memory.remember("The ssh port of the house is 2200", subject="port", now="2026-01-01")
    found = texts(memory, "ssh port of the house")
    assert found[0] == "The ssh port is 2244 now"
    assert texts(memory, "ssh port of the house", cognitive={"has_subjects": False})[0] != found[0]


def test_what_is_confirmed_comes_before_what_is_contradicted(memory: Memory) -> None:
    for city in ("paris", "oslo", "rome"):
        memory.remember(f"The capital where we meet is {city}", now="2026-01-01")
    ids = {hit.document.text.split()[-1]: hit.index for hit in memory.recall("the capital where we meet", now=NOW)}
    memory.confirm(ids["oslo"], source="a")
    memory.confirm(ids["oslo"], source="a")
    memory.confirm(ids["oslo"], source="b")
    memory.contradict(ids["paris"], source="a")
    assert memory.get(ids["oslo"]).chunk.fields["supports"] == 2
    found = texts(memory, "the capital where we meet")
    assert [text.split()[-1] for text in found] == ["oslo", "rome", "paris"]


def test_what_was_of_use_comes_first_and_reading_changes_nothing(memory: Memory) -> None:
    first, second = (memory.remember(f"The colour of door {n} is red", now="2026-01-01") for n in "ab")
    order = texts(memory, "the colour of the door")
    assert texts(memory, "the colour of the door") == order
    last = second if order[0].split()[4] == "a" else first
    memory.use(last, now="2026-11-27")
    assert texts(memory, "the colour of the door") == order[::-1]
    assert memory.get(last).accessed != ()


def test_a_superseded_statement_is_no_longer_recalled_but_was_true_then(memory: Memory) -> None:
    old = memory.remember("The ssh port is 2222", subject="ssh", now="2025-01-01")
    new = memory.supersede(old, "The ssh port is 2244", now="2026-06-01")
    assert texts(memory, "the ssh port") == ["The ssh port is 2244"]
    assert texts(memory, "the ssh port", as_of="2025-07-01") == ["The ssh port is 2222"]
    assert texts(memory, "the ssh port", as_of="2026-07-01") == ["The ssh port is 2244"]
    assert memory.get(old).superseded_by == new
    assert memory.get(new).chunk.fields["subject"] == "ssh"


@pytest.mark.parametrize("reranker", [None, WordReranker()])
def test_of_one_subject_the_newest_at_a_moment_comes_first(reranker: WordReranker | None, tmp_path: Path) -> None:
    with Memory(folder=tmp_path, embedder=WordEncoder(), reranker=reranker) as memory:
        memory.remember("The ssh port is the port 2222", subject="ssh", now="2025-01-01")
        second = memory.remember("The ssh port is 2244", subject="ssh", importance=1.0, now="2025-06-01")
        memory.supersede(second, "It is 3333", now="2026-01-01")
        assert texts(memory, "the ssh port is the port", 1, as_of="2025-03-01") == ["The ssh port is the port 2222"]
        assert texts(memory, "the ssh port is the port", 1, as_of="2025-07-01") == ["The ssh port is 2244"]
        relevant = texts(memory, "the ssh port is the port", as_of="2025-07-01", cognitive=False)
        assert relevant == ["The ssh port is the port 2222", "The ssh port is 2244"]


@pytest.mark.parametrize("day", ["2026-11-28", date(2026, 11, 28)])
def test_what_held_on_a_day_is_what_was_said_by_its_end(memory: Memory, day: str | date) -> None:
    old = memory.remember("The ssh port is 2222", now="2026-11-28T09:00")
    assert texts(memory, "the ssh port", as_of="2026-11-28T08:00") == []
    assert texts(memory, "the ssh port", as_of=day) == ["The ssh port is 2222"]
    memory.supersede(old, "The ssh port is 2244", now="2026-11-28T17:00")
    assert texts(memory, "the ssh port", as_of="2026-11-28T12:00") == ["The ssh port is 2222"]
    assert texts(memory, "the ssh port", as_of=day) == ["The ssh port is 2244"]


def test_what_was_replaced_is_not_replaced_again(memory: Memory) -> None:
    old = memory.remember("The ssh port is 2222", now="2025-01-01")
    new = memory.supersede(old, "The ssh port is 2244", subject="ssh", now="2026-01-01")
    with pytest.raises(StoreError, match=f"statement {old} was replaced before; replace {new}, which took its place"):
        memory.supersede(old, "The ssh port is 3333", now="2026-06-01")
    with pytest.raises(ValueError, match="the statement is blank"):
        memory.supersede(new, "")
    assert texts(memory, "the ssh port") == ["The ssh port is 2244"]
    assert texts(memory, "the ssh port", as_of="2026-07-01") == ["The ssh port is 2244"]
    assert memory.get(new).chunk.fields["subject"] == "ssh"


@pytest.mark.parametrize("forgotten", [0, 1, 2])
def test_forgetting_a_statement_does_not_bring_back_what_it_replaced(memory: Memory, forgotten: int) -> None:
    ids = [memory.remember("The ssh port is 1000", now="2025-01-01")]
    for number in (1, 2):
        ids.append(memory.supersede(ids[-1], f"The ssh port is 100{number}", now=f"2025-0{number + 1}-01"))
    memory.forget(ids[forgotten])
    now = [] if forgotten == 2 else ["The ssh port is 1002"]
    assert texts(memory, "the ssh port") == texts(memory, "the ssh port", as_of=NOW) == now
    then = [] if forgotten == 1 else ["The ssh port is 1001"]
    assert texts(memory, "the ssh port", as_of="2025-02-10") == then
    if forgotten == 2:
        with pytest.raises(StoreError, match="what replaced it is forgotten"):
            memory.supersede(ids[1], "The ssh port is 4000")
        memory.forget(ids[1])
        assert texts(memory, "the ssh port", as_of=NOW) == []


def test_what_held_is_found_among_very_many_that_no_longer_did(memory: Memory) -> None:
    id = memory.remember("The ssh port is the ssh port 1000", now="2024-01-01")
    for day in range(1, 60):
        id = memory.supersede(
            id, f"The ssh port is the {'ssh port ' * (day % 2)}{1000 + day}", now=day * 86400.0 + 1.7e9
        )
    for day in (10, 58):
        assert texts(memory, "the ssh port", as_of=day * 86400.0 + 1.7e9)[0].endswith(str(1000 + day))


def test_what_is_no_number_of_statements_is_refused(memory: Memory) -> None:
    with pytest.raises(ValueError, match="top_n is None; give a whole number, 1 or more"):
        memory.recall("the ssh port", None)  # type: ignore[arg-type]


def test_long_statements_that_differ_in_a_number_are_not_copies(memory: Memory) -> None:
    rest = " ".join(f"and {word} {number}" for number, word in enumerate(("north", "south", "east", "west") * 60))
    for port in range(20):
        memory.remember(f"The port of box {port} is {port} {rest}", now="2026-01-01")
    assert len(texts(memory, "the port of the box", top_n=50)) == 20
    assert len({hit.rank for hit in memory.recall("the port", 50, as_of=NOW)} - {0}) == 20


@pytest.mark.parametrize("namespace", ["a\0b", "\ud800", None, 3])
def test_a_namespace_that_would_be_another_one_is_refused(tmp_path: Path, namespace: Any) -> None:
    with pytest.raises(ValueError, match="give a text without NUL, in UTF-8"):
        opened(tmp_path, namespace)


def test_what_is_told_of_a_statement_is_checked_and_any_text_is_kept(memory: Memory) -> None:
    for options, said in (({"importance": 5}, "importance is 5"), ({"entities": "Ada"}, "entities is 'Ada'")):
        with pytest.raises(ValueError, match=said):
            memory.remember("The port is 1", **options)  # type: ignore[arg-type]
    id = memory.remember("half a \ud83d pair", source="\ud800", now=NOW)
    assert memory.get(id).chunk.text == "half a \ufffd pair"


def test_of_one_subject_the_newest_stands_first(memory: Memory) -> None:
    memory.remember("Tea preference of the house is black", subject="Favourite tea", now="2026-01-01")
    memory.remember("Tea now green", subject=" favourite  Tea", now="2026-05-01")
    memory.remember("The house has a tea room of preference", now="2026-05-01")
    ranking = memory.recall("tea preference of the house is black", now=NOW)
    assert ranking[0].document.text == "Tea now green"
    assert ranking[0].parts is not None


def test_what_will_hold_is_not_recalled_before_it_does(memory: Memory) -> None:
    memory.remember("Dana pays 900 euros of rent", subject="rent", now="2026-01-01")
    memory.remember("Dana pays 950 euros of rent", subject="rent", valid_from="2027-01-01", now="2026-01-02")
    assert texts(memory, "how much rent does Dana pay") == ["Dana pays 900 euros of rent"]
    assert texts(memory, "how much rent does Dana pay", now="2027-01-02")[0] == "Dana pays 950 euros of rent"
    assert len(texts(memory, "how much rent does Dana pay", as_of="2027-01-02")) == 2


def test_what_is_forgotten_is_gone_from_the_file(memory: Memory, tmp_path: Path) -> None:
    id = memory.remember("The secret word is xylophone", now=NOW)
    memory.use(id)
    memory.forget(id)
    assert texts(memory, "secret word") == []
    with pytest.raises(StoreError):
        memory.get(id)
    with memory.index.store._database.reading() as connection:  # type: ignore[attr-defined]
        assert connection.execute("select count(*) from accesses").fetchone() == (0,)
    memory.index.store.finish()
    memory.close()
    assert b"xylophone" not in (tmp_path / "memory.sqlite").read_bytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is blank; give a sentence"), (" \u3000\n", "is blank"), ("x" * 9000, "has 9000 characters; give 8000")],
)
def test_empty_and_endless_statements_are_refused(memory: Memory, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"the statement {said}"):
        memory.remember(text)
    with pytest.raises(TypeError, match="the statement is a NoneType; a str is needed"):
        memory.remember(None)  # type: ignore[arg-type]
