"""Texts to chunks along their structure: headings, definitions, paragraphs, sentences; each with its place.

A chunk is a slice of the text, so that its characters and lines can be pointed at. It has at most MAX_BYTES of UTF-8,
some 200 to 300 tokens in any script: less than the reranker reads at once, so that thirty are read in well under a
second. Where a section is longer it is cut at the best break among those that fill it at least half: fences and blank
lines before list items, before sentences.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from secondpass.data.sections import SENTENCE_END, between

MAX_BYTES = 1000
MAX_HEADING = 240  # characters; a page can have a paragraph as its heading
JOINT = " > "  # between the headings of a trail
_FENCE = re.compile(r"[ \t]*(```+|~~~+)")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(\S.*?)(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
# 1、 一、 （1） (一) ① ・ and the like: no blank follows them.
_EAST_ASIAN_ITEM = (
    r"[\d一二三四五六七八九十]{1,3}[、．]|（\d{1,3}）|[（(][一二三四五六七八九十]{1,3}[）)]|[①-⑳•・●■◆]"
)
_LIST_ITEM = re.compile(rf"[ \t\u3000]*(?:(?:[-*+]|\d+[.)])[ \t]|{_EAST_ASIAN_ITEM})")
_LINE_END = re.compile(rf"\n(?=\s*(?:\n|[-*+#|>]|\d+[.)]|{_EAST_ASIAN_ITEM}))")
_RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$")
_DEFINITION = re.compile(
    r"([ \t]*)(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|pub(?:\(\w+\))?|"
    r"unsafe|inline|override|open|data|sealed)[ \t]+)*"
    r"(?:def|class|func|function\*?|fn|struct|interface|trait|impl|enum|module|namespace|object|record)[ \t]+"
    r"(?:\([^)]*\)[ \t]*)?([\w$.]+(?:::[\w$]+)*)"
)
_BLANKS = (" ", "\u3000", "，", "、", ",")  # where a sentence that is too long is cut, the first that there is
# How good it is to cut before a line.
FENCE, PARAGRAPH, ITEM, LINE, SENTENCE, CUT = 80, 60, 20, 5, 3, 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A slice [start, stop) of the text under a trail of headings, outermost first."""

    start: int
    stop: int
    trail: tuple[str, ...]

    def heading(self, title: str) -> str:
        """The title of the text and the headings, without repeating the one that is the title."""
        names = [name for name in (title, *self.trail) if name]
        unique = [name for at, name in enumerate(names) if at == 0 or name != names[at - 1]]
        return JOINT.join(unique)[:MAX_HEADING]


@dataclass(frozen=True, slots=True)
class Unit:
    """A line or a part of a long one: its range, its bytes, and how good it is to cut before it."""

    start: int
    stop: int
    size: int
    score: int


def chunks(text: str, kind: str = "plain", *, max_bytes: int = MAX_BYTES) -> list[Piece]:
    """The text in pieces in their order; kind is one of SECTIONS. Blank pieces are left out."""
    found: list[Piece] = []
    for section in SECTIONS[kind](text):
        for cuts in _packed(list(_units(text, section, kind, max_bytes)), max_bytes):
            found += [Piece(start, stop, section.trail) for start, stop in between(text, cuts)]
    return found


def sentences(text: str) -> list[tuple[int, int]]:
    """Ranges of the sentences and lines of a text, without the blanks around them."""
    ends = {found.end() for pattern in (SENTENCE_END, _LINE_END) for found in pattern.finditer(text)}
    return between(text, [0, *sorted({*ends, len(text)})])


def lines_of(text: str) -> Callable[[int, int], tuple[int, int]]:
    """A function from a range of characters to its first and last line, counted from 1."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    return lambda start, stop: (bisect_right(starts, start), bisect_right(starts, max(start, stop - 1)))


def _plain(text: str) -> list[Piece]:
    return [Piece(0, len(text), ())]


def _markdown(text: str) -> list[Piece]:
    """A piece for what stands under each heading; one without text of its own goes with the first below it."""
    found: list[Piece] = []
    trail: dict[int, str] = {}
    start, after, is_fenced, before = 0, 0, "", (0, "")
    for at, line in _lines(text):
        mark = _FENCE.match(line)
        if mark:
            is_fenced = "" if is_fenced and mark[1].startswith(is_fenced) else is_fenced or mark[1]
        level, title, begin = (0, "", at) if is_fenced or mark else _heading(line, at, before)
        if level:
            if level <= max(trail, default=level) or text[after:begin].strip():
                found.append(Piece(start, begin, _trail(trail)))
                start = begin
            trail = {n: name for n, name in trail.items() if n < level} | {level: title}
            after = at + len(line)
        before = (at, line)
    return [*found, Piece(start, len(text), _trail(trail))]


def _heading(line: str, at: int, before: tuple[int, str]) -> tuple[int, str, int]:
    """(level, title, where it begins) of a heading that ends with this line; level 0 for none."""
    found = _HEADING.match(line)
    if found:
        return len(found[1]), found[2].strip(), at
    under, above = _UNDERLINE.match(line), before[1].strip()
    if under and above and not above.startswith(("#", "|", "-", "*", ">")) and len(above) <= MAX_HEADING:
        return (1 if under[1][0] == "=" else 2), above, before[0]
    return 0, "", at


def _code(text: str) -> list[Piece]:
    """A piece for each definition; small neighbours within one outer definition are joined."""
    found: list[Piece] = []
    trail: dict[int, str] = {}
    start = 0
    for at, line in _lines(text):
        definition = _DEFINITION.match(line)
        if definition:
            indent = len(definition[1].expandtabs(4))
            begin = _with_comment(text, at, start)
            found.append(Piece(start, begin, _trail(trail)))
            trail = {n: name for n, name in trail.items() if n < indent} | {indent: definition[2]}
            start = begin
    return _joined([*found, Piece(start, len(text), _trail(trail))])


def _with_comment(text: str, at: int, least: int) -> int:
    """Where the comments and decorators right above a definition begin."""
    while at > least:
        above = text.rfind("\n", least, at - 1) + 1
        line = text[max(above, least) : at].strip()
        if not line.startswith(("#", "//", "/*", "*", "@", "///", "--", '"""')) or above < least:
            return at
        if above == 0 or above >= at:
            return max(above, least)
        at = above
    return at


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if last and last.trail[:1] == piece.trail[:1] and piece.stop - last.start <= MAX_BYTES // 2:
            found[-1] = Piece(last.start, piece.stop, last.trail)
        else:
            found.append(piece)
    return found


SECTIONS: Mapping[str, Callable[[str], list[Piece]]] = {"plain": _plain, "markdown": _markdown, "code": _code}


def _trail(trail: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(name for _, name in sorted(trail.items()))


def _lines(text: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, str]]:
    """Lines with their ends, and where each begins."""
    stop = len(text) if stop is None else stop
    while start < stop:
        end = text.find("\n", start, stop) + 1 or stop
        yield start, text[start:end]
        start = end


def _units(text: str, section: Piece, kind: str, max_bytes: int) -> Iterator[Unit]:
    """The lines of a section, long ones in parts."""
    fence, is_blank = "", True
    for at, line in _lines(text, section.start, section.stop):
        mark = _FENCE.match(line) if kind == "markdown" else None
        score = LINE
        if mark and not fence:
            score = FENCE
        elif fence:
            score = CUT
        elif is_blank:
            score = PARAGRAPH
        elif kind != "code" and (_LIST_ITEM.match(line) or _RULE.match(line)):
            score = ITEM
        if mark:
            fence = "" if fence and mark[1].startswith(fence) else fence or mark[1]
        is_blank = not line.strip()
        size = len(line.encode("utf-8", "surrogatepass"))
        if size <= max_bytes:
            yield Unit(at, at + len(line), size, score)
        else:
            yield from _parts(line, at, max_bytes, score)


def _parts(line: str, at: int, max_bytes: int, score: int) -> Iterator[Unit]:
    """The sentences of a long line; what is longer still, at blanks or commas, else between any two characters."""
    ends = [*(match.end() for match in SENTENCE_END.finditer(line)), len(line)]
    begins, start = set(ends), 0
    for stop in ends:
        while start < stop:
            end = min(stop, start + max_bytes)
            size = len(line[start:end].encode("utf-8", "surrogatepass"))
            if size > max_bytes:  # some 3 bytes a character in most scripts that are not ASCII
                end = start + max(1, max_bytes // 4)
            if end < stop:
                blanks = (line.rfind(each, start + (end - start) // 2, end) + 1 for each in _BLANKS)
                end = next(filter(None, blanks), 0) or _before_mark(line, start, end)
            size = len(line[start:end].encode("utf-8", "surrogatepass"))
            yield Unit(at + start, at + end, size, score if start == 0 else SENTENCE if start in begins else CUT)
            start = end


def _before_mark(line: str, start: int, end: int) -> int:
    """An end that parts no letter from its marks, and no pictograph that is joined of several."""
    at = end
    while at > start + 1 and (unicodedata.category(line[at]).startswith("M") or "\u200d" in line[at - 1 : at + 1]):
        at -= 1
    return at if at > start + 1 else end


def _packed(units: Sequence[Unit], max_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of neighbouring units of at most max_bytes, each cut at its best break."""
    first, size = 0, 0
    for at, unit in enumerate(units):
        while size + unit.size > max_bytes and at > first:
            cut = _best_cut(units, first, at, max_bytes)
            yield units[first].start, units[cut - 1].stop
            first, size = cut, sum(each.size for each in units[cut:at])
        size += unit.size
    if units:
        yield units[first].start, units[-1].stop


def _best_cut(units: Sequence[Unit], first: int, at: int, max_bytes: int) -> int:
    """The index of the unit to cut before: among those that leave at least half a chunk, the best, and then the last.

    Breaks far from the end count less, as in qmd: score * (1 - 0.7 * (distance / half)^2).
    """
    filled, best, cut = 0, -1.0, at
    total = sum(unit.size for unit in units[first:at])
    for index in range(first + 1, at + 1):
        filled += units[index - 1].size
        distance = (total - filled) / (max_bytes / 2)
        worth = units[index].score * (1 - 0.7 * distance * distance)
        if distance <= 1 and worth >= best:
            best, cut = worth, index
    return cut
