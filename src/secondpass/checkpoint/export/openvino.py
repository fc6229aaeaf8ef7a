"""A traced cross-encoder as an OpenVINO graph: float weights, half of their size, or int8.

Every parameter is a constant under its name, and the graph's notes say what the checkpoint calls it: so the torch
engine can read the graph too, and what is trained from it is an ordinary checkpoint again (checkpoint/graph.py).
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secondpass.checkpoint.export.trace import INPUTS, Inputs, Padded, example
from secondpass.checkpoint.graph import NAMES, PREFIX, TELEMETRY, absent, import_openvino
from secondpass.errors import MissingExtra

# The operation in which a vector is a constant -> its name in the module. The tracer keeps only the matrices' names.
_VECTORS = {"linear/Add": "bias", "layer_norm/Multiply_1": "weight", "layer_norm/Add": "bias"}
# What stays float where activations become int8: see docs/export.md for what each costs.
SENSITIVE = (r".*\.down/.*", r".*model\.head.*", r".*/aten::(scaled_dot_product_attention|baddbmm|matmul).*")


def write_openvino(model: Padded, file: Path, dtype: str, calibration: Sequence[Inputs]) -> None:
    """The graph in `file`, its weights beside it. `calibration` makes activations int8 too."""
    openvino = import_openvino()
    graph = _convert(openvino, model)
    if calibration:
        graph = _quantised(openvino, graph, calibration)
    for matrix in list(_matrices(graph)) if dtype != "float32" else ():
        _STORED[dtype](openvino, matrix)
    graph.set_rt_info(json.dumps(_names(model)), list(NAMES))
    try:
        openvino.save_model(graph, file, compress_to_fp16=False)
    except RuntimeError as error:  # of a C++ stream, which keeps the reason to itself
        free = shutil.disk_usage(file.parent).free
        raise OSError(f"{free / 1e6:,.1f} MB are free there; make room: {error}") from error


def _names(model: Padded) -> dict[str, list[tuple[str, int]]]:
    """Our name of each parameter -> its names in the checkpoint, with the rows of each."""
    ours = [name for name, _ in model.model.named_parameters()]
    return {name: [(theirs, rows.stop - rows.start) for theirs, rows in model.naming.parts(name)] for name in ours}


def _convert(openvino: Any, model: Padded) -> Any:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every size that it reads
        graph = openvino.convert_model(model, example_input=example())
    for port, name in zip(list(graph.inputs), INPUTS, strict=True):  # the converter loses some names, not the order
        port.get_tensor().set_names({name})
        if not port.get_target_inputs():  # token types, in a family without them
            graph.remove_parameter(port.get_node())
    for port, name in zip(graph.outputs, model.outputs, strict=True):
        port.get_tensor().set_names({name})
    for node in graph.get_ops():
        _name_vector(node)
    _name_by_value(graph, model)
    return graph


def _name_vector(node: Any) -> None:
    module, _, operation = node.get_friendly_name().partition("/aten::")
    if operation not in _VECTORS:
        return
    for port in node.inputs():
        source = port.get_source_output().get_node()
        if source.get_type_name() == "Constant":
            source.set_friendly_name(f"self.{module.removeprefix('__module.')}.{_VECTORS[operation]}")


def _name_by_value(graph: Any, model: Padded) -> None:
    """The parameters outside of linear layers and norms, which the tracer leaves without a name."""
    constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
    named = {node.get_friendly_name() for node in constants}
    for name, parameter in model.named_parameters(prefix="self"):
        if name in named:
            continue
        wanted = parameter.detach().numpy().ravel()
        for node in constants:
            if node.get_element_type().is_real() and np.array_equal(node.data.ravel(), wanted):
                node.set_friendly_name(name)


def _matrices(graph: Any) -> Iterator[Any]:
    """The constants that are float32 matrices of the backbone. To round the head would move scores most."""
    for node in graph.get_ops():
        if node.get_type_name() == "Constant" and node.get_friendly_name().startswith(PREFIX + "backbone."):
            output = node.output(0)
            if len(output.get_shape()) == 2 and min(output.get_shape()) > 1 and output.get_element_type().is_real():
                yield node


def _store_bfloat16(openvino: Any, matrix: Any) -> None:
    rounded = torch.from_numpy(matrix.data.copy()).bfloat16().float()  # to the nearest; OpenVINO would cut bits off
    stored = openvino.op.Constant(openvino.Type.bf16, matrix.get_output_shape(0), rounded.flatten().numpy())
    _replace(openvino, matrix, stored, openvino.opset13.convert(stored, "f32"))


def _store_float16(openvino: Any, matrix: Any) -> None:
    stored = openvino.op.Constant(matrix.data.astype(np.float16))
    _replace(openvino, matrix, stored, openvino.opset13.convert(stored, "f32"))


def _store_int8(openvino: Any, matrix: Any) -> None:
    """One scale per row, symmetric, as in NNCF's INT8_SYM."""
    values = matrix.data
    scale = np.maximum(np.abs(values).max(1, keepdims=True), np.finfo(np.float32).tiny) / 127
    ops = openvino.opset13
    stored = ops.constant(np.rint(values / scale).astype(np.int8))
    scales = ops.constant(scale.astype(np.float32))
    scales.set_friendly_name(f"{matrix.get_friendly_name()}/scale")
    _replace(openvino, matrix, stored, ops.multiply(ops.convert(stored, "f32"), scales))


_STORED: dict[str, Callable[[Any, Any], None]] = {
    "bfloat16": _store_bfloat16,
    "float16": _store_float16,
    "int8": _store_int8,
}


def _replace(openvino: Any, matrix: Any, stored: Any, floats: Any) -> None:
    name = matrix.get_friendly_name()
    for port in list(matrix.output(0).get_target_inputs()):
        port.replace_source_output(floats.output(0))
    matrix.set_friendly_name(f"{name}/float32")
    stored.set_friendly_name(name)


def _quantised(openvino: Any, graph: Any, calibration: Sequence[Inputs]) -> Any:
    """Activations in int8 by their ranges on `calibration`, but for the sensitive layers. Raises MissingExtra."""
    try:
        with absent(TELEMETRY):  # nncf falls back to a stub of its own
            import nncf
    except ImportError as error:
        raise MissingExtra("nncf", "export") from error
    names = {port.any_name for port in graph.inputs}
    dataset = nncf.Dataset([{name: x for name, x in inputs.items() if name in names} for inputs in calibration])
    return nncf.quantize(
        graph,
        dataset,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(patterns=list(SENSITIVE), validate=False),
    )
