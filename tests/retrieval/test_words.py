"""Words of many scripts; expected ones are written by hand."""

from __future__ import annotations

import pytest

from secondpass.retrieval.words import words


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
        ("... —— 。", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_forms_of_one_word_are_equal() -> None:
    assert words("é") == words("e\u0301")
    assert words("が") == words("か\u3099")
