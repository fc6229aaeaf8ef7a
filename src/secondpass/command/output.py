"""Results on a terminal as tables, elsewhere as tab-separated lines; progress where people watch."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from secondpass.types import Hit, Info, Progress, Ranking

BAR_WIDTH = 11
MAX_SOURCE_WIDTH = 28
MIN_PASSAGE_WIDTH = 16  # narrower, it stands below the rest
MIN_SOURCE_WIDTH = 8
LINES_PER_HIT, LINES_WHEN_NARROW = 2, 4
EXTRA_WIDTHS = {"tokens": 6, "cut": 4, "span": 11}
Range = tuple[int, int]  # of characters
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


@contextmanager
def watched(what: str) -> Iterator[Progress | None]:
    """A bar on standard error that is told of (done, all) while it is entered; None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True, refresh_per_second=5) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def tab_separated(rows: Iterable[Sequence[object]]) -> None:
    """One row a line; backslash, tab and line ends inside of a value are written \\\\, \\t, \\n and \\r."""
    for row in rows:
        sys.stdout.write("\t".join(str(value).translate(_ESCAPES) for value in row) + "\n")


def named_values(rows: Sequence[tuple[str, str]]) -> None:
    """A name and a value a line."""
    if not sys.stdout.isatty():
        tab_separated(rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for name, value in rows:
        table.add_row(Text(name, style="dim"), Text(value))
    Console().print(table)


def counted(number: int, noun: str) -> str:
    """The number with its noun, which takes an s where they are several."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def as_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def text_of(hit: Hit, fields: Sequence[str]) -> str:
    """What was ranked of a document, as people read it."""
    if not fields:
        return hit.document.text
    return " ".join(str(hit.document[name]) for name in fields if name == "text" or name in hit.document.fields)


def hit_row(hit: Hit, source: str, fields: Sequence[str]) -> list[object]:
    """rank, probability, score, source, text; when explained tokens and cut tokens; the span of a window that won."""
    row: list[object] = [hit.rank, f"{hit.probability:.6f}", f"{hit.score:.6f}", source, text_of(hit, fields)]
    if hit.parts is not None:
        return [*row, *_explained(hit)]
    return row if hit.span is None else [*row, _explained(hit)[-1]]


def hit_object(hit: Hit, source: str) -> dict[str, Any]:
    return {
        "index": hit.index,
        "rank": hit.rank,
        "score": hit.score if hit.is_scored else None,
        "probability": hit.probability if hit.is_scored else None,
        "text": hit.document.text,
        "source": source,
        "fields": {name: value for name, value in hit.document.fields.items() if name != "text"},
        "span": None if hit.span is None else list(hit.span),
        "parts": None if hit.parts is None else dict(hit.parts),
    }


def ranking_table(
    ranking: Ranking, sources: Sequence[str], fields: Sequence[str], matches: Mapping[int, Range]
) -> None:
    """Two lines per hit at most: rank, bar, probability, how the passage begins, source. On a narrow terminal the
    passage stands below the others.

    matches: by a hit's index the part of its text that is shown first, and marked.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    console = Console()
    extra = _extra(ranking)
    longest_source = max((cell_len(_end_of(sources[hit.index])) for hit in ranking), default=0)
    others = 2 + BAR_WIDTH + 5 + max(6, longest_source) + 4 * 2 + sum(EXTRA_WIDTHS[name] + 2 for name in extra)
    is_narrow = console.width - others < MIN_PASSAGE_WIDTH
    width = console.width - 1 if is_narrow else console.width - others
    area = (width, LINES_WHEN_NARROW if is_narrow else LINES_PER_HIT)
    excerpts = [_excerpt(console, hit, fields, matches.get(hit.index), area) for hit in ranking]
    if is_narrow:
        _print_stacked(console, ranking, sources, excerpts)
        return
    table = _empty_table(extra, width)
    for hit, excerpt in zip(ranking, excerpts, strict=True):
        figures = map(str, _explained(hit)[: len(extra)])
        table.add_row(*_cells(hit), excerpt, *figures, Text(_end_of(sources[hit.index]), style="dim"))
    console.print(table)


def _extra(ranking: Ranking) -> tuple[str, ...]:
    """The columns that are there when it is explained."""
    if not any(hit.parts is not None for hit in ranking):
        return ()
    return ("tokens", "cut", "span")[: 2 + any(hit.span is not None for hit in ranking)]


def _cells(hit: Hit) -> tuple[str, Bar, str]:
    """Rank, bar and probability."""
    from rich.bar import Bar

    bar = Bar(1, 0, hit.probability if hit.is_scored else 0, width=BAR_WIDTH, color="green")
    return str(hit.rank), bar, f"{hit.probability:.3f}" if hit.is_scored else "-"


def _empty_table(extra: Sequence[str], width: int) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("", justify="right", style="dim", no_wrap=True, width=2)
    table.add_column("probability", no_wrap=True, width=BAR_WIDTH)
    table.add_column("", justify="right", no_wrap=True, width=5)
    table.add_column("passage", no_wrap=True, width=width)
    for name in extra:
        table.add_column(name, justify="right", no_wrap=True, width=EXTRA_WIDTHS[name])
    table.add_column("source", no_wrap=True)
    return table


def _print_stacked(console: Console, ranking: Ranking, sources: Sequence[str], excerpts: Sequence[Text]) -> None:
    """For each hit a line with its figures, and the passage below."""
    from rich.table import Table
    from rich.text import Text

    room = console.width - 2 - BAR_WIDTH - 5 - 3
    for hit, excerpt in zip(ranking, excerpts, strict=True):
        rank, bar, probability = _cells(hit)
        line = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
        line.add_column(style="dim", no_wrap=True, width=2)
        has_bar = room >= MIN_SOURCE_WIDTH
        source = Text(_end_of(sources[hit.index], room if has_bar else max(1, room + BAR_WIDTH + 1)), style="dim")
        line.add_row(rank, *([bar] if has_bar else []), probability, source)
        console.print(line)
        console.print(excerpt)


def _excerpt(console: Console, hit: Hit, fields: Sequence[str], match: Range | None, area: tuple[int, int]) -> Text:
    """The passage from the match on, as far as it fits into area: so many cells, and lines."""
    from rich.text import Text

    text = text_of(hit, fields)
    heading = str(hit.document.fields.get("heading", ""))
    width, num_lines = area
    most = width * num_lines * 4  # of characters; white space shrinks
    start = match[0] if match is not None else hit.span[0] if hit.span is not None and not fields else 0
    if start:
        shown = Text("… " + _printable(text[start : start + most]))
    else:
        text = text.replace(f"{heading}\n", f"{heading} · ", 1) if heading and text.startswith(heading) else text
        shown = Text(_printable(text[:most]))
    if match is not None:
        shown.stylize("bold", 2 if start else 0, (2 if start else 0) + len(_printable(text[match[0] : match[1]])))
    lines = shown.wrap(console, width, overflow="fold")
    kept = lines[:num_lines]
    for line in kept:
        line.rstrip()
    if len(lines) > num_lines:
        kept[-1].truncate(width - 1)
        kept[-1].rstrip()
        kept[-1].append("…")
    return Text("\n").join(kept)


def _end_of(source: str, width: int = MAX_SOURCE_WIDTH) -> str:
    """The source, of a long one its end, where the file's name and the line are."""
    from rich.cells import cell_len

    source = _printable(source)
    if cell_len(source) <= width:
        return source
    end = source[-width:]
    while cell_len(end) >= width:
        end = end[1:]
    return f"…{end}"


def _printable(text: str) -> str:
    """One line, without characters that would steer the terminal."""
    line = " ".join(text.split())
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in line)


def _explained(hit: Hit) -> list[object]:
    parts = hit.parts or {}
    cut = int(parts.get("query_tokens_cut", 0)) + int(parts.get("passage_tokens_cut", 0))
    return [parts.get("tokens", ""), cut, "" if hit.span is None else f"{hit.span[0]}-{hit.span[1]}"]


def usage_line(ranking: Ranking, info: Info) -> str:
    """What the ranking cost and what it ran on, in one line."""
    usage = ranking.usage
    return (
        f"{usage.rows} rows, {usage.tokens} tokens, {usage.truncated} truncated at {info.max_length}; "
        f"tokenised in {usage.tokenize_seconds:.3f} s, {usage.seconds:.3f} s in all; "
        f"{info.model} on {info.engine}, {info.device}, {info.dtype}: {info.reason}"
    )


def models_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Two columns, so that a narrow terminal has room: what a model is, and what it is for."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for row in rows:
        length = f"{row['max_length']} tokens" if row["max_length"] else ""
        what = Text(row["name"], style="bold")
        what.append("\n" + _listed(row["family"], row["parameters"], length), style="not bold dim")
        use = Text(row["use"])
        use.append("\n" + _listed(row["loads_as"], row["languages"], row["licence"]), style="dim")
        if row["cached"]:
            use.append(f"\nhere: {row['cached']}", style="green")
        table.add_row(what, use)
    Console().print(table)


def _listed(*values: str) -> str:
    return ", ".join(value for value in values if value)
