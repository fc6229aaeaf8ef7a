"""`secondpass eval`: does a reranker help, on which data, at what cost?"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from secondpass.atomic import at_home
from secondpass.command.flags import Json, Opening, wrong_use
from secondpass.command.output import as_json, watched
from secondpass.command.plain import argument, option
from secondpass.command.sets import SetFlags, Sets
from secondpass.errors import WrongUse

if TYPE_CHECKING:
    from secondpass.evaluation.datasets.dataset import Dataset
    from secondpass.evaluation.datasets.trec import Run
    from secondpass.evaluation.evaluation import Evaluation
    from secondpass.evaluation.measures import Measure
    from secondpass.evaluation.report import Report
    from secondpass.reranker import Reranker
    from secondpass.types import DocumentLike, Scorer


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is shown and written of a report."""

    examples: Annotated[int, option(min=0, help="Queries to show that a model hurts most.")] = 3
    json: Json = False
    markdown: Annotated[str | None, option(metavar="FILE", help="Write the tables there too.")] = None
    html: Annotated[str | None, option(metavar="FILE", help="Write a report with plots.")] = None
    run: Annotated[
        str | None, option(metavar="FILE", help="Write the rankings as TREC does; of several, one file each.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Variants:
    """Layers and ratios at which a layer-wise model is measured, each with each: quality against work."""

    layers: Annotated[
        str | None, option(metavar="N,N", help="Of a layer-wise model: measured when it is cut off after each.")
    ] = None
    ratios: Annotated[
        str | None, option(metavar="N,N", help="Of one that merges passage tokens: measured by each ratio.")
    ] = None
    compress_layers: Annotated[str | None, option(metavar="N,N", help="Where --ratios merge; else as published.")] = (
        None
    )

    def cuts(self) -> list[Cut]:
        """As measured; one that asks for nothing where no flag is given."""
        layers, ratios = _numbers("--layers", self.layers), _numbers("--ratios", self.ratios)
        merged = _numbers("--compress-layers", self.compress_layers)
        if merged and not ratios:
            raise WrongUse("--compress-layers says where --ratios merge; give those too")
        return [
            Cut(layer=layer, ratio=ratio, compress_layers=tuple(merged) or None)
            for layer in (*layers,) or (None,)
            for ratio in (*ratios,) or (None,)
        ]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """After which layer a model is read, how many passage tokens become one, and where; None: its own way."""

    layer: int | None = None
    ratio: int | None = None
    compress_layers: tuple[int, ...] | None = None

    def of(self, model: str) -> str:
        """The model's name with what is asked of it."""
        layer = "" if self.layer is None else f"@layer-{self.layer}"
        return model + layer + ("" if self.ratio is None else f"@ratio-{self.ratio}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured on which candidates."""

    sets: Sets
    prepared: Sequence[tuple[Dataset, Run]]
    depths: Sequence[int]
    measures: Sequence[Measure]
    is_timed: bool


def evaluate(
    data: Annotated[
        list[str],
        argument(
            metavar="DATA", help="BEIR, MIRACL or MS MARCO folders, reranking sets, ir-datasets:NAME, mteb:NAME."
        ),
    ],
    *,
    models: Annotated[
        list[str] | None,
        option(
            "--model",
            metavar="MODEL",
            help="default, a folder, owner/name, embedder:NAME or colbert:NAME; repeat it to compare.",
        ),
    ] = None,
    variants: Variants,
    depth: Annotated[str, option(metavar="N,N", help="Candidates to rerank, as in 20,50,100.")] = "100",
    measures: Annotated[
        str, option(help="nDCG@k, MRR@k, recall@k, MAP, precision@k, hit_rate@k; the first decides.")
    ] = "nDCG@10,MRR@10,recall@10,MAP,hit_rate@1",
    flags: SetFlags,
    written: Written,
    latency: Annotated[bool, option("--latency/--no-latency", help="Measure time per query.")] = True,
    pipeline: Annotated[
        bool, option("--pipeline", help="The local pipeline after each of its stages instead.")
    ] = False,
    opening: Opening,
) -> None:
    """Measure whether a reranker helps: with and without it, on your data, and at what cost.

    Prints verdicts and tables in Markdown. Interrupted, a run with --cache goes on where it was.
    """
    from secondpass.evaluation.report import Report

    if pipeline:
        from secondpass.command.pipeline import evaluate_pipeline

        if written != replace(Written(), json=written.json) or variants != Variants():
            raise WrongUse("--pipeline prints a table or --json; leave out what writes files and cuts layers")
        sets = Sets(sources=data, flags=flags, opening=opening)
        evaluate_pipeline(sets, models or ["default"], depth, measures=measures.split(","), is_json=written.json)
        return
    _check_files(written)
    cuts, named = variants.cuts(), list(dict.fromkeys(models or ["default"]))
    _check_models(named, cuts, opening)
    plan = _planned(Sets(sources=data, flags=flags, opening=opening), depth, measures, is_timed=latency)
    if written.run is not None:
        _check_names(plan, at_home(written.run))
    evaluations: list[Evaluation] = []
    infos: dict[str, Mapping[str, Any]] = {}
    for model in named:
        for cut in cuts:
            found, infos[cut.of(model)] = _evaluated(model, plan, cut)
            evaluations += found
    _tell(Report(evaluations=tuple(evaluations), seed=flags.seed, infos=infos), written)


def _tell(report: Report, written: Written) -> None:
    from secondpass.evaluation import rendering
    from secondpass.evaluation.report import as_dict

    if written.html is not None:
        _write(written.html, rendering.html(report, written.examples))
    text = rendering.markdown(report, written.examples)
    if written.markdown is not None:
        _write(written.markdown, text)
    if written.json:
        as_json(as_dict(report, written.examples))
    else:
        _show(text)
    if written.run is not None:
        _write_runs(at_home(written.run), report.evaluations)


def _write_runs(file: Path, evaluations: Sequence[Evaluation]) -> None:
    """A single one to the file, several to FILE with set and model before its suffix."""
    from secondpass.evaluation.datasets.trec import write_run

    for evaluation in evaluations:
        tag = re.sub(r"[^\w.@-]+", "_", evaluation.model).strip("_")
        name = f"{file.stem}.{evaluation.dataset.name}.{tag}{file.suffix}"
        write_run(file if len(evaluations) == 1 else file.with_name(name), evaluation.scores, tag)


def _planned(sets: Sets, depth: str, measures: str, *, is_timed: bool) -> Plan:
    from secondpass.evaluation.measures import as_measures

    depths = _depths(depth)
    with wrong_use():
        named = as_measures(measures)
    prepared = _named_apart(list(sets.each(depths[-1])))
    return Plan(sets=sets, prepared=prepared, depths=depths, measures=named, is_timed=is_timed)


@dataclass(frozen=True, kw_only=True)
class CutOff:
    """A layer-wise reranker whose scores are those of one of its layers, with passage tokens merged or not."""

    reranker: Reranker
    cut: Cut

    def score(self, query: str, documents: Sequence[DocumentLike]) -> list[float]:
        cut = self.cut
        return self.reranker.score(
            query, documents, cutoff_layer=cut.layer, compress_ratio=cut.ratio, compress_layers=cut.compress_layers
        )


def _cut_off(scorer: Scorer, model: str, cut: Cut) -> Scorer:
    from secondpass.reranker import Reranker

    if cut == Cut():
        return scorer
    if not isinstance(scorer, Reranker):
        raise WrongUse(f"--layers and --ratios: {model} is no reranker and has no heads at its layers")
    cut_off = CutOff(reranker=scorer, cut=cut)
    with wrong_use():
        cut_off.score("a", ["b"])  # said before the work, where there is no such layer
    return cut_off


def _check_models(models: Sequence[str], cuts: Sequence[Cut], opening: Opening) -> None:
    """Each of several opened once before the work, or the first is measured in vain where the second is not there."""
    if len(models) * len(cuts) == 1:
        return
    for model in models:
        scorer = opening.scorer(model)
        for cut in cuts:
            _cut_off(scorer, model, cut)
        del scorer  # the memory holds one


def _numbers(flag: str, written: str | None) -> list[int]:
    if written is None:
        return []
    try:
        return [int(part) for part in dict.fromkeys(written.split(","))]
    except ValueError as error:
        raise WrongUse(f"{flag} {written}: give whole numbers, as in 8,16,24") from error


def _evaluated(model: str, plan: Plan, cut: Cut) -> tuple[list[Evaluation], Mapping[str, Any]]:
    """One model, perhaps cut off, on all sets.

    Where scores may come from a cache, it is opened again without to time it. What is timed keeps no passages: those
    of a lesser depth were read at the greatest, and cost next to nothing then.
    """
    from secondpass.evaluation.evaluation import evaluate, timed

    flags, opening = plan.sets.flags, plan.sets.opening
    is_timed = plan.is_timed and flags.cache is None
    opened = opening.scorer(model, score_cache=flags.cache, passage_cache_bytes=0 if is_timed else None)
    info = asdict(opened.info())
    scorer = _cut_off(opened, model, cut)
    name = cut.of(model)
    found = []
    for dataset, run in plan.prepared:
        with watched(f"{name}, {dataset.name}") as progress:
            evaluation = evaluate(
                scorer,
                dataset,
                first_stage=run,
                depths=plan.depths,
                measures=plan.measures,
                model=name,
                first_stage_name="BM25" if flags.first_stage == "bm25" else flags.first_stage,
                is_timed=is_timed,
                progress=progress,
            )
        found.append(evaluation)
    if plan.is_timed and flags.cache is not None:
        del scorer, opened  # before the second is opened, so that the memory holds one
        scorer = _cut_off(opening.scorer(model, passage_cache_bytes=0), model, cut)
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


def _check_files(written: Written) -> None:
    """Before the work, what would fail after it."""
    for name in (written.html, written.markdown, written.run):
        file = None if name is None else at_home(name).absolute()
        if file is not None and not file.parent.is_dir():
            raise WrongUse(f"{name}: there is no folder {file.parent}")
        if file is not None and file.is_dir():
            raise WrongUse(f"{name}: is a folder; name a file")
    if written.html is not None:
        from secondpass.evaluation.rendering import require_plots

        require_plots()


def _check_names(plan: Plan, file: Path) -> None:
    from secondpass.evaluation.datasets.trec import check_names

    for _, candidates in plan.prepared:
        check_names(candidates, file, "tag")


def _show(text: str) -> None:
    """The Markdown; on a terminal with its tables fitted to the width."""
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))


def _write(name: str, text: str) -> None:
    from secondpass.atomic import write_text

    write_text(at_home(name), text)
