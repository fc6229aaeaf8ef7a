"""The openvino engine: exported encoder graphs (OpenVINO IR or ONNX) on the CPU, without torch.

One graph with dynamic shapes is compiled once. Rows are sorted by length and padded together only where that is
cheaper than one more call; several batches are on their way at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.files import Checkpoint
from secondpass.engine.compiled import compile_graph
from secondpass.engine.padding import padded, plan_padded
from secondpass.errors import CheckpointError, EngineError
from secondpass.types import Advance, Row, Run

# Tokens in one call, padding included. More gain nothing: 67 us a token of a MiniLM with 512 tokens, 70 with 8192.
TOKEN_BUDGET = 1024


class OpenVinoEngine:
    """A cross-encoder graph with inputs (N, L) and one output (N, 1)."""

    name = "openvino"
    device = "cpu"

    def __init__(
        self, checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto", token_budget: int | None = None
    ) -> None:
        if device not in ("auto", "cpu"):
            raise ValueError(f"device is {device!r}; the openvino engine runs on the 'cpu'")
        graph = checkpoint.graph()
        if graph is None:
            raise CheckpointError(f"{checkpoint.folder}: no openvino_model.xml or model.onnx for the openvino engine")
        compiled = compile_graph(graph, dtype)
        self.dtype, self.reason = compiled.dtype, compiled.reason
        self._inputs = {port.any_name for port in compiled.model.inputs}
        self._requests = [compiled.model.create_infer_request() for _ in range(compiled.num_streams)]
        self.max_length = int(checkpoint.config.get("max_position_embeddings", 512))
        self.token_budget = token_budget or TOKEN_BUDGET
        self._pad_id = int(checkpoint.config.get("pad_token_id") or 0)
        self._lock = threading.Lock()  # one call at a time: each uses all cores already

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        if run != Run():
            raise ValueError("cutoff_layer, compress_* and early_exit need a layer-wise model on the torch engine")
        scores = np.empty((len(rows), 1), np.float32)
        lengths = [len(row) for row in rows]
        batches = plan_padded(lengths, token_budget=self.token_budget, num_parts=len(self._requests))
        with self._lock, closing(self._computed(rows, batches)) as computed:
            for batch, values in computed:
                scores[batch] = values
                if progress is not None:
                    progress(len(batch))
        if not np.isfinite(scores).all():
            raise EngineError(f"{int((~np.isfinite(scores)).sum())} of {len(rows)} scores are not finite")
        return scores

    def _computed(
        self, rows: Sequence[Row], batches: Sequence[Sequence[int]]
    ) -> Generator[tuple[Sequence[int], NDArray[np.float32]], None, None]:
        """Each batch with its scores (N, 1), in order; as many are on their way as there are requests."""
        idle, busy = list(self._requests), deque[tuple[Any, Sequence[int]]]()
        try:
            for batch in batches:
                if not idle:
                    yield busy[0][1], _finished(busy[0][0])
                    idle.append(busy.popleft()[0])
                request = idle.pop()
                request.start_async(padded([rows[index] for index in batch], self._inputs, self._pad_id))
                busy.append((request, batch))
            while busy:
                yield busy[0][1], _finished(busy[0][0])
                busy.popleft()
        finally:  # also after Ctrl-C or an error: the next call finds every request idle
            for request, _ in busy:
                request.wait()


def _finished(request: Any) -> NDArray[np.float32]:
    request.wait()
    scores: NDArray[np.float32] = request.get_output_tensor(0).data.copy()
    return scores
