"""A report as one HTML file: no scripts, nothing loaded from elsewhere, every text escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from secondpass.evaluation import figures, plots, tables
from secondpass.evaluation.comparison import Example, Report

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


def html(report: Report, count: int = 3) -> str:
    """The page. Raises MissingExtra without matplotlib."""
    every = figures.rows(report)
    parts = ["<h1>Does the reranker help?</h1>"]
    parts += [
        f'<p class="verdict {_class(row.change.verdict)}">{escape(figures.verdict(report, row))}</p>'
        for row in figures.summary(report, every)
    ]
    parts += ["<h2>Quality against cost</h2>", _image(plots.quality_and_cost(report, every), "Quality and cost")]
    parts += [f"<h2>{escape(str(report.measures[0]))}</h2>", _table(*tables.change_table(every))]
    for model in report.models:
        parts += [
            f"<h2>Queries, {escape(model)}</h2>",
            _image(plots.gains(report, model), f"Change by query, {model}"),
        ]
    if len(report.models) > 1:
        parts += ["<h2>Models against each other</h2>", _table(*tables.between_table(report))]
    if len(report.measures) > 1:
        parts += [f"<h2>Other measures, reranking {report.depths[-1]}</h2>", _table(*tables.measure_table(report))]
    parts += ["<h2>Speed</h2>", _table(*tables.speed_table(report))] if figures.speeds(report) else []
    parts += _models(report)
    for model, some in figures.examples(report, count).items():
        parts += [f"<h2>Hurt most by {escape(model)}</h2>", *map(_example, some)] if some else []
    if said := figures.notes(report):
        parts += ["<h2>Notes</h2><ul>", *(f"<li>{escape(note)}</li>" for note in said), "</ul>"]
    return _HEAD + "\n".join(parts) + "\n</body></html>\n"


_HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Does the reranker help?</title><style>{_STYLE}</style></head><body>
"""


def _class(verdict: str) -> str:
    return verdict if verdict in ("helps", "hurts") else "unknown"


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    rows = []
    for row in body:
        cells = "".join(f'<td class="{_class(cell)}">{escape(cell)}</td>' for cell in row)
        rows.append(f'<tr class="{"average" if row[0] == figures.AVERAGE else "set"}">{cells}</tr>')
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


def _example(one: Example) -> str:
    lines = [
        f"{one.dataset}: {one.before:.3f} → {one.after:.3f}",
        f"relevant, was {one.rank_before}, is {one.rank_after}: {tables.shortened(one.relevant)}",
        f"now first: {tables.shortened(one.first_now)}",
    ]
    said = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="example"><strong>{escape(tables.shortened(one.query))}</strong>{said}</div>'
