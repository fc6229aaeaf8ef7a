"""The openvino engine: exported encoder graphs (OpenVINO IR or ONNX) on the CPU, without torch.

One graph with dynamic shapes is compiled once. Rows are sorted by length and cut under a token budget, so that
the padding inside a batch is small.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.files import Checkpoint
from secondpass.checkpoint.graph import import_openvino
from secondpass.engine.engine import Progress
from secondpass.errors import CheckpointError, EngineError
from secondpass.packed import plan
from secondpass.types import Row, Run

TOKEN_BUDGET = 2048
HINTS = {"auto": None, "float32": "f32", "fp32": "f32", "bfloat16": "bf16", "bf16": "bf16"}


class OpenVinoEngine:
    """A cross-encoder graph with inputs (N, L) and one output (N, 1)."""

    name = "openvino"
    device = "cpu"

    def __init__(
        self, checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto", token_budget: int | None = None
    ) -> None:
        if device not in ("auto", "cpu"):
            raise ValueError(f"device is {device!r}; the openvino engine runs on the 'cpu'")
        if dtype not in HINTS:
            raise ValueError(f"dtype is {dtype!r}; the openvino engine takes {', '.join(map(repr, HINTS))}")
        graph = checkpoint.graph()
        if graph is None:
            raise CheckpointError(f"{checkpoint.folder}: no openvino_model.xml or model.onnx for the openvino engine")
        self._model = _compile(str(graph), HINTS[dtype])
        self._inputs = {port.any_name for port in self._model.inputs}
        self.dtype = str(self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        self.dtype = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(self.dtype, self.dtype)
        self.reason = f"runs {graph.name} as it was exported"
        self.max_length = int(checkpoint.config.get("max_position_embeddings", 512))
        self.token_budget = token_budget or TOKEN_BUDGET
        self._pad_id = int(checkpoint.config.get("pad_token_id") or 0)
        self._lock = threading.Lock()  # each request uses all cores already

    def run(self, rows: Sequence[Row], run: Run, progress: Progress | None = None) -> NDArray[np.float32]:
        if run != Run():
            raise ValueError("cutoff_layer and compress_* need a layer-wise model on the torch engine")
        scores = np.empty((len(rows), 1), np.float32)
        with self._lock:
            request = self._model.create_infer_request()
            for batch in plan([len(row) for row in rows], token_budget=self.token_budget):
                outputs = request.infer(self._padded([rows[index] for index in batch]))
                scores[batch] = outputs[0]
                if progress is not None:
                    progress(len(batch))
        if not np.isfinite(scores).all():
            raise EngineError(f"{int((~np.isfinite(scores)).sum())} of {len(rows)} scores are not finite")
        return scores

    def _padded(self, rows: Sequence[Row]) -> dict[str, NDArray[np.int64]]:
        """The inputs that the graph has, each (N, L)."""
        length = max(len(row) for row in rows)
        shape = (len(rows), length)
        ids = np.full(shape, self._pad_id, np.int64)
        mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row.ids
            mask[place, : len(row)] = 1
            types[place, row.passage[0] : len(row)] = 1
        every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: values for name, values in every.items() if name in self._inputs}


def _compile(graph: str, precision: str | None) -> Any:
    core = import_openvino().Core()
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    try:
        return core.compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        raise CheckpointError(f"{graph}: not a graph that OpenVINO can run: {error}") from error
