"""Chunks are slices of the text along its structure, and together they are all of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondpass.search.chunking import MAX_BYTES, SECTIONS, chunks, lines_of, sentences

TEXTS = st.text("ab #`~\n.-*|=_ 漢。é\u0301:def class(){}1", max_size=400)


@given(TEXTS, st.sampled_from(sorted(SECTIONS)), st.integers(8, 60))
def test_chunks_are_all_of_the_text_once_and_small(text: str, kind: str, max_bytes: int) -> None:
    pieces = chunks(text, kind, max_bytes=max_bytes)
    covered = [at for piece in pieces for at in range(piece.start, piece.stop)]
    assert covered == sorted(set(covered))
    assert not "".join(text[at] for at in range(len(text)) if at not in set(covered)).strip()
    for piece in pieces:
        assert len(text[piece.start : piece.stop].encode()) <= max_bytes


def test_markdown_is_cut_at_its_headings() -> None:
    text = "# Guide\n\nIntro.\n\n## Install\n\nRun it.\n\n```\n# no heading\n```\n\nMore\n----\n\nText.\n"
    pieces = chunks(text, "markdown")
    assert [(piece.heading("Guide"), text[piece.start : piece.stop].splitlines()[-1]) for piece in pieces] == [
        ("Guide", "Intro."),
        ("Guide > Install", "```"),
        ("Guide > More", "Text."),
    ]
    assert [lines_of(text)(piece.start, piece.stop) for piece in pieces] == [(1, 3), (5, 11), (13, 16)]


def test_a_heading_without_text_goes_with_the_first_below_it() -> None:
    text = "# 指南\n\n安装\n----\n### Linux\n\nRun it.\n\n## Empty\n## More\n"
    pieces = chunks(text, "markdown")
    assert [(piece.trail, text[piece.start : piece.stop]) for piece in pieces] == [
        (("指南", "安装", "Linux"), "# 指南\n\n安装\n----\n### Linux\n\nRun it."),
        (("指南", "Empty"), "## Empty"),
        (("指南", "More"), "## More"),
    ]


def test_code_is_cut_at_its_definitions_with_their_comments() -> None:
    body = "    x = 1\n" * 60
    text = f"import os\n\n# Adds.\ndef add(a):\n{body}\n\nclass Shop:\n    def sell(self):\n{body}"
    pieces = chunks(text, "code")
    headings = [piece.heading("shop.py") for piece in pieces]
    assert headings == ["shop.py", "shop.py > add", "shop.py > Shop > sell"] or headings[1] == "shop.py > add"
    assert text[pieces[1].start : pieces[1].stop].startswith("# Adds.\ndef add")
    assert headings[-1] == "shop.py > Shop > sell"


def test_a_long_section_is_cut_between_paragraphs() -> None:
    paragraph = "word " * 90 + "end.\n"
    text = f"{paragraph}\n{paragraph}\n{paragraph}"
    pieces = chunks(text)
    assert [text[piece.start : piece.stop].count("end.") for piece in pieces] == [2, 1]


def test_a_line_without_blanks_is_cut_between_characters_and_not_before_marks() -> None:
    text = "e\u0301" * 3000
    for piece in chunks(text):
        assert text[piece.start] == "e"
        assert text[piece.stop - 1] == "\u0301"


def test_chinese_is_cut_at_its_sentences() -> None:
    text = "这是一个句子。" * 200
    pieces = chunks(text)
    assert len(pieces) > 3
    assert all(text[piece.stop - 1] == "。" for piece in pieces)
    assert all(len(text[piece.start : piece.stop].encode()) <= MAX_BYTES for piece in pieces)


def test_a_long_sentence_is_cut_at_its_commas() -> None:
    text = "第一，" + "这是一个分句，" * 200
    pieces = chunks(text)
    assert len(pieces) > 2
    assert all(text[piece.stop - 1] == "，" for piece in pieces)


def test_a_list_in_chinese_is_cut_at_its_items() -> None:
    text = "".join(f"{number}、先关上总阀再拆下手柄\n然后换上新的垫圈\n" for number in range(1, 60))
    pieces = chunks(text)
    assert len(pieces) > 2
    assert all(text[piece.start : piece.stop].split("、")[0].isdecimal() for piece in pieces)


@pytest.mark.parametrize("character", ["कि", "ที่", "👩\u200d👧"])
def test_what_is_seen_as_one_character_is_not_cut(character: str) -> None:
    text = character * 900
    cuts = [piece.start for piece in chunks(text)]
    assert len(cuts) > 2
    assert all(at % len(character) == 0 for at in cuts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two!  Three", ["One.", "Two!", "Three"]),
        ("第一句。第二句", ["第一句。", "第二句"]),
        ("他说：“好。”走了！？真的。Python 好", ["他说：“好。”", "走了！？", "真的。", "Python 好"]),
        ("「はい。」と言った。（終わり。）次", ["「はい。」", "と言った。", "（終わり。）", "次"]),
        ("هل هذا صحيح؟ نعم. لا", ["هل هذا صحيح؟", "نعم.", "لا"]),
        ("चाबी दराज में है। सही है? हाँ", ["चाबी दराज में है।", "सही है?", "हाँ"]),
        ('„Ja.“ Er ging. (Gut.) He said "no." So?', ["„Ja.“", "Er ging.", "(Gut.)", 'He said "no."', "So?"]),
        ("Intro:\n- first\n- second", ["Intro:", "- first", "- second"]),
        (
            "步骤：\n1、关总阀\n二、拆手柄\n  （3）换垫圈\n⑤装回",
            ["步骤：", "1、关总阀", "二、拆手柄", "（3）换垫圈", "⑤装回"],
        ),
        ("手順\n・元栓を閉める\n・外す", ["手順", "・元栓を閉める", "・外す"]),
        ("一行が\n続く", ["一行が\n続く"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert [text[start:stop] for start, stop in sentences(text)] == expected
