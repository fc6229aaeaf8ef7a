"""A report as Markdown, and as one HTML page with plots: no scripts, nothing loaded from elsewhere, texts escaped."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from secondpass.errors import MissingExtra
from secondpass.evaluation.report import (
    AVERAGE,
    HurtQuery,
    Report,
    ReportRow,
    examples,
    notes,
    rows,
    speeds,
    summary,
    verdict,
)
from secondpass.evaluation.significance import Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_TEXT = 240  # characters of a text in an example
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # change the direction of what follows
# Even if a text slipped through unescaped, no script could run and nothing could be fetched.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light; --line: #d8dde3; --faint: #5b6570; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2128; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 0.88rem; white-space: nowrap }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
th { color: var(--faint); font-weight: 600 } tr.average td { font-weight: 600 }
.verdict { border-left: 4px solid #8a94a0; padding: 0.2rem 0.9rem; margin: 0.6rem 0 }
.verdict.helps { border-color: #15803d } .verdict.hurts { border-color: #b91c1c }
td.helps { color: #15803d } td.hurts { color: #b91c1c }
img { max-width: 100%; height: auto } .example { margin: 0.8rem 0 } .example p { margin: 0.2rem 0 0.2rem 1rem }
.faint { color: var(--faint) }
"""


COLOURS = ("#2563a8", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490")
_SETTINGS: Mapping[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the reader's fonts
    "svg.hashsalt": "secondpass",  # the same report gives the same file
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def markdown(report: Report, count: int = 3) -> str:
    """Verdicts, the table of the first measure, the other measures, speed, and the queries that are hurt most."""
    every = rows(report)
    parts = ["# Does the reranker help?", ""]
    parts += [f"- {plain(verdict(report, row))}" for row in summary(report, every)]
    parts += ["", f"## {report.measures[0]}", "", table(*change_table(every))]
    if len(report.models) > 1:
        parts += ["", "## Models against each other", "", table(*between_table(report))]
    if len(report.measures) > 1:
        parts += ["", f"## Other measures, reranking {report.depths[-1]}", "", table(*measure_table(report))]
    if speeds(report):
        parts += ["", "## Speed", "", table(*speed_table(report))]
    for model, some in examples(report, count).items():
        parts += ["", f"## Hurt most by {plain(model)}", ""] if some else []
        parts += [line for one in some for line in _example_lines(one)]
    if said := notes(report):
        parts += ["", "## Notes", "", *(f"- {plain(note)}" for note in said)]
    return "\n".join(parts) + "\n"


def change_table(every: Sequence[ReportRow]) -> tuple[list[str], list[list[str]]]:
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
    """Quality against work: the first measure beside the time."""
    measure = report.measures[0]
    header = ["model", "depth", str(measure), "p50 ms per query", "p95 ms", "pairs per second", "queries timed"]
    body = [
        [
            *(speed.model, str(speed.depth)),
            f"{np.mean([each.after(measure, speed.depth).mean() for each in report.of(speed.model)]):.4f}",
            *(f"{1000 * speed.p50_s:.1f}", f"{1000 * speed.p95_s:.1f}"),
            *(f"{speed.pairs_per_s:.1f}", str(speed.queries)),
        ]
        for speed in speeds(report)
    ]
    return header, body


def _example_lines(one: HurtQuery) -> list[str]:
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


def html(report: Report, count: int = 3) -> str:
    """The page. Raises MissingExtra without matplotlib."""
    every = rows(report)
    parts = ["<h1>Does the reranker help?</h1>"]
    parts += [
        f'<p class="verdict {_class(row.change.verdict)}">{escape(verdict(report, row))}</p>'
        for row in summary(report, every)
    ]
    parts += ["<h2>Quality against cost</h2>", _image(quality_and_cost(report, every), "Quality and cost")]
    parts += [f"<h2>{escape(str(report.measures[0]))}</h2>", _table_html(*change_table(every))]
    for model in report.models:
        parts += [
            f"<h2>Queries, {escape(model)}</h2>",
            _image(gains(report, model), f"Change by query, {model}"),
        ]
    if len(report.models) > 1:
        parts += ["<h2>Models against each other</h2>", _table_html(*between_table(report))]
    if len(report.measures) > 1:
        parts += [f"<h2>Other measures, reranking {report.depths[-1]}</h2>", _table_html(*measure_table(report))]
    parts += ["<h2>Speed</h2>", _table_html(*speed_table(report))] if speeds(report) else []
    parts += _models(report)
    for model, some in examples(report, count).items():
        parts += [f"<h2>Hurt most by {escape(model)}</h2>", *map(_example_html, some)] if some else []
    if said := notes(report):
        parts += ["<h2>Notes</h2><ul>", *(f"<li>{escape(note)}</li>" for note in said), "</ul>"]
    return _HEAD + "\n".join(parts) + "\n</body></html>\n"


_HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Does the reranker help?</title><style>{_STYLE}</style></head><body>
"""


def _class(verdict: str) -> str:
    return verdict if verdict in ("helps", "hurts") else "unknown"


def _table_html(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    rows = []
    for row in body:
        cells = "".join(f'<td class="{_class(cell)}">{escape(cell)}</td>' for cell in row)
        rows.append(f'<tr class="{"average" if row[0] == AVERAGE else "set"}">{cells}</tr>')
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _image(svg: bytes, title: str) -> str:
    """As an image, so that nothing inside the SVG could run."""
    return f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{b64encode(svg).decode()}">'


def _models(report: Report) -> list[str]:
    shown = []
    for model, info in (report.infos or {}).items():
        said = ", ".join(f"{name} {value}" for name, value in info.items() if value not in (None, ""))
        shown.append(f'<p class="faint">{escape(f"{model}: {said}")}</p>')
    return shown


def _example_html(one: HurtQuery) -> str:
    lines = [
        f"{one.dataset}: {one.before:.3f} → {one.after:.3f}",
        f"relevant, was {one.rank_before}, is {one.rank_after}: {shortened(one.relevant)}",
        f"now first: {shortened(one.first_now)}",
    ]
    said = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="example"><strong>{escape(shortened(one.query))}</strong>{said}</div>'


def require_plots() -> None:
    """Raises MissingExtra where plots cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtra("matplotlib", "eval") from error


def quality_and_cost(report: Report, every: Sequence[ReportRow]) -> bytes:
    """A line per model over its depths: the average of the first measure against the median latency.

    Against the depth, where nothing was timed.
    """
    times = {(speed.model, speed.depth): 1000 * speed.p50_s for speed in speeds(report)}
    is_timed = bool(times)
    times = times or {(row.model, row.depth): float(row.depth) for row in every}
    last = {(row.model, row.depth): row.change for row in every}  # a model's last row at a depth is the average

    def draw(axes: Axes) -> None:
        for index, model in enumerate(report.models):
            points = [(times[model, depth], last[model, depth].after) for depth in report.depths]
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[index % len(COLOURS)], label=model)
            for depth, (x, y) in zip(report.depths, points, strict=True):
                axes.annotate(str(depth), (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
        before = last[report.models[0], report.depths[-1]].before
        axes.axhline(before, color="#777", linestyle="--", linewidth=1, label="first stage alone")
        axes.set_xlabel("median latency per query, ms (numbers: candidates)" if is_timed else "candidates reranked")
        axes.set_ylabel(f"{report.measures[0]}, mean")
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=8)

    return _svg(draw)


def gains(report: Report, model: str) -> bytes:
    """The change of each query by the first measure at the greatest depth, sorted."""
    measure, depth = report.measures[0], report.depths[-1]
    changes = np.sort(
        np.concatenate([each.after(measure, depth) - each.before(measure, depth) for each in report.of(model)])
    )[::-1]

    def draw(axes: Axes) -> None:
        ranks = np.arange(len(changes))
        axes.fill_between(ranks, changes, 0, where=(changes > 0).tolist(), step="mid", color="#15803d", alpha=0.8)
        axes.fill_between(ranks, changes, 0, where=(changes < 0).tolist(), step="mid", color="#b91c1c", alpha=0.8)
        axes.axhline(0, color="#555", linewidth=0.8)
        axes.set_xlabel(f"queries, from the most helped to the most hurt by {model}")
        axes.set_ylabel(f"change in {measure}")

    return _svg(draw)


def _svg(draw: Any) -> bytes:
    require_plots()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast("Any", dict(_SETTINGS))), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts draw the text
        figure: Figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        draw(figure.add_subplot())
        target = io.BytesIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()
