"""What a file is read as: pages of text, decoded, with what is known of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import unescape
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

    first_line is the line of the file where the text begins. created is in seconds since 1970.
    """

    text: str
    kind: str = "plain"
    title: str = ""
    created: float | None = None
    first_line: int = 1
    fields: Mapping[str, Any] = field(default_factory=dict)


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
    parts, above = list[str](), ""
    for section in sections(html):
        if section.heading != above:
            above = section.heading
            parts.append(f"# {above}")
        parts.append(section.text.removeprefix(f"{above}\n"))
    found = "" if title is None else unescape(title[1]).strip()
    return Page(text="\n\n".join(parts), kind="markdown", title=found, created=created)
