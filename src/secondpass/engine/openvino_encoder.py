"""Vectors on the openvino engine, without torch: of a graph that reads query and passage apart.

Its token states are those of the bi-encoder that it is made from: one file of weights is a reranker and an embedder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from functools import cached_property, partial

import numpy as np

from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.checkpoint.graph import STATES
from secondpass.engine.engine import EngineFacts, Heads, Vectors
from secondpass.engine.openvino import TOKEN_BUDGET, Requests, compile_graph
from secondpass.errors import CheckpointError, EngineError
from secondpass.types import Row

# In bfloat16 the cosine of two texts differs by up to 0.003 from float32's.
DTYPE = "float32"


class OpenVinoEncoder:
    """Pools the token states of single texts: their mean."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        heads: Heads,
        *,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
    ) -> None:
        graph = checkpoint.graph()
        has_more = heads.token_width is not None or heads.layers or heads.files or heads.dense
        if graph is None or heads.pooling != "mean" or has_more:
            raise CheckpointError(f"{checkpoint.folder}: the openvino engine says means of token states alone")
        compiles = partial(compile_graph, graph, DTYPE if dtype == "auto" else dtype, STATES)
        max_length = int(checkpoint.config["max_position_embeddings"])
        self._requests = Requests(compiles, int(checkpoint.config.get("pad_token_id") or 0), max_length)
        self.width = int(checkpoint.config["hidden_size"])
        self._weights = graph.with_suffix(".bin")
        self.facts = EngineFacts(
            name="openvino",
            device=device.replace("auto", "cpu"),
            dtype=self._requests.compiled.dtype,
            reason=self._requests.compiled.reason,
            max_length=max_length,
            token_budget=TOKEN_BUDGET if token_budget is None else token_budget,
        )

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._weights.read_bytes()).hexdigest()

    def run(
        self, rows: Sequence[Row], outputs: Collection[str], visible: Sequence[int] | None = None
    ) -> dict[str, Vectors]:
        if set(outputs) != {"pooled"} or visible is not None:
            raise ValueError(f"outputs are {sorted(outputs)}; the openvino engine has 'pooled' alone")
        pooled = np.empty((len(rows), self.width), np.float32)
        for batch, states in self._requests.run(rows, self.facts.token_budget):
            for index, text in zip(batch, states, strict=True):
                pooled[index] = text[: len(rows[index])].mean(0)
        if not np.isfinite(pooled).all():
            raise EngineError(f"vectors of {len(rows)} texts are not all finite in {self.facts.dtype}")
        return {"pooled": pooled}
