"""The options of `secondpass rank`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from secondpass.command.options import Debug, Device, Dtype, Engine, Json, MaxLength, Model, Offline, Revision


class Split(str, Enum):
    auto = "auto"
    line = "line"
    paragraph = "paragraph"
    whole = "whole"


class Long(str, Enum):
    truncate = "truncate"
    chunk = "chunk"


def rank(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is asked.")],
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Files, folders, or - for standard input.")
    ] = None,
    passage: Annotated[list[str] | None, typer.Option(help="A passage; repeat it for more.")] = None,
    split: Annotated[
        Split, typer.Option(help="How texts are cut; auto: paragraphs where blank lines part them, else lines.")
    ] = Split.auto,
    fields: Annotated[str, typer.Option(help="Fields of JSON to read, as in title,body; else text.")] = "",
    top: Annotated[int, typer.Option(min=0, help="How many to show; 0: all.")] = 10,
    json: Json = False,
    explain: Annotated[bool, typer.Option("--explain", help="Add tokens, truncation, timing and engine.")] = False,
    budget_ms: Annotated[
        float | None, typer.Option(min=0.001, help="Milliseconds for ranking; passages beyond stay unscored, last.")
    ] = None,
    model: Model = "default",
    revision: Revision = None,
    max_length: MaxLength = None,
    long: Annotated[Long, typer.Option(help="Long passages: cut as the model's makers do, or read in windows.")] = (
        Long.truncate
    ),
    engine: Engine = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    calibration: Annotated[
        str | None, typer.Option(metavar="FILE", help="What `secondpass calibrate` fitted, for the probabilities.")
    ] = None,
    local_files_only: Offline = False,
    debug: Debug = False,
) -> None:
    """Rank passages by how well they answer a query.

    Reads .txt, .md, .jsonl and .json, gzipped or not, a folder of them, a BEIR folder, or standard input. Prints a
    table on a terminal, else tab-separated lines: rank (from 1), probability, score (raw logit), source, text.
    """
    from secondpass.command import rank as command
    from secondpass.data.passages import Reading

    named = tuple(name.strip() for name in fields.split(",") if name.strip())
    options = command.Options(
        model=model,
        revision=revision,
        engine=engine,
        device=device,
        dtype=dtype,
        max_length=max_length,
        long_documents=long.value,
        local_files_only=local_files_only,
        calibration=calibration,
    )
    command.rank(
        query,
        paths or [],
        passage or [],
        how=Reading(split=split.value, fields=named),
        options=options,
        output=command.Output(top=top, is_json=json, is_explained=explain, budget_ms=budget_ms),
    )
