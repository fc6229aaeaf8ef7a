"""A report as Markdown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from secondpass.evaluation import figures
from secondpass.evaluation.comparison import Example, Report
from secondpass.evaluation.significance import Difference

MAX_TEXT = 240  # characters of a text in an example
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # change the direction of what follows


def markdown(report: Report, count: int = 3) -> str:
    """Verdicts, the table of the first measure, the other measures, speed, and the queries that are hurt most."""
    every = figures.rows(report)
    parts = ["# Does the reranker help?", ""]
    parts += [f"- {plain(figures.verdict(report, row))}" for row in figures.summary(report, every)]
    parts += ["", f"## {report.measures[0]}", "", table(*change_table(every))]
    if len(report.models) > 1:
        parts += ["", "## Models against each other", "", table(*between_table(report))]
    if len(report.measures) > 1:
        parts += ["", f"## Other measures, reranking {report.depths[-1]}", "", table(*measure_table(report))]
    if figures.speeds(report):
        parts += ["", "## Speed", "", table(*speed_table(report))]
    for model, some in figures.examples(report, count).items():
        parts += ["", f"## Hurt most by {plain(model)}", ""] if some else []
        parts += [line for one in some for line in _example(one)]
    if said := figures.notes(report):
        parts += ["", "## Notes", "", *(f"- {plain(note)}" for note in said)]
    return "\n".join(parts) + "\n"


def change_table(every: Sequence[figures.Row]) -> tuple[list[str], list[list[str]]]:
    """A header and rows."""
    header = "set|model|depth|queries|before|after|change, 95% interval|p|better, worse, equal|verdict".split("|")
    body = []
    for row in every:
        change = row.change
        body.append(
            [
                *(row.dataset, row.model, str(row.depth), str(row.queries)),
                *(f"{change.before:.4f}", f"{change.after:.4f}", interval(change), f"{change.p:.4f}"),
                *(f"{change.helped}, {change.hurt}, {change.equal}", change.verdict),
            ]
        )
    return header, body


def between_table(report: Report) -> tuple[list[str], list[list[str]]]:
    measure, depth = report.measures[0], report.depths[-1]
    body = []
    for one, other in report.pairs():
        change = report.between(one, other, measure, depth)
        counts = f"{change.helped}, {change.hurt}, {change.equal}"
        body.append([one, other, interval(change), f"{change.p:.4f}", counts])
    return ["from", "to", "change, 95% interval", "p", "better, worse, equal"], body


def interval(change: Difference) -> str:
    return f"{change.change:+.4f} ({change.low:+.4f} to {change.high:+.4f})"


def measure_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Before and after by every measure but the first, at the greatest depth."""
    others, depth = report.measures[1:], report.depths[-1]
    body = []
    for each in report.evaluations:
        means = [(each.before(one, depth).mean(), each.after(one, depth).mean()) for one in others]
        body.append([each.dataset.name, each.model, *(f"{old:.4f} → {new:.4f}" for old, new in means)])
    return ["set", "model", *map(str, others)], body


def speed_table(report: Report) -> tuple[list[str], list[list[str]]]:
    header = ["model", "depth", "p50 ms per query", "p95 ms", "pairs per second", "queries timed"]
    body = [
        [
            *(speed.model, str(speed.depth), f"{1000 * speed.p50_s:.1f}", f"{1000 * speed.p95_s:.1f}"),
            *(f"{speed.pairs_per_s:.1f}", str(speed.queries)),
        ]
        for speed in figures.speeds(report)
    ]
    return header, body


def _example(one: Example) -> list[str]:
    return [
        f"- **{plain(shortened(one.query))}** ({plain(one.dataset)}: {one.before:.3f} → {one.after:.3f})",
        f"  - relevant, was {one.rank_before}, is {one.rank_after}: {plain(shortened(one.relevant))}",
        f"  - now first: {plain(shortened(one.first_now))}",
    ]


def shortened(text: str) -> str:
    """One line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1].rstrip() + "…"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, without characters that steer a terminal."""
    shown = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in _TURNS else c for c in text)
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", shown)


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    lines = [list(header), *([plain(cell) for cell in row] for row in body)]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(header))]
    shown = [
        "| "
        + " | ".join(cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])


def _width(text: str) -> int:
    """Columns on a terminal, where Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
