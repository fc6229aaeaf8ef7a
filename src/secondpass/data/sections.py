"""Texts to sections: lines, paragraphs, all of it; and the trail of headings that a page's sections stand under."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

# The end of a sentence, with the quotation marks and brackets that close after it, and the blanks behind.
SENTENCE_END = re.compile(r"[.!?…؟۔][\"'”’“»›)\]]*\s+|(?:[。！？；｡।॥]+[”’」』】》〉］｝〕）｣]*)+\s*")
_LINE_END = re.compile("\n")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a text, and the line where it begins, from 1. text begins with heading, the trail above it."""

    line: int
    text: str
    heading: str = ""


def lines(text: str) -> Iterator[Section]:
    """Each line that is not blank."""
    return (Section(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def paragraphs(text: str) -> list[Section]:
    """Runs of lines between blank ones."""
    found: list[Section] = []
    run: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.strip():
            run.append(line)
        elif run:
            found.append(Section(number - len(run), "\n".join(run).strip()))
            run = []
    return found


def whole(text: str) -> list[Section]:
    """All of it, where there is any."""
    before = len(text) - len(text.lstrip())
    return [Section(text.count("\n", 0, before) + 1, text.strip())] if text.strip() else []


def automatic(text: str) -> Iterable[Section]:
    """Paragraphs where blank lines lie between them, else lines."""
    found = paragraphs(text)
    return found if len(found) > 1 else lines(text)


def sentences(text: str, start: int, stop: int) -> list[tuple[int, int]]:
    """The ranges of characters of the sentences and lines of text[start:stop], without the blanks around them."""
    ends = {found.end() for pattern in (SENTENCE_END, _LINE_END) for found in pattern.finditer(text, start, stop)}
    return between(text, [start, *sorted(ends - {start, stop}), stop])


def between(text: str, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """The ranges from each cut to the next, without the blanks around them; those that are blank are left out."""
    found = []
    for start, stop in pairwise(cuts):
        body = text[start:stop]
        first, last = start + len(body) - len(body.lstrip()), stop - len(body) + len(body.rstrip())
        if first < last:
            found.append((first, last))
    return found


class Trail:
    """The headings above a part of a page. Its title is in no trail but that of what stands right under it."""

    def __init__(self) -> None:
        self._titles: dict[int, str] = {}

    def enter(self, level: int, title: str) -> None:
        self._titles = {above: name for above, name in self._titles.items() if above < level} | {level: title}

    def __str__(self) -> str:
        alone = len(self._titles) == 1
        return " > ".join(title for level, title in self._titles.items() if title and (level > 1 or alone))


def under_headings(parts: Iterable[tuple[int, str, str]]) -> list[Section]:
    """Sections of (line, trail, text); what is indented, and what a colon announces, stays with what is above it."""
    found: list[Section] = []
    for line, heading, text in parts:
        last = found[-1] if found else None
        if last is not None and last.heading == heading and (last.text.endswith(":") or text[0].isspace()):
            found[-1] = Section(last.line, f"{last.text}\n\n{text}", heading)
        else:
            text = text.strip()
            found.append(Section(line, f"{heading}\n{text}" if heading else text, heading))
    return found
