"""Compiled graphs, kept in the user's cache folder: compiling one takes longer than all else of a start.

A file appears whole or not at all, its name holds what it was made from and for which processor, and whatever is
wrong with the folder or with a file only costs the time of compiling. OpenVINO's own cache writes in place, where a
second process would map half a file.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from secondpass.atomic import whole_file
from secondpass.checkpoint.graph import import_openvino
from secondpass.engine.cpu.threads import CPUINFO, from_cpuinfo
from secondpass.errors import CheckpointError

SUFFIX = ".blob"
# Weights of a graph that is kept: smaller ones are compiled at once, larger ones would fill the disk.
MIN_BYTES, MAX_BYTES = 16 << 20, 256 << 20
MAX_FILES = 4


def cache_folder() -> Path:
    """Where compiled graphs are kept, for the user of this machine. Raises RuntimeError where there is no home."""
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "secondpass"
    if sys.platform == "win32":
        return home / "AppData" / "Local" / "secondpass" / "cache"
    return home / ".cache" / "secondpass"


def kept_or_compiled(
    core: Any, graph: Path, settings: Mapping[str, Any], compiles: Callable[[], Any], *, output: str
) -> Any:
    """OpenVINO's compiled model of `graph` with one output: the one that is kept, or what `compiles` makes."""
    try:
        size = graph.with_suffix(".bin").stat().st_size
        file = cache_folder() / _name(graph, settings, output)
    except (OSError, RuntimeError):  # one file (ONNX), or no home
        return compiles()
    if not MIN_BYTES <= size <= MAX_BYTES:
        return compiles()
    if file.is_file():
        try:
            return core.import_model(import_openvino().Tensor(np.memmap(file, np.uint8, "r")), "CPU", dict(settings))
        except (RuntimeError, OSError, ValueError):
            with suppress(OSError):
                file.unlink()
    model = compiles()
    with suppress(OSError, CheckpointError, RuntimeError):
        _keep(file, model)
    return model


def _name(graph: Path, settings: Mapping[str, Any], output: str) -> str:
    """Of graph, settings and processor, and then of what changes with an update: the older file is replaced."""
    features = sorted(from_cpuinfo(CPUINFO.read_text("utf-8"), "").features) if CPUINFO.is_file() else []
    which = (str(graph.resolve()), sorted((name, str(value)) for name, value in settings.items()), output, features)
    states = [(each.stat().st_size, each.stat().st_mtime_ns) for each in (graph, graph.with_suffix(".bin"))]
    made = (import_openvino().__version__, states)
    first, second = (hashlib.sha256(repr(facts).encode()).hexdigest()[:16] for facts in (which, made))
    return f"{first}-{second}{SUFFIX}"


def _keep(file: Path, model: Any) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with whole_file(file) as partial:
        partial.write_bytes(model.export_model().getvalue())
    older = sorted(file.parent.glob(f"*{SUFFIX}"), key=lambda each: each.stat().st_mtime, reverse=True)
    same = file.name.split("-")[0]
    for rank, each in enumerate(older):
        if each != file and (rank >= MAX_FILES or each.name.startswith(same)):
            each.unlink()
