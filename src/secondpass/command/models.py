"""`secondpass models` and `secondpass pull`: what is known, what is here, and fetching more."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from secondpass.command import output
from secondpass.command.flags import Json, Revision, wrong_use
from secondpass.command.plain import argument, option
from secondpass.errors import SecondpassError

if TYPE_CHECKING:
    from secondpass.checkpoint.hub import CachedModel
    from secondpass.text.catalogue import Known


def models(*, json: Json = False) -> None:
    """List the known models and what is in the cache."""
    from secondpass.checkpoint.hub import cached
    from secondpass.text.catalogue import KNOWN

    by_name: dict[str, list[CachedModel]] = {}
    for model in cached():
        by_name.setdefault(model.name, []).append(model)
    known = [(item, by_name.pop(item.name, [])) for item in KNOWN]
    every = known + [(_unknown(here[0]), here) for here in by_name.values()]
    if json:
        output.as_json([_as_object(item, here) for item, here in every])
        return
    rows = [{name: str(value or "") for name, value in asdict(item).items()} for item, _ in every]
    for row, (item, here) in zip(rows, every, strict=True):
        row["cached"] = _cached(item, here)
    if sys.stdout.isatty():
        output.models_table(rows)
    else:
        output.tab_separated(list(row.values()) for row in rows)


def pull(
    model: Annotated[str, argument(metavar="NAME[@REVISION]", help="A model of the hub.")],
    *,
    revision: Revision = None,
    engine: Annotated[
        str,
        option(metavar="auto|openvino", help="openvino: the exported graph in place of the weights."),
    ] = "auto",
) -> None:
    """Fetch a model, and print its commit and folder."""
    from secondpass.checkpoint.checkpoint import open_checkpoint

    with wrong_use():
        checkpoint = open_checkpoint(model, revision=revision, graph=engine == "openvino")
    if sys.stdout.isatty():
        commit = checkpoint.revision or "none: it is here already"
        output.named_values([("commit", commit), ("folder", str(checkpoint.folder))])
    else:
        output.tab_separated([[checkpoint.revision or "", checkpoint.folder]])


def _unknown(model: CachedModel) -> Known:
    """A row for a cached model that is not in the list; the family says whether it could rank."""
    from secondpass.json_file import read_json
    from secondpass.text.catalogue import Known
    from secondpass.text.families import recipe_for

    family, longest = "", 0
    try:
        config = read_json(model.folder / "config.json")
        family = recipe_for(config).family
        longest = int(config.get("max_position_embeddings") or 0)
    except SecondpassError:
        pass  # of another kind, or not whole
    return Known(
        name=model.name,
        family=family,
        languages="",
        parameters="",
        max_length=longest,
        licence="",
        use="",
        loads_as="",
    )


def _cached(item: Known, here: Sequence[CachedModel]) -> str:
    if item.name == "default":
        return "embedded"
    return ", ".join(f"{model.revision[:7]} ({_size(model.size_bytes)})" for model in here)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _as_object(item: Known, here: Sequence[CachedModel]) -> dict[str, Any]:
    return {**asdict(item), "cached": [asdict(model) | {"folder": str(model.folder)} for model in here]}
