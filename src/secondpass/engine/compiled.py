"""A graph, compiled once for this processor: precision, threads and streams, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.graph import import_openvino
from secondpass.engine.cores import cpu_quota, num_cores
from secondpass.errors import CheckpointError

# dtype -> OpenVINO's hint. "int8" computes in int8 what it can and the rest as "auto" does.
PRECISIONS = {"auto": None, "int8": None, "float32": "f32", "fp32": "f32", "bfloat16": "bf16", "bf16": "bf16"}
NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
# Requests at a time, each on its share of the cores, so that no thread waits for another after each layer.
MAX_STREAMS = 4
# Up to here int8 matrices are unpacked to floats once, when the graph is opened, and not in every call.
MAX_UNPACKED_BYTES = 64 << 20
# Activations become int8 as they come, with one scale for so many of them; 0: not at all.
_GROUP_SIZE, _NO_GROUPS = "DYNAMIC_QUANTIZATION_GROUP_SIZE", "0"


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """model is OpenVINO's; reason says in words what was chosen."""

    model: Any
    dtype: str
    num_streams: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How a graph is run: with its matrices unpacked or as they are, and OpenVINO's settings."""

    dtype: str
    unpacks: bool
    settings: Mapping[str, Any]
    reason: str


def compile_graph(file: Path, dtype: str) -> Compiled:
    """Raises CheckpointError for what OpenVINO cannot run, ValueError for a precision that there is not."""
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype is {dtype!r}; the openvino engine takes {', '.join(map(repr, PRECISIONS))}")
    openvino = import_openvino()
    core = openvino.Core()
    try:
        graph = core.read_model(file)
        plan = _plan(core, graph, dtype, file.name)
        if plan.unpacks:
            _unpack(openvino, graph)
        model = core.compile_model(graph, "CPU", dict(plan.settings))
    except RuntimeError as error:
        raise CheckpointError(f"{file}: not a graph that OpenVINO can run: {error}") from error
    streams, threads = (int(model.get_property(name)) for name in ("NUM_STREAMS", "INFERENCE_NUM_THREADS"))
    reason = f"{file.name} has {plan.reason}, {streams} at a time on {threads} threads"
    return Compiled(model=model, dtype=plan.dtype, num_streams=streams, reason=reason)


def _plan(core: Any, graph: Any, dtype: str, name: str) -> _Plan:
    matrices = [node.output(0) for node in _matrices(graph)]
    hint = PRECISIONS[dtype] or core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    floats = NAMES.get(hint, hint)
    settings = {"INFERENCE_PRECISION_HINT": hint, **_threads()}
    one = settings | {"PERFORMANCE_HINT": "LATENCY"}
    if any(_is_int8(node) for node in graph.get_ops()):
        return _Plan(dtype="int8", unpacks=False, settings=one, reason="int8 weights and activations")
    if dtype == "int8" and not matrices:
        raise ValueError(f"dtype is 'int8', but {name} has float weights; `secondpass export` makes int8 ones")
    # where bfloat16 is not native, int8 products are twice as fast as float32 ones
    if dtype == "int8" or (dtype == "auto" and matrices and floats == "float32"):
        return _Plan(dtype="int8", unpacks=False, settings=one, reason="int8 weights, int8 products")
    why = "as asked" if dtype != "auto" else "the fastest here"
    exact = {_GROUP_SIZE: _NO_GROUPS} if dtype != "auto" else {}
    if sum(output.get_shape()[0] * output.get_shape()[1] for output in matrices) > MAX_UNPACKED_BYTES:
        return _Plan(dtype=floats, unpacks=False, settings=one | exact, reason=f"int8 weights, {floats} {why}")
    # OpenVINO 2026.4 gives wrong scores where several streams share int8 matrices and compute in bfloat16
    several = settings | exact | {"NUM_STREAMS": str(min(num_cores(), MAX_STREAMS))}
    kind = "int8 weights, unpacked once" if matrices else "float weights"
    return _Plan(dtype=floats, unpacks=bool(matrices), settings=several, reason=f"{kind}, {floats} {why}")


def _threads() -> dict[str, int]:
    """OpenVINO sees which cores the process is bound to, but not a quota."""
    return {"INFERENCE_NUM_THREADS": num_cores()} if cpu_quota() is not None else {}


def _is_int8(node: Any) -> bool:
    """Whether a node makes int8 of what it is given, or multiplies whole numbers."""
    kind = node.get_type_name()
    return kind == "FakeQuantize" or (kind == "MatMul" and not node.input_value(0).get_element_type().is_real())


def _matrices(graph: Any) -> Iterator[Any]:
    """Nodes that make floats (out, in) of int8 constants for a matrix product."""
    for node in graph.get_ops():
        if node.get_type_name() == "MatMul":
            source = node.input_value(1).get_node()
            types = [constant.get_element_type().get_type_name() for constant in _constants(source) or []]
            if {"i8", "u8"} & set(types) and len(source.get_output_shape(0)) == 2:
                yield source


def _constants(node: Any) -> list[Any] | None:
    """The outputs of the constants that a node is computed from by STEPS; None where there is anything else in it."""
    if node.get_type_name() == "Constant":
        return [node.output(0)]
    if node.get_type_name() not in STEPS:
        return None
    parts = [_constants(port.get_source_output().get_node()) for port in node.inputs()]
    return None if None in parts else [constant for part in parts for constant in part or []]


def _unpack(openvino: Any, graph: Any) -> None:
    for node in list(_matrices(graph)):
        constant = openvino.op.Constant(_value(node), shared_memory=False)
        constant.set_friendly_name(node.get_friendly_name())
        openvino.utils.replace_node(node, constant)


def _value(node: Any) -> NDArray[np.float32]:
    """What a node makes of its constants, in float32 all the way."""
    if node.get_type_name() == "Constant":
        return np.asarray(node.data, np.float32)
    values = [_value(port.get_source_output().get_node()) for port in node.inputs()]
    return STEPS[node.get_type_name()](*values)


STEPS: dict[str, Callable[..., NDArray[np.float32]]] = {
    "Convert": lambda x: x,
    "Multiply": np.multiply,
    "Subtract": np.subtract,
    "Reshape": lambda x, shape: x.reshape(shape.astype(int)),
}
