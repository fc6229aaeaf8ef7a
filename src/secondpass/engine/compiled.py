"""Compiled graphs, kept in the user's cache folder: compiling one takes longer than all else of a start.

A file appears whole or not at all, its name holds what it was made from and for which processor, and whatever is
wrong with the folder or with a file only costs the time of compiling. OpenVINO's own cache writes in place, where a
second process would map half a file.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secondpass import __version__
from secondpass.atomic import user_folder, whole_file
from secondpass.checkpoint.graph import import_openvino
from secondpass.engine.cpu.threads import processor_of_kernel
from secondpass.errors import CheckpointError

SUFFIX = ".blob"
# Weights of a graph that is kept: smaller ones are compiled at once, larger ones would fill the disk.
MIN_BYTES, MAX_BYTES = 16 << 20, 256 << 20
MAX_FILES = 4


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """model is OpenVINO's, compiled with settings; dtype is what it computes in, reason says in words why.

    memory is the file that the model's weights lie in: it must outlive the model.
    """

    model: Any
    settings: Mapping[str, Any]
    dtype: str
    reason: str
    memory: Any = None


def kept_or_compiled(core: Any, graph: Path, asked: Mapping[str, Any], compiles: Callable[[], Compiled]) -> Compiled:
    """The graph as it is asked for: the one that is kept, which is not parsed again, or what `compiles` makes."""
    try:
        size = graph.with_suffix(".bin").stat().st_size
        file = user_folder("cache") / _name(graph, asked)
    except (OSError, RuntimeError):  # one file (ONNX), or no home
        return compiles()
    if not MIN_BYTES <= size <= MAX_BYTES:
        return compiles()
    if file.is_file():
        try:
            return _imported(core, file)
        except (RuntimeError, OSError, ValueError, TypeError, KeyError, struct.error):
            with suppress(OSError):
                file.unlink()
    compiled = compiles()
    with suppress(OSError, CheckpointError, RuntimeError):
        _keep(file, compiled)
    return compiled


# After the model stands what else is known of it, as JSON, and at the end how long that is.
_LENGTH = struct.Struct("<Q")


def _imported(core: Any, file: Path) -> Compiled:
    content = np.memmap(file, np.uint8, "c")  # OpenVINO shares no memory that must not be written to
    (length,) = _LENGTH.unpack(content[-_LENGTH.size :].tobytes())
    stop = len(content) - _LENGTH.size - length
    if stop <= 0:
        raise ValueError(f"{file} is not whole")
    facts = json.loads(content[stop : -_LENGTH.size].tobytes())
    shared = import_openvino().Tensor(content[:stop], shared_memory=True)
    model = core.import_model(shared, "CPU", facts["settings"])
    return Compiled(
        model=model, settings=facts["settings"], dtype=facts["dtype"], reason=facts["reason"], memory=content
    )


def _name(graph: Path, asked: Mapping[str, Any]) -> str:
    """Of graph, wishes and processor, and then of what changes with an update: the older file is replaced."""
    wishes = sorted((name, str(value)) for name, value in asked.items())
    which = (str(graph.resolve()), wishes, processor_features())
    states = [(each.stat().st_size, each.stat().st_mtime_ns) for each in (graph, graph.with_suffix(".bin"))]
    made = (__version__, import_openvino().__version__, states)
    first, second = (hashlib.sha256(repr(facts).encode()).hexdigest()[:16] for facts in (which, made))
    return f"{first}-{second}{SUFFIX}"


def processor_features() -> list[str]:
    """What the kernels are chosen by; none where the system does not say."""
    return sorted(processor_of_kernel().features)


def _keep(file: Path, compiled: Compiled) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {"settings": dict(compiled.settings), "dtype": compiled.dtype, "reason": compiled.reason}
    facts = json.dumps(known).encode()
    with whole_file(file) as partial, partial.open("wb") as stream:
        stream.write(compiled.model.export_model().getvalue())
        stream.write(facts + _LENGTH.pack(len(facts)))
    older = sorted(file.parent.glob(f"*{SUFFIX}"), key=lambda each: each.stat().st_mtime, reverse=True)
    same = file.name.split("-")[0]
    for rank, each in enumerate(older):
        if each != file and (rank >= MAX_FILES or each.name.startswith(same)):
            each.unlink()
