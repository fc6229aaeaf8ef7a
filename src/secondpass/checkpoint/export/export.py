"""Export: an encoder cross-encoder as a graph that runs without torch, or an adapter merged into its base.

What comes out is an ordinary folder: settings, tokenizer, and the graph in openvino/ or onnx/, where the openvino
engine and other libraries look for it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.adapter import save_merged
from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.checkpoint.save import tokenizer_files
from secondpass.errors import CheckpointError

DTYPES = ("float32", "bfloat16", "int8")
# What is read beside the weights and the tokenizer.
SETTINGS = ("config.json", "sentence_bert_config.json", "config_sentence_transformers.json", "calibration.json")
Inputs = Mapping[str, NDArray[np.int64]]  # of one call, each (N, L)


def export(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    format: str = "openvino",
    dtype: str | None = None,
    calibration: Sequence[Inputs] = (),
    overwrite: bool = False,
) -> Path:
    """Write `checkpoint` to `folder`, which appears whole or not at all, and return it.

    format: "openvino", "onnx", or "safetensors" for an adapter merged into its base. dtype: how matrices are stored,
    "float32" unless given, "bfloat16" or "int8" (one scale per row); of safetensors always the base's. calibration:
    inputs by whose ranges activations become int8 too. Raises FileExistsError for a folder that is not empty, unless
    `overwrite`; ValueError for what cannot be exported so; CheckpointError where it cannot be written.
    """
    if format not in WRITERS:
        raise ValueError(f"format is {format!r}; give {' or '.join(map(repr, WRITERS))}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; give {' or '.join(map(repr, DTYPES))}")
    if calibration and dtype != "int8":
        raise ValueError("calibration texts are for dtype='int8'")
    _refuse(checkpoint, folder, overwrite=overwrite)
    with whole_folder(folder) as partial:
        WRITERS[format](checkpoint, partial, dtype, calibration)
    return folder


def _refuse(checkpoint: Checkpoint, folder: Path, *, overwrite: bool) -> None:
    """Before anything is computed: what may not be written over."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; give a new folder")
    if not folder.exists():
        return
    own = [place for place in (checkpoint.folder, checkpoint.adapter) if place is not None and place.exists()]
    if any(place.resolve().is_relative_to(folder.resolve()) for place in own):
        raise FileExistsError(f"{folder} holds the model that is to be exported; give a new folder")
    if any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} is not empty; give a new folder, or --force to replace it")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which then takes the place of `folder`. On an error nothing of it is left.

    Raises CheckpointError where the disk is full or the place cannot be written to.
    """
    partial, old = (folder.with_name(f".{folder.name}.{what}-{os.getpid()}") for what in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error}); what was there before is untouched") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def _write_openvino(checkpoint: Checkpoint, folder: Path, dtype: str | None, calibration: Sequence[Inputs]) -> None:
    from secondpass.checkpoint.export.openvino import write_openvino
    from secondpass.checkpoint.export.trace import traceable

    _copy_settings(checkpoint, folder)
    (folder / "openvino").mkdir()
    file = folder / "openvino" / "openvino_model.xml"
    write_openvino(traceable(checkpoint), file, dtype or "float32", calibration)


def _write_onnx(checkpoint: Checkpoint, folder: Path, dtype: str | None, calibration: Sequence[Inputs]) -> None:
    from secondpass.checkpoint.export.onnx import write_onnx
    from secondpass.checkpoint.export.trace import traceable

    if calibration:
        raise ValueError("int8 activations are for format='openvino'; an ONNX graph gets int8 weights")
    _copy_settings(checkpoint, folder)
    (folder / "onnx").mkdir()
    write_onnx(traceable(checkpoint), folder / "onnx" / "model.onnx", dtype or "float32")


def _write_merged(checkpoint: Checkpoint, folder: Path, dtype: str | None, calibration: Sequence[Inputs]) -> None:
    if dtype is not None:
        raise ValueError(f"dtype is {dtype!r}; a merged model keeps the precision of its base")
    save_merged(checkpoint, folder)


WRITERS: dict[str, Callable[[Checkpoint, Path, str | None, Sequence[Inputs]], None]] = {
    "openvino": _write_openvino,
    "onnx": _write_onnx,
    "safetensors": _write_merged,
}


def _copy_settings(checkpoint: Checkpoint, folder: Path) -> None:
    settings = [checkpoint.folder / name for name in SETTINGS]
    for file in (*settings, *tokenizer_files(checkpoint.folder)):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
