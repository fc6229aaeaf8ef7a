"""What a file is read as: pages of text, decoded, with what is known of them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import unescape
from itertools import accumulate
from typing import Any

from secondpass.data.html import sections
from secondpass.errors import DataError
from secondpass.search.encodings import as_declared, guessed

MAX_UNZIPPED = 200_000_000  # bytes of what a container holds
_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_HEAD = 50_000  # characters in which a title is looked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A text that is cut into chunks: its kind (see chunking.SECTIONS), its title, and what is known of it.

    first_line is the line of the file where the text begins; of a text that was made from what the file has, places
    tells where its parts come from: (line of the text, line of the file), in order. created is in seconds since 1970.
    """

    text: str
    kind: str = "plain"
    title: str = ""
    created: float | None = None
    first_line: int = 1
    fields: Mapping[str, Any] = field(default_factory=dict)
    places: Sequence[tuple[int, int]] = ()

    def file_lines(self, first: int, last: int) -> tuple[int, int]:
        """First and last lines of the text as lines of the file."""
        if not self.places:
            return first + self.first_line - 1, last + self.first_line - 1
        begins = [max(0, bisect_right(self.places, line, key=lambda place: place[0]) - 1) for line in (first, last)]
        return self.places[begins[0]][1], self.places[begins[1]][1]


def decoded(data: bytes, name: str, declared: str = "") -> str:
    """Text of bytes, with \\n at the end of lines. Raises DataError for what is no text.

    declared: the encoding that they are said to be in, which counts where they can be read so.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", "replace")
    elif b"\0" in data[:8192]:
        raise DataError(f"{name}: is a binary file; text is needed")
    else:
        text = as_declared(data, declared) or guessed(data)
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def html_page(html: str, created: float | None = None) -> Page:
    """HTML as Markdown: what people read, under a heading line for each trail of headings."""
    title = _TITLE.search(html[:_HEAD])
    parts, above = list[tuple[str, int]](), ""
    for section in sections(html):
        shown = section.text.removeprefix(f"{section.heading}\n")
        if section.heading != above:
            above = section.heading
            shown = f"# {above}\n\n{shown}"
        parts.append((shown, section.line))
    return markdown_page(parts, "" if title is None else unescape(title[1]).strip(), created)


def markdown_page(parts: Sequence[tuple[str, int]], title: str, created: float | None = None) -> Page:
    """Markdown of parts (text, line of the file that it is from), with a blank line between two."""
    lines = accumulate((text.count("\n") + 2 for text, _ in parts), initial=1)
    places = list(zip(lines, (line for _, line in parts), strict=False))
    text = "\n\n".join(text for text, _ in parts)
    return Page(text=text, kind="markdown", title=title, created=created, places=places)
