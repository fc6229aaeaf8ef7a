"""Markdown to sections: paragraphs, lists, fences and tables under the trail of their headings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from secondpass.data.sections import Section, Trail, under_headings

if TYPE_CHECKING:
    from markdown_it.token import Token

PIECE_ROWS, MAX_ROWS = 1024, 8192  # parsed at once
LISTS = ("bullet_list_open", "ordered_list_open")
_FRONT_MATTER = re.compile(r"---[ \t]*\n((?:.*\n)*?)---[ \t]*(?:\n|$)")
_MARGIN = re.compile(r"^[^\s#\-\]})].*", re.MULTILINE)  # what is no item, no comment and no more of the line before
_KEY = re.compile(r"[^:]*:(?:\s|$)|[\w-]+:(?!//)")


def sections(page: str) -> list[Section]:
    """Sections under their headings; code fences and tight lists stay whole, loose lists are cut at their items.

    Front matter, comments, rules and definitions of links are dropped.
    """
    return under_headings(_parts(page.replace("\r\n", "\n").replace("\r", "\n")))  # as the parser counts rows


def front_matter(page: str) -> str:
    """The YAML that a page begins with, with the lines of dashes around it; "" where text stands between rules."""
    found = _FRONT_MATTER.match(page)
    if found is None:
        return ""
    lines = _MARGIN.findall(found[1])
    keys = sum(_KEY.match(line) is not None for line in lines)
    return found[0] if 2 * keys > len(lines) or not found[1].strip() else ""


def _parts(page: str) -> list[tuple[int, str, str]]:
    """(line, trail of headings, text) of each block; blocks without a blank line between them are one."""
    num_skipped = front_matter(page).count("\n")
    rows = page.split("\n")[num_skipped:]
    parts: list[tuple[int, str, str]] = []
    end = -1  # of the last part
    for start, trail, source, text in _blocks(rows):
        if start == end and parts[-1][1] == trail:
            line, _, above = parts.pop()
            parts.append((line, trail, f"{above}\n{text}"))
        else:
            parts.append((num_skipped + start + 1, trail, text))
        end = start + source.rstrip().count("\n") + 1
    return parts


def _blocks(rows: Sequence[str]) -> Iterator[tuple[int, str, str, str]]:
    """(first row, trail of headings, source, text) of each block that says something."""
    trail, level = Trail(), 0  # blocks of this level are sections: 1 in a loose list
    for start, tokens in _parsed(rows):
        for index, token in enumerate(tokens):
            if token.level == 0:
                level = int(token.type in LISTS and _is_loose(tokens, index))
            if token.level != level or token.map is None or token.type == "hr":
                continue
            first, end = start + token.map[0], start + token.map[1]
            source = "\n".join(rows[first:end])
            if token.type == "heading_open" and level == 0:
                trail.enter(int(token.tag[1]), " ".join(tokens[index + 1].content.split()))
            elif text := _text(token, source):
                yield first, str(trail), source, text


def _parsed(rows: Sequence[str]) -> Iterator[tuple[int, Sequence[Token]]]:
    """The page in pieces, each from the row where it starts, so that a long one does not fill the memory with tokens.

    A piece ends before its last block, which may go on behind it; a block longer than MAX_ROWS is cut. Tables are
    read as paragraphs, and what is inside of lines is left as it is written.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").disable("inline")
    start, size = 0, PIECE_ROWS
    while start < len(rows):
        tokens = parser.parse("\n".join(rows[start : start + size]))
        blocks = [(index, token.map[0]) for index, token in enumerate(tokens) if token.level == 0 and token.map]
        index, num_rows = blocks[-1] if blocks else (len(tokens), size)
        if start + size >= len(rows) or (num_rows == 0 and size >= MAX_ROWS):
            index, num_rows = len(tokens), size
        if num_rows:
            yield start, tokens[:index]
        start, size = start + num_rows, PIECE_ROWS if num_rows else 2 * size


def _is_loose(tokens: Sequence[Token], index: int) -> bool:
    """Whether blank lines lie between the items of the list that opens here: their paragraphs are not hidden then."""
    for at in range(index + 1, len(tokens)):
        if tokens[at].level == 0:
            break
        if tokens[at].type == "paragraph_open" and tokens[at].level == 2:
            return not tokens[at].hidden
    return False


def _text(token: Token, source: str) -> str:
    if token.type == "html_block":
        from secondpass.data import html

        return html.text(source)
    return source.rstrip() if token.type in ("fence", "code_block") else source.strip()
