"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer


def _set_debug(context: typer.Context, value: bool) -> None:
    if value:
        context.find_root().obj.debug = True


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON with everything.")]

Model = Annotated[str, typer.Option(help="default (embedded), a folder, or owner/name[@revision] of the hub.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model of the hub.")]
Engine = Annotated[str, typer.Option(help="auto, torch or openvino.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Most tokens of a pair; else the model's.")]
Offline = Annotated[bool, typer.Option("--local-files-only", "--offline", help="Never use the network.")]

FirstStage = Annotated[str, typer.Option(help="bm25, run:FILE (a path, or in the set), embedder:NAME.")]
NumQueries = Annotated[int | None, typer.Option(min=1, help="Only so many queries of each set, drawn once.")]
SetSplit = Annotated[str | None, typer.Option(help="Else the first there is of test, dev, validation, train.")]
Seed = Annotated[int, typer.Option(help="Of draws.")]
Cache = Annotated[str | None, typer.Option(metavar="FILE", help="Keep scores there, to go on or run again.")]
