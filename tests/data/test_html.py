"""HTML read as people see it."""

from __future__ import annotations

from secondpass.data import html
from secondpass.data.sections import Section

PAGE = """<!DOCTYPE html>
<html><head><title>Not read</title><style>p { color: red }</style>
<script>if (1 < 2) document.write("<p>no</p>")</script></head>
<body><h1>Taps</h1>
<p>Turn the water
off &amp; wait.</p>
<h2>Parts <em>needed</em></h2>
<p>Have these ready:</p><ul><li>a <b>washer</b></li><li><p>a wrench</p><ul><li>size 3</li></ul></li></ul>
<table><tr><th>part</th><th>price</th></tr><tr><td>washer</td><td>2&nbsp;EUR</td></tr></table>
<pre>  make
    test</pre>
<!-- hidden --><div>One<br>two<div>three</div></div>
</body></html>
"""


def test_sections_stand_under_their_headings() -> None:
    assert html.sections(PAGE) == [
        Section(5, "Taps\nTurn the water off & wait.", "Taps"),
        Section(8, "Parts needed\nHave these ready:\n\n- a washer\n- a wrench\n- size 3", "Parts needed"),
        Section(9, "Parts needed\npart | price", "Parts needed"),
        Section(9, "Parts needed\nwasher | 2 EUR\n\n  make\n    test", "Parts needed"),
        Section(12, "Parts needed\nOne\ntwo", "Parts needed"),
        Section(12, "Parts needed\nthree", "Parts needed"),
    ]


def test_broken_markup_loses_no_text() -> None:
    assert html.text("<p>a<p>b <b>c</i> <unknown>d</p></ul>e &nosuch; <") == "a\nb c d\ne &nosuch; <"


def test_text_outside_of_everything_is_read() -> None:
    assert html.text("only <i>text</i>") == "only text"
    assert html.sections("<script>never closed") == []


def test_readings_over_characters_part_no_word() -> None:
    assert html.text("<p><ruby>重<rp>(</rp><rt>じゅう</rt><rp>)</rp>要<rt>よう</ruby>な点<p>次") == "重要な点\n次"
    assert html.text("<ruby>重<rt>じゅう<p>次") == "重\n次"


def test_a_line_of_the_source_ends_without_a_blank_between_chinese_or_japanese_characters() -> None:
    page = "<p>什么是重排\n   序模型，\r\n东京\nタワー <b>English\n中文\nabc</b> 한국\n어 字\n\u3000段</p>"
    page += "<pre>重\n排</pre>"
    assert html.text(page) == "什么是重排序模型，东京タワー English 中文 abc 한국 어 字 段\n重\n排"


def test_where_a_line_may_end_is_not_seen() -> None:
    assert html.text("<p>Kran&shy;ken<wbr>haus, exam\u200bple, a&NoBreak;b") == "Krankenhaus, example, ab"
