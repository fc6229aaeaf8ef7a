"""The plots of a report, as SVG without scripts."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from secondpass.errors import MissingExtra
from secondpass.evaluation import figures
from secondpass.evaluation.comparison import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2563a8", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490")
_SETTINGS: Mapping[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the reader's fonts
    "svg.hashsalt": "secondpass",  # the same report gives the same file
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def require() -> None:
    """Raises MissingExtra where plots cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtra("matplotlib", "eval") from error


def quality_and_cost(report: Report, every: Sequence[figures.Row]) -> bytes:
    """A line per model over its depths: the average of the first measure against the median latency.

    Against the depth, where nothing was timed.
    """
    times = {(speed.model, speed.depth): 1000 * speed.p50_s for speed in figures.speeds(report)}
    is_timed = bool(times)
    times = times or {(row.model, row.depth): float(row.depth) for row in every}
    last = {(row.model, row.depth): row.change for row in every}  # a model's last row at a depth is the average

    def draw(axes: Axes) -> None:
        for place, model in enumerate(report.models):
            points = [(times[model, depth], last[model, depth].after) for depth in report.depths]
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[place % len(COLOURS)], label=model)
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
        places = np.arange(len(changes))
        axes.fill_between(places, changes, 0, where=(changes > 0).tolist(), step="mid", color="#15803d", alpha=0.8)
        axes.fill_between(places, changes, 0, where=(changes < 0).tolist(), step="mid", color="#b91c1c", alpha=0.8)
        axes.axhline(0, color="#555", linewidth=0.8)
        axes.set_xlabel(f"queries, from the most helped to the most hurt by {model}")
        axes.set_ylabel(f"change in {measure}")

    return _svg(draw)


def _svg(draw: Any) -> bytes:
    require()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast("Any", dict(_SETTINGS))), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts draw the text
        figure: Figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        draw(figure.add_subplot())
        target = io.BytesIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()
