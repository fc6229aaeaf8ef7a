"""The options of `secondpass calibrate`."""

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
    Model,
    NumQueries,
    Offline,
    Revision,
    Seed,
    SetSplit,
)


def calibrate(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help='Sets as for eval, or lines with "query", "text", "label".')
    ],
    model: Model = "default",
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Else calibration.json in the model's folder.")
    ] = None,
    precision: Annotated[float | None, typer.Option(help="Find the threshold for it, as 0.9.")] = None,
    first_stage: FirstStage = "bm25",
    depth: Annotated[int, typer.Option(min=1, help="Candidates of each query.")] = 30,
    queries: NumQueries = None,
    split: SetSplit = None,
    seed: Seed = 0,
    cache: Cache = None,
    revision: Revision = None,
    engine: Engine = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_length: MaxLength = None,
    local_files_only: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fit probabilities to labelled pairs, and a threshold for a wanted precision.

    Says how far they hold on pairs that were held out. Reranker(..., calibration=FILE) uses them.
    """
    from secondpass.command import calibrate as command
    from secondpass.command.sets import Loading, Sets

    loading = Loading(
        revision=revision,
        engine=engine,
        device=device,
        dtype=dtype,
        max_length=max_length,
        local_files_only=local_files_only,
        cache=cache,
    )
    sets = Sets(sources=data, first_stage=first_stage, split=split, num_queries=queries, seed=seed, loading=loading)
    settings = command.Settings(model=model, depth=depth, precision=precision, output=output, is_json=json)
    command.calibrate(sets, settings)
