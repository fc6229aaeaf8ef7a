"""A traced cross-encoder as an ONNX graph: float weights, half of their size, or int8."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secondpass.checkpoint.export.trace import INPUTS, Padded, example
from secondpass.errors import MissingExtra

OPSET = 17
MAX_BYTES = 2_000_000_000  # a file of protocol buffers ends at 2 GiB: larger weights go into a file beside it
# Matrices with fewer numbers are left as they are, and so is the head: to round it moves scores most.
MIN_NUMBERS = 1024
HEAD = ".head."


def write_onnx(model: Padded, file: Path, dtype: str) -> None:
    """The graph in `file`. Raises MissingExtra without onnx."""
    if find_spec("onnx") is None:
        raise MissingExtra("onnx", "export")
    import onnx

    axes = {name: {0: "rows", 1: "tokens"} for name in (*INPUTS, *model.outputs)} | {"logits": {0: "rows"}}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every size that it reads, and of its age
        torch.onnx.export(
            model,
            tuple(example().values()),
            file,
            dynamo=False,  # the other exporter fixes the sizes that the packed form reads
            input_names=list(INPUTS),
            output_names=list(model.outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
        )
    graph = onnx.load(file)
    if dtype != "float32":
        _shrink(onnx, graph.graph, _STORED[dtype])
    is_large = graph.ByteSize() > MAX_BYTES
    for left in file.parent.iterdir():
        left.unlink()  # the tracer writes one file per tensor for a large model
    onnx.save(graph, file, save_as_external_data=is_large, location=f"{file.name}_data")


def _shrink(onnx: Any, graph: Any, store: Callable[[Any, Any, str], tuple[list[Any], list[Any]]]) -> None:
    """Every float32 matrix becomes stored values and the nodes that make floats of them, under its old name."""
    kept, nodes = [], []
    for tensor in graph.initializer:
        is_matrix = tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
        if not is_matrix or np.prod(tensor.dims) < MIN_NUMBERS or HEAD in tensor.name:
            kept.append(tensor)
            continue
        stored, made = store(onnx, onnx.numpy_helper.to_array(tensor), tensor.name)
        kept += stored
        nodes += made
    nodes += list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def _store_bfloat16(onnx: Any, values: Any, name: str) -> tuple[list[Any], list[Any]]:
    bits = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    stored = onnx.helper.make_tensor(f"{name}/stored", onnx.TensorProto.BFLOAT16, values.shape, bits, raw=True)
    return [stored], [onnx.helper.make_node("Cast", [stored.name], [name], to=onnx.TensorProto.FLOAT)]


def _store_int8(onnx: Any, values: Any, name: str) -> tuple[list[Any], list[Any]]:
    """One scale per output, symmetric. A matrix of a product is (in, out) here, a table of words (V, C)."""
    axis = 1 if "MatMul" in name else 0
    scale = np.maximum(np.abs(values).max(1 - axis), np.finfo(np.float32).tiny) / 127
    whole = np.rint(values / np.expand_dims(scale, 1 - axis)).astype(np.int8)
    parts = {"stored": whole, "scale": scale.astype(np.float32), "zero_point": np.zeros(scale.shape, np.int8)}
    tensors = [onnx.numpy_helper.from_array(part, f"{name}/{kind}") for kind, part in parts.items()]
    names = [tensor.name for tensor in tensors]
    return tensors, [onnx.helper.make_node("DequantizeLinear", names, [name], axis=axis)]


_STORED: dict[str, Callable[[Any, Any, str], tuple[list[Any], list[Any]]]] = {
    "bfloat16": _store_bfloat16,
    "int8": _store_int8,
}
