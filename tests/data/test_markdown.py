"""Texts cut into passages, and where each begins."""

from __future__ import annotations

from secondpass.data import markdown as blocks

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


def test_lines_leave_out_blank_ones() -> None:
    assert blocks.lines("a\n\n  b \n") == [blocks.Block(1, "a"), blocks.Block(3, "b")]


def test_automatic_takes_paragraphs_only_where_blank_lines_part_them() -> None:
    assert blocks.automatic("\na\nb\n\n") == [blocks.Block(2, "a"), blocks.Block(3, "b")]
    assert blocks.automatic("a\nb\n\n\nc\n") == [blocks.Block(1, "a\nb"), blocks.Block(5, "c")]


def test_whole_begins_where_the_text_does() -> None:
    assert blocks.whole("\n\n a\n\nb\n") == [blocks.Block(3, "a\n\nb")]
    assert blocks.whole(" \n") == []


def test_markdown_keeps_headings_fences_and_lead_ins() -> None:
    found = [(block.line, block.text) for block in blocks.markdown(PAGE)]
    assert found == [
        (6, "Page\nUnder the title."),
        (14, "Taps\nFirst line\nsecond line."),
        (17, "Taps\nDo this:\n\n- one\n- two"),
        (22, "Taps\n```sh\n# no heading\n\necho still inside\n```"),
        (30, "Next part\nText."),
        (33, "Next part\nEnd."),
    ]


def test_markdown_without_headings_is_paragraphs() -> None:
    assert blocks.markdown("a\n\nb") == [blocks.Block(1, "a"), blocks.Block(3, "b")]


def test_an_open_fence_reaches_to_the_end() -> None:
    assert [block.text for block in blocks.markdown("~~~\na\n\n```\n\nb")] == ["~~~\na\n\n```\n\nb"]


def test_nested_headings_are_a_trail_without_the_title() -> None:
    found = blocks.markdown("# Book\n## Water\n### Taps\nx\n## Heat\ny")
    assert [block.heading for block in found] == ["Water > Taps", "Heat"]
