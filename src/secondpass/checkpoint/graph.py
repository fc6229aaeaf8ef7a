"""Graphs of checkpoints: OpenVINO imported safely, what is no graph refused, and weights read without OpenVINO.

Names and offsets of the weights come from the .xml, numbers from the .bin. A matrix may be stored as int8 with one
scale per row, and a zero point: it is (stored - zero point) * scale. So a checkpoint that is shipped as a graph needs
no second copy of its weights for the torch engine.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.errors import CheckpointError
from secondpass.json_file import check_fetched, check_plain, parsed

# What the tracer puts before the name of a parameter of the module that `secondpass export` traces.
PREFIX = "self.model."
# What the graph of a model gives beside logits that reads query and passage apart: it is a bi-encoder too.
STATES = "token_states"
# Where a graph's notes (rt_info) say what the checkpoint called the parameters: JSON, {name: [[name, rows], ...]}.
NAMES = ("secondpass", "names")
_TYPES = {"i8": np.int8, "u8": np.uint8, "f16": np.float16, "f32": np.float32, "bf16": np.uint16}
# Vectors are stored as (1, C) or (1, 1, C), for the sums and products that they are used in.
_VECTOR = re.compile(r".*(bias|norm\.weight|word_match\.\w+|head\.scale)", re.IGNORECASE)
_COMPRESSED = "_compressed"  # how OpenVINO names what it has stored in half precision


MAX_XML = 256 << 20  # bytes; a graph of 24 blocks has one or two megabytes
_ONNX = b"\x08"  # the first field of its protocol buffer, the version of the format
_CONVERTER = "openvino.tools.ovc"
TELEMETRY = "openvino_telemetry"  # what reports to the maker of OpenVINO and NNCF over the network
_IMPORTING = Lock()  # a search opens its two models in two threads


def import_openvino() -> Any:
    """The module openvino, imported so that nothing leaves the machine.

    Its converter of models reports to its maker over the network that it was imported, unless the package for that
    cannot be imported; so it cannot while the converter is. The converter takes more than half of openvino's import,
    so it is left until somebody asks for `openvino.convert_model`. Where a program has imported openvino before, that
    program has decided.
    """
    with _IMPORTING:
        if "openvino" not in sys.modules:
            with absent(_CONVERTER):
                import openvino
            vars(openvino)["__getattr__"] = _late_attribute
        import openvino  # waits where a thread of the program is importing it: until then half of it is there
    return openvino


def _late_attribute(name: str) -> Any:
    if name != "convert_model":
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    with absent(TELEMETRY):
        from openvino.tools.ovc import convert_model
    return convert_model


@contextmanager
def absent(name: str) -> Iterator[None]:
    """A module that has not been imported cannot be here."""
    is_blocked = name not in sys.modules
    if is_blocked:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if is_blocked:
            del sys.modules[name]


def check_graph(file: Path) -> None:
    """Raises CheckpointError for what is no graph, before a library reads it and prints what it thinks of it.

    XML with a DOCTYPE is none: its entities may stand for gigabytes, and the libraries disagree on what they mean.
    """
    check_fetched(file.with_suffix(".bin") if file.suffix == ".xml" else file)
    try:
        if file.suffix == ".xml":
            check_plain(file, MAX_XML)
            content = file.read_text("utf-8")
            if "<!DOCTYPE" in content or "<!ENTITY" in content:
                raise CheckpointError(f"{file}: no graph of OpenVINO: plain UTF-8 without a DOCTYPE is needed")
        else:
            with file.open("rb") as stream:
                if stream.read(1) != _ONNX:
                    raise CheckpointError(f"{file}: no ONNX graph; export it again")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def read_constants(graph: Path, wanted: Collection[str] | None = None) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every (name, values) of the traced module's parameters, in float32, by the names of the source checkpoint.

    wanted: our own names of those that are asked for; None for all.
    A graph without these has our own names. Raises CheckpointError for one that is damaged or names no parameters.
    """
    root = _parsed(graph, wanted)
    stored = _stored(graph, root)
    notes = root.find("/".join(("rt_info", *NAMES)))
    theirs = {} if notes is None else _checked_names(parsed(notes.get("value", "{}"), str(graph)), graph)
    names = [name for name in stored if not name.endswith(("/scale", "/zero_point"))]
    names = names if wanted is None else [name for name in names if name in wanted]
    if not names:
        raise CheckpointError(f"{graph}: names no weights; it can be run by the openvino engine, not by torch")
    for name in names:
        values = _floats(stored[name])
        try:
            if (zero := stored.get(f"{name}/zero_point")) is not None:
                values -= zero.astype(np.float32)
            if (scale := stored.get(f"{name}/scale")) is not None:
                values *= scale.astype(np.float32)
        except ValueError as error:
            raise CheckpointError(f"{graph}: {name[:80]}: its scale is of another shape: {error}") from error
        values = values.reshape(-1) if _VECTOR.fullmatch(name) else values
        start = 0
        for part, num_rows in theirs.get(name, [(name, len(values))]):
            yield part, values[start : start + num_rows]
            start += num_rows


def _checked_names(notes: Any, graph: Path) -> dict[str, list[tuple[str, int]]]:
    try:
        return {str(ours): [(str(name), int(rows)) for name, rows in parts] for ours, parts in notes.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{graph}: its names of weights cannot be read: {error}") from error


def _floats(stored: NDArray[np.generic]) -> NDArray[np.float32]:
    """NumPy has no bfloat16: its bits, here as uint16, are the upper half of a float32's."""
    return (
        (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored.astype(np.float32)
    )


def _parsed(graph: Path, wanted: Collection[str] | None) -> ElementTree.Element:
    check_graph(graph)
    try:
        text = graph.read_text("utf-8")
        return ElementTree.fromstring(text if wanted is None else _cut_out(text, wanted))
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise CheckpointError(f"{graph}: its weights cannot be read: {type(error).__name__}: {error}") from error


def _cut_out(text: str, wanted: Collection[str]) -> str:
    """The graph with no layers but these constants: to parse all of the embedded model's takes 15 ms of its start."""
    names = "|".join(map(re.escape, wanted))
    layers = re.findall(rf'<layer [^>]*\bname="{re.escape(PREFIX)}(?:{names})\b.*?</layer>', text, re.DOTALL)
    notes = text.rfind("<rt_info>")
    rest = "</net>" if notes < 0 else text[notes:]
    return f"<net><layers>{''.join(layers)}</layers>{rest}"


def _stored(graph: Path, root: ElementTree.Element) -> dict[str, NDArray[np.generic]]:
    """The parameters as they are stored, by name without PREFIX; mapped from disk."""
    try:
        layers = root.iterfind("layers/layer[@type='Const']")
        content = np.memmap(graph.with_suffix(".bin"), mode="r")
        return {
            layer.get("name", "").removeprefix(PREFIX).removesuffix(_COMPRESSED): _values(layer.find("data"), content)
            for layer in layers
            if layer.get("name", "").startswith(PREFIX)
        }
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{graph}: its weights cannot be read: {type(error).__name__}: {error}") from error


def _values(data: ElementTree.Element | None, content: NDArray[np.uint8]) -> NDArray[np.generic]:
    if data is None:
        raise ValueError("a constant has no data")
    start, num_bytes = int(data.attrib["offset"]), int(data.attrib["size"])
    if start < 0 or start + num_bytes > len(content):
        raise ValueError(f"a constant ends at byte {start + num_bytes} of {len(content)}")
    shape = [int(size) for size in data.attrib["shape"].split(",") if size.strip()]
    return content[start : start + num_bytes].view(_TYPES[data.attrib["element_type"]]).reshape(shape)
