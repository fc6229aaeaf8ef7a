"""What a reranker is opened with, and opening it: checkpoint, reader and engine, each once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

from secondpass.calibration import Calibration, as_calibration
from secondpass.checkpoint.checkpoint import MULTILINGUAL, Checkpoint, has_multilingual, open_checkpoint
from secondpass.engine.open import open_engine
from secondpass.errors import CheckpointError
from secondpass.public import check_kind, check_whole
from secondpass.scoring.scoring import Other, Scoring
from secondpass.text.reader import Reader
from secondpass.types import Run

logger = logging.getLogger(__name__)
AUTO = "auto"  # the model: what fits the texts
LONG_DOCUMENTS = ("truncate", "chunk")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options of `Reranker`, which says what they mean."""

    model: str | Path = "default"
    revision: str | None = None
    engine: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    max_length: int | None = None
    max_query_length: int | None = None
    truncation: str | None = None
    long_documents: str = "truncate"
    instruction: str | None = None
    token_budget: int | None = None
    local_files_only: bool = False
    cutoff_layer: int | None = None
    compress_ratio: int | None = None
    compress_layers: Sequence[int] | None = None
    score_cache: str | Path | None = None
    calibration: Calibration | str | Path | None = None
    special_tokens: str = "text"
    passage_cache_bytes: int | None = None

    def __post_init__(self) -> None:
        check_whole("max_query_length", self.max_query_length, 1)
        check_whole("token_budget", self.token_budget, 1)
        check_kind("instruction", self.instruction, str, "a text")
        check_whole("passage_cache_bytes", self.passage_cache_bytes, 0)
        if self.long_documents not in LONG_DOCUMENTS:
            choices = " or ".join(map(repr, LONG_DOCUMENTS))
            raise ValueError(f"long_documents is {self.long_documents!r}; give {choices}")


def is_auto(model: str | Path) -> bool:
    """Whether the texts choose the model. A folder of this name is a model."""
    return model == AUTO and not Path(model).is_dir()


def open_scoring(options: ModelOptions) -> Scoring:
    """A model ready to score; its engine is a ReopeningEngine. Raises what `Reranker` raises.

    "auto" is the embedded model, and where the package is installed the multilingual one for what that cannot read. A
    calibration is of one model, so with one the embedded model reads everything.
    """
    if not is_auto(options.model):
        return _open(options)
    own = _open(replace(options, model="default"))
    if options.calibration is not None or not has_multilingual():
        return own
    return replace(own, other=Other(MULTILINGUAL, lambda: _open(replace(options, model=MULTILINGUAL))))


def _told(checkpoint: Checkpoint, key: str) -> tuple[str, ...] | None:
    return tuple(checkpoint.config[key]) if key in checkpoint.config else None


def _open(options: ModelOptions) -> Scoring:
    calibration = as_calibration(options.calibration)
    checkpoint = open_checkpoint(
        options.model,
        revision=options.revision,
        local_files_only=options.local_files_only,
        graph=options.engine == "openvino",
    )
    if calibration is not None:
        _check_model(calibration, checkpoint.name)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: checkpoint.tokenizer)  # read meanwhile; what is wrong with it is said when it is used
        engine = open_engine(
            checkpoint,
            engine=options.engine,
            device=options.device,
            dtype=options.dtype,
            token_budget=options.token_budget,
            score_cache=options.score_cache,
            passage_cache_bytes=options.passage_cache_bytes,
        )
    run = changed(Run(), options.cutoff_layer, options.compress_ratio, options.compress_layers)
    engine.check(run)
    reader = _reader(checkpoint, options, engine.facts.max_length)
    limits = reader.limits(
        _usual_length(checkpoint, reader) if options.max_length is None else options.max_length,
        reader.recipe.truncation if options.truncation is None else options.truncation,
    )
    return Scoring(
        reader=reader,
        engine=engine,
        limits=limits,
        run=run,
        calibration=calibration,
        model=checkpoint.name,
        scripts=_told(checkpoint, "scripts"),
        languages=_told(checkpoint, "languages"),
        revision=checkpoint.revision,
    )


def _check_model(calibration: Calibration, model: str) -> None:
    """Warn of a calibration of another model; a folder may have been moved, so by the last part of the name."""
    fitted = str(calibration.model.get("model", model))
    if Path(fitted).name != Path(model).name:
        logger.warning("the calibration was fitted to %s; if %s is another, probabilities are wrong", fitted, model)


def _usual_length(checkpoint: Checkpoint, reader: Reader) -> int:
    """The length that the checkpoint asks for. Raises CheckpointError where no text has room in it."""
    usual = min(checkpoint.usual_length or reader.recipe.default_length or reader.longest, reader.longest)
    try:
        reader.limits(usual, reader.recipe.truncation)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.name}: {error}") from error
    return usual


def _reader(checkpoint: Checkpoint, options: ModelOptions, longest: int) -> Reader:
    recipe = checkpoint.recipe.instructed(options.instruction)
    tokenizer = checkpoint.tokenizer.reading(options.special_tokens)
    known = (recipe.max_length, tokenizer.max_length, longest)
    return Reader(
        recipe=recipe,
        tokenizer=tokenizer,
        longest=min(length for length in known if length is not None),
        max_query_length=options.max_query_length,
        has_windows=options.long_documents == "chunk",
        folds_han=checkpoint.config.get("folds_han") is True,
    )


def changed(
    run: Run, cutoff_layer: int | None, compress_ratio: int | None, compress_layers: Sequence[int] | None
) -> Run:
    """`run` with the options that are given. Raises TypeError for one of another kind."""
    check_kind("compress_ratio", compress_ratio, Integral, "a whole number")
    check_kind("compress_layers", compress_layers, Iterable, "a list of layers")
    check_kind("cutoff_layer", cutoff_layer, Integral, "a layer's number; score_layers takes several")
    return Run(
        cutoff_layers=run.cutoff_layers if cutoff_layer is None else (cutoff_layer,),
        compress_ratio=run.compress_ratio if compress_ratio is None else compress_ratio,
        compress_layers=run.compress_layers if compress_layers is None else tuple(compress_layers),
    )
