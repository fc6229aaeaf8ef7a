"""`secondpass search`: a question to an index, and the answers where they stand."""

from __future__ import annotations

import json as json_text
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from secondpass.command import output
from secondpass.command.flags import Json, uncollected, wrong_use
from secondpass.command.index import IndexLocation
from secondpass.command.plain import argument, option
from secondpass.errors import WrongUse

if TYPE_CHECKING:
    from rich.text import Text

    from secondpass.search.index import Index
    from secondpass.types import Hit, Ranking

BAR_WIDTH = 10
MAX_LINES = 4  # of a chunk on a terminal
_EIGHTHS = " ▏▎▍▌▋▊▉█"

RerankerName = Annotated[str, option(metavar="MODEL", help="The reranker.")]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What may be found, and how it is ordered."""

    top: Annotated[int, option("--top", "-n", min=1, help="How many to show.")] = 5
    path: Annotated[str | None, option(help="Only files with this in their path, or that match this glob.")] = None
    since: Annotated[str | None, option(metavar="DATE", help="Only what is dated so or later.")] = None
    until: Annotated[str | None, option(metavar="DATE", help="Only what is dated so or earlier.")] = None
    language: Annotated[str | None, option(help="Only what is written in it, as zh or Chinese.")] = None
    field: Annotated[
        list[str] | None,
        option(metavar="NAME=VALUE", help="Only with this field, or this in its list; repeat it."),
    ] = None
    cognitive: Annotated[
        bool, option("--cognitive", help="Let recency, use, confidence and names order what is near.")
    ] = False
    diversity: Annotated[str | None, option(metavar="mmr|file", help="Unlike passages; or one of each file.")] = None
    depth: Annotated[int, option(min=1, help="Chunks that each first stage finds.")] = 100
    candidates: Annotated[int, option(min=1, help="Of those, how many are reranked; --top at the least.")] = 30
    budget_ms: Annotated[float | None, option(min=0.001, help="Milliseconds for all stages.")] = None
    no_rerank: Annotated[bool, option("--no-rerank", help="Keep the order of the first stages.")] = False

    def search(self, index: Index, query: str, *, explain: bool) -> Ranking:
        with wrong_use():
            return index.search(
                query,
                self.top,
                path=None if self.path is None else _as_kept(self.path),
                since=self.since,
                until=self.until,
                language=self.language,
                fields=_fields(self.field or []),
                cognitive=self.cognitive,
                diversity=self.diversity,
                depth=self.depth,
                candidates=self.candidates,
                rerank=not self.no_rerank,
                budget_ms=self.budget_ms,
                explain=explain,
            )


def search(
    query: Annotated[str, argument(metavar="QUESTION", help="What is asked.")],
    *,
    location: IndexLocation,
    asking: Asking,
    explain: Annotated[bool, option("--explain", help="Show what every stage thought.")] = False,
    full: Annotated[bool, option("--full", help="Show whole chunks.")] = False,
    json: Json = False,
    model: RerankerName = "auto",
) -> None:
    """Find what answers a question in an index.

    Prints file:line, headings and the text with its winning sentence on a terminal, else tab-separated lines: rank
    (from 1), probability, score, file:line, heading, text.
    """
    if not query.strip():
        raise WrongUse('the question is empty; give one, as in: secondpass search "how long do beans cook"')
    with uncollected():  # the models are opened by the search
        index = location.open(reranker=model)
        ranking = asking.search(index, query, explain=explain or json)
    if json:
        results = [hit_object(hit) for hit in ranking]
        warnings = list(ranking.warnings)
        output.as_json({"query": query, "usage": asdict(ranking.usage), "warnings": warnings, "results": results})
    elif sys.stdout.isatty():
        _show(index, ranking, is_full=full, is_explained=explain)
    else:
        output.tab_separated(_row(hit, is_explained=explain) for hit in ranking)
    sys.stdout.flush()
    _remark(index, ranking)


def hit_object(hit: Hit) -> dict[str, Any]:
    """A hit as programs read it."""
    fields = hit.document.fields
    return {
        "id": hit.index,
        "rank": hit.rank,
        "score": hit.score if hit.score == hit.score else None,
        "probability": hit.probability if hit.probability == hit.probability else None,
        "file": fields["path"],
        "line": fields["line"],
        "last_line": fields["last_line"],
        "heading": fields["heading"],
        "text": hit.document.text,
        "fields": {name: value for name, value in fields.items() if name not in ("path", "line", "last_line")},
        "parts": None if hit.parts is None else dict(hit.parts),
    }


def _row(hit: Hit, *, is_explained: bool) -> list[object]:
    figures = (f"{hit.probability:.6f}", f"{hit.score:.6f}")
    row = [hit.rank, *figures, source_of(hit), hit.document["heading"], hit.document.text]
    return [*row, explained(hit.parts or {})] if is_explained else row


def source_of(hit: Hit) -> str:
    """file:line, relative to where we are when it is below."""
    path = str(hit.document["path"])
    try:
        here = os.getcwd() + os.sep
    except FileNotFoundError:  # the folder where we are is gone
        here = ""
    return f"{path.removeprefix(here)}:{hit.document['line']}"


def _as_kept(path: str) -> str:
    """A path from here, from home or through links as an index keeps it; a part of one, or a glob, as it is."""
    is_relative = path in (".", "..") or path.startswith(("./", "../", "~/"))
    if not is_relative and not (path.startswith("/") and os.path.exists(path)):
        return path
    from secondpass.search.folder import placed

    return str(placed(path))


def explained(parts: Mapping[str, float | int | str]) -> str:
    values = ((name, f"{value:.3f}" if isinstance(value, float) else value) for name, value in parts.items())
    return " ".join(f"{name}={value}" for name, value in values)


def _show(index: Index, ranking: Ranking, *, is_full: bool, is_explained: bool) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for hit, sentence in zip(ranking, index.winning_sentences(ranking), strict=True):
        head = Text(f"{hit.rank:>2} ")
        head.append(bar(hit.probability), style="green")
        head.append(f" {hit.probability:.2f}  ")
        head.append(_printable(source_of(hit)), style="bold cyan")
        head.append(f"  {_printable(hit.document['heading'])}", style="dim")
        console.print(head, no_wrap=True, overflow="ellipsis")
        console.print(Padding(_body(hit.document.text, sentence, is_full=is_full), (0, 0, 0, 3)))
        if is_explained:
            console.print(Text("   " + explained(hit.parts or {}), style="dim"))
        for copy in hit.document.fields.get("copies", []):
            console.print(Text(f"   also in {_printable(str(copy))}", style="dim"))


def _body(text: str, sentence: tuple[int, int], *, is_full: bool) -> Text:
    """The text, indented, with the winning sentence bold; without `is_full` only some lines around it."""
    from rich.text import Text

    start, stop = sentence
    if not is_full:
        room = MAX_LINES * max(40, shutil.get_terminal_size().columns - 4)
        first = max(0, min(start - room // 4, len(text) - room))
        last = min(len(text), max(stop, first + room))
    else:
        first, last = 0, len(text)
    shown = Text("… " if first else "")
    for part, style in ((text[first:start], ""), (text[start:stop], "bold"), (text[stop:last], "")):
        shown.append(_printable(part), style=style)
    return shown.append("…" if last < len(text) else "")


def bar(share: float) -> str:
    """A bar of BAR_WIDTH characters, in eighths of them."""
    eighths = round(min(max(share, 0.0), 1.0) * BAR_WIDTH * 8) if share == share else 0
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(BAR_WIDTH)


def _printable(text: str) -> str:
    """With one blank for any, and without what would steer the terminal."""
    flat = re.sub(r"\s+", " ", text)
    return "".join(character if character.isprintable() else "\ufffd" for character in flat)


def _fields(asked: list[str]) -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {}
    for each in asked:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise WrongUse(f"--field is {each!r}; give NAME=VALUE, as in --field tags=work")
        found[name] = _value(value)
    return found


def _value(text: str) -> str | int | float | bool:
    """A number, true, false or a quoted text as JSON has it, else the text itself."""
    try:
        value = json_text.loads(text, parse_constant=str)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float) else text


def _remark(index: Index, ranking: Ranking) -> None:
    for warning in ranking.warnings:
        sys.stderr.write(f"{warning}\n")
    if not len(ranking):
        sys.stderr.write(
            f"nothing is found in {index.name}, which has {output.counted(index.status().chunks, 'chunk')}\n"
        )
    elif not all(hit.is_scored for hit in ranking) and ranking.usage.unscored:
        sys.stderr.write(f"{ranking.usage.unscored} candidates were left unscored when the time was over\n")
