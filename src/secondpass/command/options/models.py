"""The options of `secondpass models` and `secondpass pull`."""

from __future__ import annotations

from typing import Annotated

import typer

from secondpass.command.options import Debug, Json, Revision


def models(json: Json = False, debug: Debug = False) -> None:
    """List the known models and what is in the cache."""
    from secondpass.command import models as command

    command.models(is_json=json)


def pull(
    model: Annotated[str, typer.Argument(metavar="NAME[@REVISION]", help="A model of the hub.")],
    revision: Revision = None,
    engine: Annotated[
        str, typer.Option(help="openvino fetches the exported graph in place of the weights.")
    ] = "auto",
    debug: Debug = False,
) -> None:
    """Fetch a model, and print its commit and folder."""
    from secondpass.command import models as command

    command.pull(model, revision=revision, engine=engine)
