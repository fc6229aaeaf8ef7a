"""Markdown cut into sections, and where each begins."""

from __future__ import annotations

from secondpass.data import markdown
from secondpass.data.sections import Section

PAGE = """\
---
title: left out
---
# Page

Under the title.

Second
======

## Taps

<!-- a remark -->
First line
second line.

Do this:

- one
- two

```sh
# no heading

echo still inside
```

Next part
---------
Text.
***
- - -
End.
"""


def test_markdown_keeps_headings_fences_and_lead_ins() -> None:
    found = [(block.line, block.text) for block in markdown.sections(PAGE)]
    assert found == [
        (6, "Page\nUnder the title."),
        (14, "Taps\nFirst line\nsecond line."),
        (17, "Taps\nDo this:\n\n- one\n- two"),
        (22, "Taps\n```sh\n# no heading\n\necho still inside\n```"),
        (30, "Next part\nText."),
        (33, "Next part\nEnd."),
    ]


def test_markdown_without_headings_is_paragraphs() -> None:
    assert markdown.sections("a\n\nb") == [Section(1, "a"), Section(3, "b")]


def test_an_open_fence_reaches_to_the_end() -> None:
    assert [block.text for block in markdown.sections("~~~\na\n\n```\n\nb")] == ["~~~\na\n\n```\n\nb"]


def test_nested_headings_are_a_trail_without_the_title() -> None:
    found = markdown.sections("# Book\n## Water\n### Taps\nx\n## Heat\ny")
    assert [block.heading for block in found] == ["Water > Taps", "Heat"]


def texts(page: str) -> list[str]:
    return [section.text for section in markdown.sections(page)]


def test_tight_lists_stay_whole_and_loose_ones_are_cut_at_their_items() -> None:
    assert texts("- a\n- b\n  c") == ["- a\n- b\n  c"]
    assert texts("- a\n\n- b\n\n  still b\n\n- c") == ["- a", "- b\n\n  still b", "- c"]


def test_what_no_blank_line_parts_stays_together() -> None:
    assert texts("so:\n- a\n- b") == ["so:\n- a\n- b"]
    assert texts("| a | b |\n|---|---|\n| 1 | 2 |\ntext") == ["| a | b |\n|---|---|\n| 1 | 2 |\ntext"]


def test_indented_code_stays_with_what_it_shows() -> None:
    assert texts("run it\n\n    make test\n\nthen") == ["run it\n\n    make test", "then"]


def test_markup_inside_is_dropped_and_inline_text_is_as_written() -> None:
    page = "<div>\n<b>bold</b> text\n</div>\n\n**strong** [link](x)\n\n[x]: http://example.com\n\n<!-- no\n\nword -->"
    assert texts(page) == ["bold text", "**strong** [link](x)"]


def test_a_heading_may_span_lines_and_end_in_hashes() -> None:
    found = markdown.sections("## Two ##\nx\n\nlong\nheading\n---\ny")
    assert [section.heading for section in found] == ["Two", "long heading"]
