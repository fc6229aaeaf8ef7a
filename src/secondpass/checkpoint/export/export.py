"""Export: an encoder cross-encoder as a graph that runs without torch, or an adapter merged into its base.

What comes out is an ordinary folder: settings, tokenizer, and the graph in openvino/ or onnx/, where the openvino
engine and other libraries look for it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secondpass.atomic import whole_folder, write_text
from secondpass.checkpoint.adapter import write_merged
from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.checkpoint.layout import LENGTH, REPORT, tokenizer_files

if TYPE_CHECKING:
    from secondpass.checkpoint.export.trace import Inputs

DTYPES = ("float32", "bfloat16", "int8")
# What is read beside the weights and the tokenizer.
SETTINGS = (LENGTH, "config_sentence_transformers.json", "calibration.json")


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
    inputs by whose ranges activations become int8 too. overwrite replaces what an export wrote, and nothing else.
    Raises FileExistsError for a folder that may not be written over, ValueError for what cannot be exported so,
    CheckpointError where it cannot be written.
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
        write_text(partial / REPORT, json.dumps({"model": checkpoint.name, "format": format}) + "\n")
    return folder


def _refuse(checkpoint: Checkpoint, folder: Path, *, overwrite: bool) -> None:
    """Before anything is computed: what may not be written over."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; give a new folder")
    if not folder.exists():
        return
    if Path.cwd().is_relative_to(folder.resolve()):
        raise FileExistsError(f"{folder} is the current folder or holds it; give a new folder")
    own = [path for path in (checkpoint.folder, checkpoint.adapter) if path is not None and path.exists()]
    if any(path.resolve().is_relative_to(folder.resolve()) for path in own):
        raise FileExistsError(f"{folder} holds the model that is to be exported; give a new folder")
    if not any(folder.iterdir()):
        return
    if not (folder / REPORT).is_file():
        raise FileExistsError(f"{folder} is not empty, and holds no {REPORT} of an earlier export; give a new folder")
    if not overwrite:
        raise FileExistsError(f"{folder} is not empty; give a new folder, or --force to replace the export there")


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
    write_merged(checkpoint, folder)


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
    # as it was understood, since a graph's weights tell no labels
    (folder / "config.json").write_text(json.dumps(dict(checkpoint.config), indent=2) + "\n", "utf-8")
