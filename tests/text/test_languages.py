"""A model that reads one script says so when it is given another."""

from __future__ import annotations

import pytest

from secondpass.text.languages import (
    COMMON_WORDS,
    LANGUAGE_NAMES,
    asked_language,
    checked_language,
    foreign_script,
    is_elsewhere,
    language_code,
    language_of,
    unread,
    warning_of,
)

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


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The roses of the garden are red", "en"),
        ("Les roses du jardin sont rouges", "fr"),
        ("Las rosas del jardín son más rojas que las otras", "es"),
        ("重排序模型 (reranker)", "zh"),
        ("これは重排序です", "ja"),
        ("재순위 모델", "ko"),
        ("Розы в саду красные", "ru"),
        ("ภาษาไทย", "th"),
        ("x = 42", ""),
        ("", ""),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("query", "language"),
    [
        ("How do I backflush my espresso machine?", "en"),  # "do" and "i" are words of Polish too
        ("Set a specific value of a setting", "en"),
        ("in what year did Pierre de Fermat die", "en"),
        ("python list sort", ""),
        ("Wie lange kochen Bohnen", "de"),
        ("¿Cuántos años tiene el puente?", "es"),
        ("où se trouve le pont", "fr"),
        ("Köprü nasıl yapılır", "tr"),
        ("Pourquoi", "fr"),
        ("长江有多长", "zh"),
    ],
)
def test_the_language_of_a_question(query: str, language: str) -> None:
    assert asked_language(query) == language


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("zh", "zh"),
        ("zh_Hant", "zh"),
        ("Chinese", "zh"),
        ("中文", "zh"),
        ("zho-CN", "zh"),
        ("GERMAN", "de"),
        ("deutsch", "de"),
        ("deu", "de"),
        ("Franc\u0327ais", "fr"),
        ("tiếng việt", "vi"),
        ("la", "la"),
    ],
)
def test_a_language_by_its_names(name: str, code: str) -> None:
    assert language_code(name) == checked_language(name) == code


def test_every_language_that_is_told_has_a_name() -> None:
    assert set(LANGUAGE_NAMES) == {*COMMON_WORDS, *"zh ja ko ru ar hi th el he bn ta te ka hy".split()}


@pytest.mark.parametrize("name", ["Klingon", "", "  ", "in English"])
def test_what_names_no_language_is_refused_with_those_that_do(name: str) -> None:
    assert language_code(name) == name
    with pytest.raises(ValueError, match=f"language is '{name}'; give its code of ISO 639-1.*Arabic, .*Vietnamese"):
        checked_language(name)


def test_a_list_is_elsewhere_by_its_question_or_by_most_passages() -> None:
    german, english = "der Fluss ist nicht kalt", "the river is cold"
    assert is_elsewhere("Wie lange kochen Bohnen", [english], ["en"])
    assert is_elsewhere("bridge", [german, german, english], ["en"])
    assert not is_elsewhere("how long", [german, english], ["en"])
    assert not is_elsewhere("bridge", ["", "x = 42"], ["en"])
    assert not is_elsewhere("Wie lange kochen Bohnen", [german], None)
