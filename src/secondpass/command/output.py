"""Results on a terminal as tables, elsewhere as tab-separated lines; progress where people watch."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from secondpass.types import Hit, Info, Progress, Ranking

BAR_WIDTH = 11
MAX_SOURCE_WIDTH = 28
MIN_PASSAGE_WIDTH = 20
LINES_PER_HIT = 2
EXTRA_WIDTHS = {"tokens": 6, "cut": 4, "span": 11}
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


def as_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def text_of(hit: Hit, fields: Sequence[str]) -> str:
    """What was ranked of a document, as people read it."""
    if not fields:
        return hit.document.text
    return " ".join(str(hit.document[name]) for name in fields if name == "text" or name in hit.document.fields)


def hit_row(hit: Hit, source: str, fields: Sequence[str]) -> list[object]:
    """rank, probability, score, source, text; when explained also tokens, cut tokens and span."""
    row: list[object] = [hit.rank + 1, f"{hit.probability:.6f}", f"{hit.score:.6f}", source, text_of(hit, fields)]
    return row if hit.parts is None else [*row, *_explained(hit)]


def hit_object(hit: Hit, source: str) -> dict[str, Any]:
    return {
        "index": hit.index,
        "rank": hit.rank + 1,
        "score": hit.score if hit.is_scored else None,
        "probability": hit.probability if hit.is_scored else None,
        "text": hit.document.text,
        "source": source,
        "fields": {name: value for name, value in hit.document.fields.items() if name != "text"},
        "span": None if hit.span is None else list(hit.span),
        "parts": None if hit.parts is None else dict(hit.parts),
    }


def ranking_table(ranking: Ranking, sources: Sequence[str], fields: Sequence[str]) -> None:
    """Two lines per hit at most: rank, bar, probability, how the passage begins, source."""
    from rich.bar import Bar
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    console = Console()
    is_explained = any(hit.parts is not None for hit in ranking)
    has_spans = is_explained and any(hit.span is not None for hit in ranking)
    extra = ("tokens", "cut", "span")[: 2 + has_spans] if is_explained else ()
    table = _empty_table(extra)
    longest_source = max((cell_len(sources[hit.index]) for hit in ranking), default=0)
    figures_width = sum(EXTRA_WIDTHS[name] + 2 for name in extra)
    others = 2 + BAR_WIDTH + 5 + max(6, min(MAX_SOURCE_WIDTH, longest_source)) + 5 * 2 + figures_width
    width = max(MIN_PASSAGE_WIDTH, console.width - others)
    for hit in ranking:
        bar = Bar(1, 0, hit.probability if hit.is_scored else 0, width=BAR_WIDTH, color="green")
        figures = [str(value) for value in _explained(hit)[: len(extra)]]
        beginning = _beginning(console, _winning(hit, fields), width)
        source = Text(_end_of(_printable(sources[hit.index])))
        probability = f"{hit.probability:.3f}" if hit.is_scored else "-"
        table.add_row(str(hit.rank + 1), bar, probability, beginning, *figures, source)
    console.print(table)


def _empty_table(extra: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("", justify="right", style="dim", no_wrap=True, width=2)
    table.add_column("probability", no_wrap=True, width=BAR_WIDTH)
    table.add_column("", justify="right", no_wrap=True, width=5)
    table.add_column("passage", ratio=1)
    for name in extra:
        table.add_column(name, justify="right", no_wrap=True, width=EXTRA_WIDTHS[name])
    table.add_column("source", style="dim", overflow="ellipsis", no_wrap=True, max_width=MAX_SOURCE_WIDTH)
    return table


def _beginning(console: Console, text: str, width: int) -> Text:
    """The first lines of a text at this width, which counts wide characters twice."""
    from rich.text import Text

    shown = Text(_printable(text[: width * LINES_PER_HIT * 2]))
    lines = shown.wrap(console, width)
    if len(lines) <= LINES_PER_HIT:
        return shown
    kept = [line.plain.rstrip() for line in lines[:LINES_PER_HIT]]
    last = Text(kept[-1])
    last.truncate(width - 1)
    return Text("\n".join([*kept[:-1], last.plain.rstrip() + "…"]))


def _end_of(source: str) -> str:
    """The source, of a long one its end, where the file's name and the line are."""
    from rich.cells import cell_len

    end = source
    while cell_len(end) >= MAX_SOURCE_WIDTH:
        end = end[1:]
    return source if cell_len(source) <= MAX_SOURCE_WIDTH else f"…{end}"


def _winning(hit: Hit, fields: Sequence[str]) -> str:
    """The text, from the window on that won."""
    text = text_of(hit, fields)
    heading = str(hit.document.fields.get("heading", ""))
    if hit.span is not None and hit.span[0] and not fields:
        return text[hit.span[0] :]
    return text.replace(f"{heading}\n", f"{heading} · ", 1) if heading and text.startswith(heading) else text


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
