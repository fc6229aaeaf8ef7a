"""A model that reads one script says so when it is given another."""

from __future__ import annotations

import pytest

from secondpass import Reranker
from secondpass.text.scripts import foreign_script

LATIN = ("LATIN",)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("how long is the river", None),
        ("Wie lang ist die Donau? Über 2800 km", None),
        ("长江有多长", "Chinese"),
        ("ながいかわ", "Japanese"),
        ("Какая река самая длинная", "Cyrillic"),
        ("ما هو أطول نهر", "Arabic"),
        ("the word 河 means river", None),
        ("2800 + 30 = 2830!", None),
        ("", None),
    ],
)
def test_the_script_of_most_letters_tells(text: str, script: str | None) -> None:
    assert foreign_script([text], LATIN) == script


def test_a_ranking_warns_once_and_says_what_helps() -> None:
    reranker = Reranker()
    assert reranker.rank("how long is the river", ["It is 2800 km long."]).warnings == ()
    (warning,) = reranker.rank("长江有多长", ["长江长6300公里。", "今天下雨。"]).warnings
    assert "Chinese" in warning and "pip install secondpass-multilingual" in warning
    (warning,) = reranker.rank("long river", ["Дунай длиной 2850 километров", "Сегодня дождь"]).warnings
    assert "Cyrillic" in warning
