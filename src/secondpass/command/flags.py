"""Flags that several commands have, and the models that they open.

A dataclass here is one parameter of a command; its fields are the flags (see `secondpass.cli`).
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secondpass.atomic import at_home
from secondpass.command.plain import option
from secondpass.errors import WrongUse

if TYPE_CHECKING:
    from secondpass.colbert.colbert import ColBERT
    from secondpass.embedder import Embedder
    from secondpass.reranker import Reranker

EMBEDDER, COLBERT = "embedder:", "colbert:"

Json = Annotated[bool, option("--json", help="Print JSON with everything.")]
Model = Annotated[
    str,
    option(
        metavar="MODEL",
        help="auto (what fits the texts), default (embedded), multilingual, a folder, or owner/name[@revision].",
    ),
]
Revision = Annotated[str | None, option(help="Branch, tag or commit of a model of the hub.")]
Offline = Annotated[bool, option("--local-files-only", "--offline", help="Never use the network.")]
Seed = Annotated[int, option(min=0, help="Of draws.")]
SetSplit = Annotated[str | None, option(help="Else the first there is of test, dev, validation, train.")]
Search = Annotated[str, option(metavar="bm25|embedder:NAME", help="What finds negatives in BEIR folders.")]
GradientCheckpointing = Annotated[bool, option("--gradient-checkpointing", help="Less memory, a third more time.")]
TokenBudget = Annotated[int | None, option(min=1, help="Tokens in one forward pass.")]
TrainedOn = Annotated[str, option(metavar="auto|cpu|cuda|mps", help="Where it is trained.")]
TrainedIn = Annotated[str, option(metavar="auto|float32|bfloat16", help="Of the computation; weights are float32.")]
JudgedSplit = Annotated[str | None, option(help="Judgements of BEIR folders; else train.")]


class On(str, Enum):
    """Where it is computed."""

    process = "process"
    ray = "ray"


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports and opening without the garbage collector: there is no garbage in what they make, and looking for it
    takes a tenth of a start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def wrong_use() -> Iterator[None]:
    """What is a ValueError in Python is wrong use on the command line."""
    try:
        yield
    except ValueError as error:
        raise WrongUse(str(error)) from error


def refuse_idle(flags: object, usual: object, names: Collection[str], needed: str) -> None:
    """Raises ValueError for the first of the named flags that is not as usual, where `needed` is not there."""
    for field in fields(type(flags)):  # type: ignore[arg-type]
        if field.name in names and getattr(flags, field.name) != getattr(usual, field.name):
            raise ValueError(f"--{field.name.replace('_', '-')} does nothing without {needed}")


def output_folder(written: str) -> Path:
    """What --output names. Raises WrongUse for "" (a variable without value), which would be the current folder."""
    if not written.strip():
        raise WrongUse("--output is empty; name a folder")
    return at_home(written)


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a model is opened."""

    engine: Annotated[str, option(metavar="auto|torch|openvino", help="What runs the model.")] = "auto"
    device: Annotated[str, option(metavar="auto|cpu|cuda|mps", help="Where torch runs it.")] = "auto"
    dtype: Annotated[
        str,
        option(
            metavar="auto|float32|bfloat16|float16|int8",
            help="auto: by model and processor; int8: encoders on the CPU; float16: on a GPU.",
        ),
    ] = "auto"
    max_length: Annotated[int | None, option(min=1, help="Most tokens of a pair; else the model's.")] = None
    local_files_only: Offline = False

    def imported(self, model: str) -> None:
        """Import what opening a model takes, before a thread opens it: imports of two threads take turns, and what
        opening does without Python's lock would begin later.
        """
        from secondpass import reranker  # noqa: F401

        if self.engine != "torch" and model in ("auto", "default"):
            from secondpass.checkpoint.graph import import_openvino

            import_openvino()

    def reranker(
        self,
        model: str,
        *,
        revision: str | None = None,
        long_documents: str = "truncate",
        calibration: str | None = None,
        score_cache: str | None = None,
        passage_cache_bytes: int | None = None,
    ) -> Reranker:
        from secondpass.reranker import Reranker

        with wrong_use():
            return Reranker(
                model,
                revision=revision,
                engine=self.engine,
                device=self.device,
                dtype=self.dtype,
                max_length=self.max_length,
                long_documents=long_documents,
                local_files_only=self.local_files_only,
                calibration=calibration,
                score_cache=score_cache,
                passage_cache_bytes=passage_cache_bytes,
            )

    def embedder(self, model: str, *, max_length: int | None = None) -> Embedder:
        """max_length: of a text, where it is not what the makers say; the flag is about pairs."""
        from secondpass.embedder import Embedder

        with wrong_use():
            return Embedder(
                model,
                device=self.device,
                dtype=self.dtype,
                max_length=max_length,
                local_files_only=self.local_files_only,
            )

    def colbert(self, model: str) -> ColBERT:
        from secondpass.colbert.colbert import ColBERT

        with wrong_use():
            return ColBERT(
                model,
                device=self.device,
                dtype=self.dtype,
                max_length=self.max_length,
                local_files_only=self.local_files_only,
            )

    def scorer(
        self,
        model: str,
        *,
        revision: str | None = None,
        score_cache: str | None = None,
        passage_cache_bytes: int | None = None,
    ) -> Reranker | Embedder | ColBERT:
        """A reranker, or what embedder:NAME and colbert:NAME say."""
        if model.startswith(EMBEDDER) and model != EMBEDDER:
            return self.embedder(model.removeprefix(EMBEDDER), max_length=self.max_length)
        if model.startswith(COLBERT) and model != COLBERT:
            return self.colbert(model.removeprefix(COLBERT))
        return self.reranker(
            model, revision=revision, score_cache=score_cache, passage_cache_bytes=passage_cache_bytes
        )
