"""Words of many scripts; expected ones are written by hand."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondpass.retrieval.words import _marked_words, indexed_terms, terms, words
from secondpass.text import han


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Quick-brown fox, 3.14!", ["the", "quick", "brown", "fox", "3", "14"]),
        ("snake_case naïve Straße", ["snake", "case", "naïve", "strasse"]),
        ("什么是重排序?", ["什么", "么是", "是重", "重排", "排序"]),
        ("用BM25检索", ["用", "bm25", "检索"]),
        ("茶", ["茶"]),
        ("東京タワーです", ["東京", "京タ", "タワ", "ワー", "ーで", "です"]),
        ("ﾀﾜｰ ＡＢＣ", ["タワ", "ワー", "abc"]),
        ("학교에서 책", ["학교", "교에", "에서", "책"]),
        ("ไทย", ["ไท", "ทย"]),
        ("ที่นี่", ["ที่นี่"]),  # two characters with their marks are one pair
        ("किताब पढ़ो", ["किताब", "पढ़ो"]),
        ("كِتَابٌ أحمد", ["كتاب", "احمد"]),
        ("Ελλάδα Москва", ["ελλάδα", "москва"]),
        ("Kranken\u00adhaus", ["krankenhaus"]),
        ("get\u200bUser 重\u200b排\ufeff序", ["getuser", "重排", "排序"]),
        ("葛\U000e0100城市 葛\ufe00城", ["葛城", "城市", "葛城"]),  # forms of one character
        ("... —— 。", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_forms_of_one_word_are_equal() -> None:
    assert words("é") == words("e\u0301")
    assert words("が") == words("か\u3099")


MIXED = st.text("กขาิ हिमें 가나 ABCxyz123_ 東京ガが。・ العربيةٌٍ éß\u0301 .,-'😀")


@given(MIXED)
def test_texts_without_marks_are_read_as_those_with(text: str) -> None:
    plain = unicodedata.normalize("NFKC", text).casefold()
    if not any("\u0600" <= character <= "\u06ff" for character in plain):
        assert words(text) == _marked_words(plain.replace("_", " "))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("getUserName", ["get", "user", "name"]),
        ("HTTPServer max_length", ["http", "server"]),
        ("用 readJSON 读", ["read", "json"]),
        ("Paris NATO x1", []),
        ("花费￥1,280。$12,345,678.90", ["1280", "12345678"]),
        ("1,2,345 and 12,34, 3.141,592 or 1,2805", []),
    ],
)
def test_terms_are_words_parts_of_names_and_figures_without_commas(text: str, parts: list[str]) -> None:
    assert terms(text) == words(text) + parts


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("Die Tür ist größer", "die tur ist grosser"),
        ("cafe\u0301 crème, Łódź, smørrebrød, œuvre", "cafe creme lodz smorrebrod oeuvre"),
        ("ILIK ılık İstanbul", "ilik ilik istanbul"),
        ("tiếng Việt", "tieng viet"),
        ("ΕΛΛΆΔΑ Ελλάδα", "ελλαδα ΕΛΛΑΔΑ"),
        ("ёлка", "елка"),
        ("שָׁלוֹם", "שלום"),
        ("الكتاب والكتاب بالبيت للبيت", "كتاب كتاب بيت بيت"),
        ("کتاب ۲۲۴۴", "كتاب 2244"),
        ("मंज़िल २०२६ हाँ", "मंजिल 2026 हां"),
        ("電腦與資料庫裡的檔案，後來乾燥", "电脑与资料库里的档案，后来干燥"),
        ("國際機\n場", "国际机\n场"),
        ("\u2fba上連\uf99a", "马上连连"),  # a radical and a compatible form, as PDFs have them for characters
        ("\u2fba", "马"),
        ("\u2ec4湖的⻔票，\u2ed1城⺠宿", "西湖的门票，长城民宿"),  # radicals that NFKC leaves
    ],
)
def test_terms_are_without_what_writers_leave_out(written: str, asked: str) -> None:
    assert terms(written) == terms(asked)
    assert terms(asked)[: len(words(asked))] == words(asked)


def test_traditional_characters_have_one_simplified_form_each() -> None:
    lines = Path(han.__file__).with_name("han.txt").read_text("utf-8").splitlines()
    traditional = [each for line in lines for each in line[1:]]
    assert len(traditional) == len(set(traditional)) == 2815
    assert not set(traditional) & {line[0] for line in lines}
    assert {len(form) for form in han._forms().values()} == {1}  # so that a place in a text stays the same


@pytest.mark.parametrize(
    ("text", "across"),
    [
        ("什么是重排\n序", ["排序"]),
        ("什么是重排 \r\n\t序", ["排序"]),
        ("茶\n酒\n水", ["茶酒", "酒水"]),
        ("重排。\n序", []),
        ("重排\n\n序", []),
        ("重排\n　序", []),  # as a paragraph begins
        ("학\n교 the\ntap", []),
    ],
)
def test_a_word_of_chinese_or_japanese_may_go_on_in_the_next_line(text: str, across: list[str]) -> None:
    assert terms(text) == words(text) + across


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("记得带伞。喝茶", ["伞", "茶"]),
        ("帶傘", ["伞"]),
        ("伞 tea 用Docker", []),
        ("お茶を飲む。日本", ["本"]),
        ("책을 읽다", []),
    ],
)
def test_a_chinese_character_is_a_term_where_no_pair_begins_with_it(text: str, last: list[str]) -> None:
    assert indexed_terms(text) == terms(text) + last


@pytest.mark.parametrize("text", ["ال", "ولا", "سالم", "йод", "がガ", "ไทย", "किताब", "학교"])
def test_terms_keep_what_tells_words_apart(text: str) -> None:
    assert terms(text) == words(text)
