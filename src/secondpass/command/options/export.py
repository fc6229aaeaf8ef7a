"""The options of `secondpass export`."""

from __future__ import annotations

from typing import Annotated

import typer

from secondpass.command.options import Debug, Json, Offline, Revision


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A reranker: a folder or owner/name; default.")],
    output: Annotated[str, typer.Option(metavar="FOLDER", help="Where the result goes.")],
    format: Annotated[
        str, typer.Option(help="openvino, onnx, or safetensors: an adapter merged into its base.")
    ] = "openvino",
    dtype: Annotated[
        str | None, typer.Option(help="How matrices are stored: float32, bfloat16 or int8; else float32.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="FILE", help="Pairs by which activations become int8 too (openvino).")
    ] = None,
    check: Annotated[str | None, typer.Option(metavar="FILE", help="Pairs to compare on; else built in.")] = None,
    revision: Revision = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FOLDER.")] = False,
    json: Json = False,
    local_files_only: Offline = False,
    debug: Debug = False,
) -> None:
    """Write a model as a graph that runs without torch, and compare it with the original.

    FILE has lines such as {"query": "...", "passage": "..."}, FlagEmbedding's {"query", "pos", "neg"}, or
    query<TAB>passage.
    """
    from secondpass.command import export as command

    options = command.Options(
        format=format,
        dtype=dtype,
        calibration=calibration,
        check=check,
        revision=revision,
        overwrite=force,
        local_files_only=local_files_only,
    )
    command.run(model, output, options, is_json=json)
