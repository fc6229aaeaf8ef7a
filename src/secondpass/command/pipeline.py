"""`secondpass eval --pipeline`: the local pipeline after each of its stages, and where it loses the answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from secondpass.command.flags import wrong_use
from secondpass.command.output import as_json, watched
from secondpass.errors import WrongUse

if TYPE_CHECKING:
    from secondpass.command.sets import Sets
    from secondpass.evaluation.pipeline import Stages


def evaluate_pipeline(
    sets: Sets, models: Sequence[str], depth: str, measures: Sequence[str], *, is_json: bool
) -> None:
    """Measure each set after each stage: BM25, what --first-stage has beside it, fused, reranked, cognitive.

    --first-stage is bm25, or some of embedder:NAME, sparse:NAME and colbert:NAME, with commas between. depth is how
    many of the fused are reranked. Cognitive scoring is measured where a set has times.
    """
    from secondpass.cognitive import Cognitive
    from secondpass.evaluation.measures import as_measures
    from secondpass.evaluation.pipeline import load_timed, measure_pipeline, table
    from secondpass.search.pipeline import Question
    from secondpass.search.retrievers import open_retriever
    from secondpass.search.stores.store import STAGES

    if len(models) > 1 or not depth.isdigit():
        raise WrongUse("--pipeline measures one model at one depth; give --model and --depth once")
    flags = sets.flags
    if flags.cache is not None:
        raise WrongUse("--pipeline keeps no scores; leave out --cache")
    named = dict(each.partition(":")[::2] for each in flags.first_stage.split(","))
    if set(named) - {"bm25", "embedder", *STAGES} or any((kind == "bm25") == bool(named[kind]) for kind in named):
        raise WrongUse(
            f"--pipeline searches itself, and does not know --first-stage {flags.first_stage}; give bm25, or some of "
            "embedder:NAME, sparse:NAME and colbert:NAME with commas between"
        )
    with wrong_use():
        as_measures(measures)
        options = Question(text="", candidates=int(depth), depth=max(100, int(depth)))
        name = named.get("embedder", "")
        encoder = sets.opening.embedder(name) if name else None
        retrievers = [open_retriever(stage, named[stage], encoder, name) for stage in STAGES if stage in named]
    reranker = sets.opening.reranker(models[0])
    for source in sets.sources:
        timed = load_timed(source, split=flags.split, num_queries=flags.num_queries, seed=flags.seed)
        with watched(f"measuring {timed.dataset.name}") as progress:
            stages = measure_pipeline(
                timed,
                encoder=encoder,
                reranker=reranker,
                options=options,
                cognitive=Cognitive(),
                retrievers=retrievers,
                progress=progress,
            )
        if is_json:
            as_json(_figures(stages, measures))
        else:
            sys.stdout.write(table(stages, measures) + "\n\n")


def _figures(stages: Stages, measures: Sequence[str]) -> dict[str, object]:
    from secondpass.evaluation.measures import parse

    means = {
        stage: {name: float(stages.figures(stage, parse(name)).mean()) for name in measures}
        for stage in stages.rankings
    }
    return {"set": stages.dataset.name, "stages": means}
