"""`secondpass eval`: does a reranker help, on which data, at what cost?"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.command import show
from secondpass.command.progress import watched
from secondpass.command.sets import Sets, open_scorer
from secondpass.errors import InputError, WrongUse

if TYPE_CHECKING:
    from secondpass.evaluation.datasets.dataset import Dataset
    from secondpass.evaluation.datasets.trec import Run
    from secondpass.evaluation.evaluation import Evaluation
    from secondpass.evaluation.measures import Measure


@dataclass(frozen=True, kw_only=True)
class Output:
    is_json: bool
    markdown: str | None
    html: str | None
    examples: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """As written on the command line: depths like 20,50,100 and measures like nDCG@10,MAP."""

    models: Sequence[str]
    depths: str
    measures: str
    is_timed: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured on which candidates."""

    sets: Sets
    prepared: Sequence[tuple[Dataset, Run]]
    depths: Sequence[int]
    measures: Sequence[Measure]
    is_timed: bool


def evaluate(sets: Sets, settings: Settings, output: Output) -> None:
    """Measure every model on every set, and print or write the report. Raises WrongUse or SecondpassError."""
    from secondpass.evaluation import figures, tables
    from secondpass.evaluation.comparison import Report

    _check_files(output)
    plan = _planned(sets, settings)
    evaluations: list[Evaluation] = []
    infos: dict[str, Mapping[str, Any]] = {}
    for model in dict.fromkeys(settings.models):
        found, infos[model] = _evaluated(model, plan)
        evaluations += found
    report = Report(evaluations=tuple(evaluations), seed=sets.seed, infos=infos)
    if output.html is not None:
        from secondpass.evaluation import page

        _write(output.html, page.html(report, output.examples))
    text = tables.markdown(report, output.examples)
    if output.markdown is not None:
        _write(output.markdown, text)
    if output.is_json:
        show.as_json(figures.as_dict(report, output.examples))
    else:
        _show(text)


def _planned(sets: Sets, settings: Settings) -> Plan:
    from secondpass.evaluation.measures import as_measures

    depths = _depths(settings.depths)
    try:
        measures = as_measures(settings.measures)
    except ValueError as error:
        raise WrongUse(str(error)) from error
    prepared = _named_apart(list(sets.each(depths[-1])))
    return Plan(sets=sets, prepared=prepared, depths=depths, measures=measures, is_timed=settings.is_timed)


def _evaluated(model: str, plan: Plan) -> tuple[list[Evaluation], Mapping[str, Any]]:
    """One model on all sets. Where scores may come from a cache, it is opened again without to time it."""
    from secondpass.evaluation.evaluation import evaluate, timed

    sets = plan.sets
    scorer, info = open_scorer(model, sets.loading)
    found = []
    for dataset, run in plan.prepared:
        with watched(f"{model}, {dataset.name}") as progress:
            evaluation = evaluate(
                scorer,
                dataset,
                first_stage=run,
                depths=plan.depths,
                measures=plan.measures,
                model=model,
                first_stage_name="BM25" if sets.first_stage == "bm25" else sets.first_stage,
                is_timed=plan.is_timed and sets.loading.cache is None,
                progress=progress,
            )
        found.append(evaluation)
    if plan.is_timed and sets.loading.cache is not None:
        del scorer  # before the second is opened, so that the memory holds one
        scorer, _ = open_scorer(model, replace(sets.loading, cache=None))
        found = [timed(evaluation, scorer) for evaluation in found]
    return found, info


def _named_apart(prepared: list[tuple[Dataset, Run]]) -> list[tuple[Dataset, Run]]:
    """Sets of the same name with a number, so that tables tell them apart."""
    seen: dict[str, int] = {}
    named = []
    for dataset, run in prepared:
        seen[dataset.name] = seen.get(dataset.name, 0) + 1
        number = seen[dataset.name]
        named.append((dataset if number == 1 else replace(dataset, name=f"{dataset.name}-{number}"), run))
    return named


def _depths(written: str) -> tuple[int, ...]:
    from secondpass.evaluation.evaluation import as_depths

    try:
        return as_depths(int(part) for part in written.split(","))
    except ValueError as error:
        raise WrongUse(f"--depth {written}: give whole numbers of 1 or more, as in 20,50,100") from error


def _check_files(output: Output) -> None:
    """Before the work, what would fail after it."""
    for name in (output.html, output.markdown):
        if name is not None and not Path(name).expanduser().absolute().parent.is_dir():
            raise WrongUse(f"{name}: there is no folder {Path(name).expanduser().absolute().parent}")
    if output.html is not None:
        from secondpass.evaluation import plots

        plots.require()


def _show(text: str) -> None:
    """The Markdown; on a terminal with its tables fitted to the width."""
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))


def _write(name: str, text: str) -> None:
    try:
        Path(name).expanduser().write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"{name}: cannot be written: {error.strerror or error}") from error
