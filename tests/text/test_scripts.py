"""A model that reads one script says so when it is given another."""

from __future__ import annotations

import pytest

from secondpass.text.scripts import foreign_script, unread, warning_of

LATIN = ("LATIN",)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("how long is the river", None),
        ("Wie lang ist die Donau? Über 2800 km", None),
        ("长江有多长", "Chinese"),
        ("ながいかわ", "Japanese"),
        ("Python 的 list 如何排序", "Chinese"),  # a character says as much as several letters
        ("Какая река самая длинная", "Cyrillic"),
        ("ما هو أطول نهر", "Arabic"),
        ("the word 河 means river", None),
        ("2800 + 30 = 2830!", None),
        ("", None),
    ],
)
def test_the_script_of_most_letters_tells(text: str, script: str | None) -> None:
    assert foreign_script(text, LATIN) == script


def test_the_query_and_then_each_passage_is_looked_at() -> None:
    passages = ["It is 2800 km long.", "Дунай длиной 2850 километров", ""]
    assert unread("长江有多长", passages, None) is None
    assert unread("long river", passages[:1], LATIN) is None
    query, some = unread("长江有多长", passages, LATIN), unread("long river", passages, LATIN)
    assert query is not None and some is not None
    assert "'m' cannot read Chinese script, in which the query is," in warning_of(query, "m")
    assert "Cyrillic script, in which 1 of 3 passages are," in warning_of(some, "m")
    assert "pip install secondpass-multilingual" in warning_of(some, "m")
