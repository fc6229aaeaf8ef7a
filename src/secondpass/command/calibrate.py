"""`secondpass calibrate`: probabilities that can be believed, and a threshold for a wanted precision."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from secondpass.atomic import at_home
from secondpass.command.flags import Json, Model, Opening, Revision
from secondpass.command.output import as_json, watched
from secondpass.command.plain import argument, option
from secondpass.command.sets import SetFlags, Sets
from secondpass.errors import DataError, WrongUse

if TYPE_CHECKING:
    from secondpass.calibration import Calibration
    from secondpass.data.pairs import LabelledQuery
    from secondpass.reranker import Reranker


def calibrate(
    data: Annotated[
        list[str], argument(metavar="DATA", help='Sets as for eval, or lines with "query", "text", "label".')
    ],
    *,
    model: Model = "default",
    revision: Revision = None,
    output: Annotated[str | None, option(metavar="FILE", help="Else calibration.json in the model's folder.")] = None,
    precision: Annotated[float | None, option(help="Find the threshold for it, as 0.9.")] = None,
    depth: Annotated[int, option(min=1, help="Candidates of each query.")] = 30,
    flags: SetFlags,
    opening: Opening,
    json: Json = False,
) -> None:
    """Fit probabilities to labelled pairs, and a threshold for a wanted precision.

    Says how far they hold on pairs that were held out. Reranker(..., calibration=FILE) uses them.
    """
    from secondpass.evaluation.calibrate import fit_calibration
    from secondpass.reranker import Reranker

    target = _target(model, output)
    if precision is not None and not 0 < precision <= 1:
        raise WrongUse(f"--precision {precision}: give more than 0 and at most 1")
    queries = _queries(Sets(sources=data, flags=flags, opening=opening), depth)
    scorer = opening.scorer(model, revision=revision, score_cache=flags.cache)
    if not isinstance(scorer, Reranker):
        raise WrongUse(f"{model}: only a reranker has probabilities to calibrate")
    scores, info = _scored(scorer, queries, model), scorer.info()
    calibration = fit_calibration(
        scores,
        [label for query in queries for label in query.labels],
        [query.name for query in queries for _ in query.texts],
        precision=precision,
        uncalibrated=[scorer.probability(score) for score in scores],
        model={name: info[name] for name in ("model", "revision", "engine", "dtype", "max_length", "truncation")},
        fitted_on=_origin(data, flags, depth),
        seed=flags.seed,
    )
    file = _saved(calibration, target)
    if json:
        as_json({"file": str(file), **asdict(calibration)})
    else:
        sys.stdout.write(_told(calibration, file))


def _target(model: str, output: str | None) -> Path:
    """Where it is written; known before the work."""
    if output is not None:
        file = at_home(output).absolute()
        if not file.parent.is_dir():
            raise WrongUse(f"{output}: there is no folder {file.parent}")
        return file
    folder = at_home(model)
    if not folder.is_dir():
        raise WrongUse(f"{model} is no folder to write beside; name a file with --output calibration.json")
    return folder


def _saved(calibration: Calibration, target: Path) -> Path:
    try:
        return calibration.save(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error


def _origin(data: Sequence[str], flags: SetFlags, depth: int) -> dict[str, Any]:
    return {
        "data": [Path(source).name for source in data],
        "first_stage": flags.first_stage,
        "depth": depth,
        "seed": flags.seed,
    }


def _queries(sets: Sets, depth: int) -> list[LabelledQuery]:
    from secondpass.data.pairs import has_labels, read_labelled
    from secondpass.evaluation.calibrate import candidate_pairs

    labelled = [source for source in sets.sources if has_labels(source)]
    others = replace(sets, sources=[source for source in sets.sources if source not in labelled])
    found = [query for source in labelled for query in read_labelled(source)]
    return found + [query for dataset, run in others.each(depth) for query in candidate_pairs(dataset, run)]


def _scored(scorer: Reranker, queries: list[LabelledQuery], model: str) -> list[float]:
    scores: list[float] = []
    with watched(model) as progress:
        for done, query in enumerate(queries, 1):
            scores += scorer.score(query.text, query.texts)
            if progress is not None:
                progress(done, len(queries))
    return scores


def _told(calibration: Calibration, file: Path) -> str:
    """What was fitted and how well it holds, for people."""
    from secondpass.evaluation.rendering import table

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
