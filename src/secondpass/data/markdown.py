"""Texts to passages: lines, paragraphs, and Markdown under its headings. Lines count from 1."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_FENCE = re.compile(r"\s*(```+|~~~+)")
_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})\s*$")
_COMMENT = re.compile(r"\s*<!--.*-->\s*$")
_RULE = re.compile(r" {0,3}([-*_])(?:\s*\1){2,}\s*$")


@dataclass(frozen=True, slots=True)
class Block:
    """A passage and the line where it begins. heading is the trail of headings above it, which text begins with."""

    line: int
    text: str
    heading: str = ""


def lines(text: str) -> list[Block]:
    """Each line that is not blank."""
    return [Block(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def paragraphs(text: str) -> list[Block]:
    """Runs of lines between blank ones."""
    rows = text.split("\n")
    return [Block(start, "\n".join(block).strip()) for start, block in _runs(rows, [False] * len(rows))]


def whole(text: str) -> list[Block]:
    """All of it as one passage, where there is any."""
    before = len(text) - len(text.lstrip())
    return [Block(text.count("\n", 0, before) + 1, text.strip())] if text.strip() else []


def automatic(text: str) -> list[Block]:
    """Paragraphs where blank lines lie between them, else lines."""
    found = paragraphs(text)
    return found if len(found) > 1 else lines(text)


def markdown(text: str) -> list[Block]:
    """Paragraphs under the trail of their headings; code fences stay whole, a lead-in stays with what it announces.

    The title of the page is in no trail but that of what stands right under it.
    """
    blocks: list[Block] = []
    for start, above, body in _bodies(text):
        last = blocks[-1] if blocks else None
        if last is not None and last.heading == above and (last.text.endswith(":") or body[0].isspace()):
            blocks[-1] = Block(last.line, f"{last.text}\n\n{body}", above)
        else:
            blocks.append(Block(start, f"{above}\n{body.strip()}" if above else body.strip(), above))
    return blocks


def _bodies(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, trail of headings, text) of each run of lines that is not a comment."""
    rows = _without_front_matter(text.split("\n"))
    fenced = _fenced(rows)
    _mark_headings(rows, fenced)
    trail: dict[int, str] = {}
    for start, run in _runs(rows, fenced):
        heading = None if fenced[start - 1] else _HEADING.fullmatch(run[0])
        body = "\n".join(run).rstrip()
        if heading:
            level = len(heading[1])
            trail = {n: title for n, title in trail.items() if n < level} | {level: heading[2]}
        elif not (body.lstrip().startswith("<!--") and body.endswith("-->")):
            titles = [title for level, title in trail.items() if title and (level > 1 or len(trail) == 1)]
            yield start, " > ".join(titles), body


def _runs(rows: Sequence[str], fenced: Sequence[bool]) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines, each with the number of its first; outside of fences blank lines and headings part them."""
    start = 1
    run: list[str] = []
    for number, (row, is_fenced) in enumerate(zip(rows, fenced, strict=True), 1):
        is_heading = not is_fenced and bool(_HEADING.fullmatch(row))
        if is_fenced or (row.strip() and not is_heading):
            start = start if run else number
            run.append(row)
            continue
        if run:
            yield start, run
        run = []
        if is_heading:
            yield number, [row]
    if run:
        yield start, run


def _fenced(rows: Sequence[str]) -> list[bool]:
    """Whether each line belongs to a code fence, its first and last line included."""
    mark = ""
    fenced = []
    for row in rows:
        found = _FENCE.match(row)
        fenced.append(bool(mark or found))
        if found and not mark:
            mark = found[1]
        elif found and found[1].startswith(mark) and not row.strip().strip(mark[0]):
            mark = ""
    return fenced


def _mark_headings(rows: list[str], fenced: Sequence[bool]) -> None:
    """Rewrite underlined headings as ones with #, rules and comments as blank lines, so that line numbers stay."""
    for place in range(len(rows)):
        if fenced[place]:
            continue
        above = rows[place - 1].strip() if place else ""
        is_alone = above and not fenced[place - 1] and (place < 2 or not rows[place - 2].strip())
        mark = _UNDERLINE.fullmatch(rows[place])
        if mark and is_alone and not above.startswith(("#", "|", "-", "*", ">")):
            rows[place - 1], rows[place] = f"{'#' if mark[1][0] == '=' else '##'} {above}", ""
        elif _RULE.fullmatch(rows[place]) or _COMMENT.fullmatch(rows[place]):
            rows[place] = ""


def _without_front_matter(rows: list[str]) -> list[str]:
    """The lines with YAML front matter blanked, so that line numbers stay."""
    if not rows or rows[0].rstrip() != "---" or "---" not in (row.rstrip() for row in rows[1:]):
        return rows
    end = next(place for place, row in enumerate(rows) if place and row.rstrip() == "---")
    return [""] * (end + 1) + rows[end + 1 :]
