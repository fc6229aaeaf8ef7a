"""The options of `secondpass eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from secondpass.command.options import (
    Cache,
    Debug,
    Device,
    Dtype,
    Engine,
    FirstStage,
    Json,
    MaxLength,
    NumQueries,
    Offline,
    Seed,
    SetSplit,
)


def evaluate(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA", help="BEIR, MIRACL or MS MARCO folders, reranking sets, ir-datasets:NAME, mteb:NAME."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(help="default, a folder, owner/name, embedder:NAME or colbert:NAME; repeat it to compare."),
    ] = None,
    first_stage: FirstStage = "bm25",
    depth: Annotated[str, typer.Option(help="How many candidates to rerank, as in 20,50,100.")] = "100",
    measures: Annotated[
        str, typer.Option(help="nDCG@k, MRR@k, recall@k, MAP, precision@k, hit_rate@k; the first decides.")
    ] = "nDCG@10,MRR@10,recall@10,MAP,hit_rate@1",
    queries: NumQueries = None,
    split: SetSplit = None,
    seed: Seed = 0,
    examples: Annotated[int, typer.Option(min=0, help="Queries to show that a model hurts most.")] = 3,
    json: Json = False,
    markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write the tables there too.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a report with plots.")] = None,
    cache: Cache = None,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Measure time per query.")] = True,
    engine: Engine = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_length: MaxLength = None,
    local_files_only: Offline = False,
    debug: Debug = False,
) -> None:
    """Measure whether a reranker helps: with and without it, on your data, and at what cost.

    Prints verdicts and tables in Markdown. Interrupted, a run with --cache goes on where it was.
    """
    from secondpass.command import eval as command
    from secondpass.command.sets import Loading, Sets

    loading = Loading(
        engine=engine,
        device=device,
        dtype=dtype,
        max_length=max_length,
        local_files_only=local_files_only,
        cache=cache,
    )
    sets = Sets(sources=data, first_stage=first_stage, split=split, num_queries=queries, seed=seed, loading=loading)
    settings = command.Settings(models=model or ["default"], depths=depth, measures=measures, is_timed=latency)
    command.evaluate(sets, settings, command.Output(is_json=json, markdown=markdown, html=html, examples=examples))
