"""Plain texts cut into sections, and where each begins."""

from __future__ import annotations

from secondpass.data import sections
from secondpass.data.sections import Section


def test_lines_leave_out_blank_ones() -> None:
    assert list(sections.lines("a\n\n  b \n")) == [Section(1, "a"), Section(3, "b")]


def test_automatic_takes_paragraphs_only_where_blank_lines_part_them() -> None:
    assert list(sections.automatic("\na\nb\n\n")) == [Section(2, "a"), Section(3, "b")]
    assert sections.automatic("a\nb\n\n\nc\n") == [Section(1, "a\nb"), Section(5, "c")]


def test_whole_begins_where_the_text_does() -> None:
    assert sections.whole("\n\n a\n\nb\n") == [Section(3, "a\n\nb")]
    assert sections.whole(" \n") == []
