"""`secondpass calibrate`: probabilities that can be believed, and a threshold for a wanted precision."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.command import show
from secondpass.command.progress import watched
from secondpass.command.sets import Sets, open_scorer
from secondpass.errors import InputError, WrongUse

if TYPE_CHECKING:
    from secondpass.calibration import Calibration
    from secondpass.evaluation.pairs import Query


@dataclass(frozen=True, kw_only=True)
class Settings:
    """output: a file, or None for calibration.json in the model's folder."""

    model: str
    depth: int
    precision: float | None
    output: str | None
    is_json: bool


def calibrate(sets: Sets, settings: Settings) -> None:
    """Fit on all sets, write the file, and print what was held out. Raises WrongUse or SecondpassError."""
    from secondpass.evaluation.calibrate import fit_calibration
    from secondpass.reranker import Reranker

    target = _target(settings)
    if settings.precision is not None and not 0 < settings.precision <= 1:
        raise WrongUse(f"--precision {settings.precision}: give more than 0 and at most 1")
    queries = list(_queries(sets, settings.depth))
    scorer, info = open_scorer(settings.model, sets.loading)
    if not isinstance(scorer, Reranker):
        raise WrongUse(f"{settings.model}: only a reranker has probabilities to calibrate")
    scores = _scored(scorer, queries, settings.model)
    calibration = fit_calibration(
        scores,
        [label for query in queries for label in query.labels],
        [query.name for query in queries for _ in query.texts],
        precision=settings.precision,
        uncalibrated=[scorer.probability(score) for score in scores],
        model={name: info[name] for name in ("model", "revision", "engine", "dtype", "max_length", "truncation")},
        fitted_on=_origin(sets, settings.depth),
        seed=sets.seed,
    )
    file = _saved(calibration, target)
    if settings.is_json:
        show.as_json({"file": str(file), **asdict(calibration)})
    else:
        sys.stdout.write(_told(calibration, file))


def _target(settings: Settings) -> Path:
    """Where it is written; known before the work."""
    if settings.output is not None:
        place = Path(settings.output).expanduser().absolute()
        if not place.parent.is_dir():
            raise WrongUse(f"{settings.output}: there is no folder {place.parent}")
        return place
    folder = Path(settings.model).expanduser()
    if not folder.is_dir():
        raise WrongUse(f"{settings.model} is no folder to write beside; name a file with --output calibration.json")
    return folder


def _saved(calibration: Calibration, target: Path) -> Path:
    try:
        return calibration.save(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error


def _origin(sets: Sets, depth: int) -> dict[str, Any]:
    return {
        "data": [Path(source).name for source in sets.sources],
        "first_stage": sets.first_stage,
        "depth": depth,
        "seed": sets.seed,
    }


def _queries(sets: Sets, depth: int) -> list[Query]:
    from secondpass.evaluation.pairs import from_candidates, has_labels, read_labelled

    labelled = [source for source in sets.sources if has_labels(source)]
    others = replace(sets, sources=[source for source in sets.sources if source not in labelled])
    found = [query for source in labelled for query in read_labelled(source)]
    return found + [query for dataset, run in others.each(depth) for query in from_candidates(dataset, run)]


def _scored(scorer: Any, queries: list[Query], model: str) -> list[float]:
    scores: list[float] = []
    with watched(model) as progress:
        for done, query in enumerate(queries, 1):
            scores += scorer.score(query.text, query.texts)
            if progress is not None:
                progress(done, len(queries))
    return scores


def _told(calibration: Calibration, file: Path) -> str:
    """What was fitted and how well it holds, for people."""
    from secondpass.evaluation.tables import table

    held, base = calibration.held_out, calibration.fitted_on
    now = held["uncalibrated"]
    lines = [
        f"probability = 1 / (1 + exp(-({calibration.slope:.4f} * score {calibration.intercept:+.4f})))",
        f"fitted on {base['pairs']} pairs of {base['queries']} queries, {base['relevant']} of them relevant",
        "",
        *_threshold_lines(calibration),
        f"Held out, in {held['folds']} parts by query:",
        "",
        table(
            ["", "ECE", "Brier", "log loss"],
            [
                ["calibrated", *(f"{held[name]:.4f}" for name in ("ece", "brier", "log_loss"))],
                ["as the model is", *(f"{now[name]:.4f}" for name in ("ece", "brier", "log_loss"))],
            ],
        ),
        "",
        table(["probability", "pairs", "mean probability", "share relevant"], [_bin(row) for row in held["bins"]]),
        "",
        f"written to {file}; use it with Reranker(..., calibration={str(file)!r})",
    ]
    return "\n".join(lines) + "\n"


def _threshold_lines(calibration: Calibration) -> list[str]:
    if calibration.wanted_precision is None:
        return []
    wanted, found = f"precision {calibration.wanted_precision:g}", calibration.held_out["threshold"]
    if calibration.threshold is None:
        return [f"{wanted} was not reached by 20 pairs or more, so there is no threshold", ""]
    held = "none was accepted" if found["precision"] is None else f"precision {found['precision']:.3f}"
    return [
        f"{wanted}: accept a score of {calibration.threshold:.4f} or more (probability "
        f"{calibration.probability(calibration.threshold):.3f}); held out: {held}, recall {found['recall']:.3f}, "
        f"{found['accepted']} pairs accepted",
        "",
    ]


def _bin(row: Mapping[str, Any]) -> list[str]:
    figures = ["" if row[name] is None else f"{row[name]:.3f}" for name in ("mean_probability", "relevant")]
    return [f"{row['low']:.1f} to {row['high']:.1f}", str(row["pairs"]), *figures]
