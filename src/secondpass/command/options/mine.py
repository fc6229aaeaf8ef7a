"""The options of `secondpass mine`."""

from __future__ import annotations

from typing import Annotated

import typer

from secondpass.command.options import Debug


def mine(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="BEIR folders, or JSONL files with queries and positives.")
    ],
    output: Annotated[str, typer.Option(help="File to write, .jsonl or .jsonl.gz.")],
    search: Annotated[str, typer.Option(help="bm25, or embedder:NAME.")] = "bm25",
    judge: Annotated[
        str | None, typer.Option(help="A reranker (or embedder:NAME) whose scores filter and are kept.")
    ] = None,
    negatives: Annotated[int, typer.Option(min=1, help="Per query.")] = 15,
    first: Annotated[int, typer.Option(min=0, help="Ranks to leave out at the top.")] = 0,
    depth: Annotated[int, typer.Option(min=1, help="Ranks to look at.")] = 100,
    margin: Annotated[
        float | None, typer.Option(help="A negative scores so much below the lowest positive, at least.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="A negative scores this share of the lowest positive, at most.")
    ] = None,
    spread: Annotated[bool, typer.Option("--spread", help="Evenly from all ranks, not the first ones.")] = False,
    split: Annotated[str | None, typer.Option(help="Judgements of BEIR folders; else train.")] = None,
    debug: Debug = False,
) -> None:
    """Find hard negatives for training. Interrupted, it goes on where it stopped when it is called again."""
    from secondpass.command import mine as command
    from secondpass.errors import WrongUse
    from secondpass.training.mining import MiningSettings

    try:
        settings = MiningSettings(
            num_negatives=negatives, first=first, depth=depth, margin=margin, ratio=ratio, is_spread=spread
        )
    except ValueError as error:
        raise WrongUse(str(error)) from error
    command.mine(data, output, source=command.Source(search=search, judge=judge, split=split), settings=settings)
