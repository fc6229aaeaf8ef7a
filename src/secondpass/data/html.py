"""HTML to sections: what people read of a page, under the trail of its headings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser

from secondpass.data.sections import Section, Trail, under_headings

HEADINGS = {f"h{level}": level for level in range(1, 7)}
# A section begins and ends with these; in a list they only begin a line.
BLOCKS = frozenset(
    "address article aside blockquote body center dd details dialog div dl dt fieldset figcaption figure footer form "
    "header hr main nav ol p pre search section summary table tr ul".split()
)
LISTS = ("ul", "ol")
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_ITEM = "\n- "
_UNSEEN = re.compile("[\u00ad\u200b\u2060]")  # where a line may end, or may not: soft hyphens and the like
# Between Chinese or Japanese characters the end of a line of the source is no blank, as in CSS Text 3, 4.1.2.
_WIDE = "[\u3001-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff01-\uff60]"
_LINE_END = re.compile(f"(?<={_WIDE})[ \t\r]*\n[ \t\r\n]*(?={_WIDE})")
READINGS = ("rt", "rp")  # over characters of Japanese; their ends may be left out
UNREAD = ("script", "style", "template", "noscript", "title", "svg")


def sections(page: str) -> list[Section]:
    """The sections of a page: paragraphs, whole lists, rows of tables. Markup, scripts and styles are dropped."""
    reader = _Reader()
    reader.feed(_closed(page))
    reader.close()
    reader.end_section()
    return under_headings(reader.parts)


def text(markup: str) -> str:
    """What people read of a piece of HTML."""
    return "\n".join(section.text for section in sections(markup))


def _closed(page: str) -> str:
    """Without comments, and text where tags never end: the parser would look for their end again and again."""
    page = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), page)
    end = page.rfind(">") + 1
    return page[:end] + page[end:].replace("<", "&lt;")


class _Reader(HTMLParser):
    """Collects parts as (line, trail, text)."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[tuple[int, str, str]] = []
        self._trail = Trail()
        self._pieces: list[str] = []
        self._line = 0
        self._unread: list[str] = []
        self._num_lists = 0
        self._is_pre = self._is_reading = False

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self._is_reading = tag in READINGS or (self._is_reading and tag not in BLOCKS)
        if tag in UNREAD:
            self._unread.append(tag)
        elif tag in HEADINGS or (tag in BLOCKS and not self._num_lists):
            self.end_section()
        elif tag in ("br", *BLOCKS):
            self._pieces += [] if self._pieces[-1:] == [_ITEM] else ["\n"]
        elif tag == "li":
            self._pieces.append(_ITEM)
        elif tag in ("td", "th") and "".join(self._pieces).strip():
            self._pieces.append(" | ")
        self._num_lists += tag in LISTS
        self._is_pre = self._is_pre or tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        self._is_reading = self._is_reading and tag not in ("ruby", *READINGS, *BLOCKS)
        if tag in self._unread:
            del self._unread[self._unread.index(tag) :]
        self._num_lists -= tag in LISTS and self._num_lists > 0
        if tag in HEADINGS:
            self._trail.enter(HEADINGS[tag], " ".join(self._taken().split()))
        elif tag in BLOCKS and not self._num_lists:
            self.end_section()
        elif tag in BLOCKS:
            self._pieces.append("\n")
        self._is_pre = self._is_pre and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._unread or self._is_reading:
            return
        data = _UNSEEN.sub("", data)
        if not self._line and data.strip():
            self._line = self.getpos()[0] + data.count("\n", 0, len(data) - len(data.lstrip()))
        self._pieces.append(data if self._is_pre else re.sub(r"\s+", " ", _LINE_END.sub("", data)))

    def end_section(self) -> None:
        line, is_pre, text = self._line, self._is_pre, self._taken()
        if not is_pre:
            rows = (re.sub(" +", " ", row).strip() for row in text.split("\n"))
            text = "\n".join(row for row in rows if row not in ("", "-"))
        if text.strip():
            self.parts.append((line, str(self._trail), text.strip("\n") if is_pre else text))

    def _taken(self) -> str:
        text = "".join(self._pieces)
        self._pieces, self._line = [], 0
        return text
