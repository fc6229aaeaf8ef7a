"""Which engine runs a checkpoint, and opening it; what reads pairs and what reads single texts."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.engine.engine import Encoder, Engine, Heads, Reopening, ReopeningEngine
from secondpass.errors import EngineError, MissingExtra


def open_engine(
    checkpoint: Checkpoint,
    *,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    score_cache: str | Path | None = None,
    passage_cache_bytes: int | None = None,
    cuda_graphs: bool = False,
) -> ReopeningEngine:
    """The engine for a checkpoint; "auto" takes torch where there are weights and torch is installed.

    score_cache is a file in which scores are kept, to be looked up before they are computed.
    passage_cache_bytes bounds what is kept of passages by a model that reads them apart. cuda_graphs: small
    batches are replayed from recorded passes on a GPU. Raises ValueError for an unknown engine and for graphs that
    the engine does not have, MissingExtra where torch is needed and not there.
    """
    if engine not in ("auto", *ENGINES):
        raise ValueError(f"engine is {engine!r}; give 'auto', {' or '.join(map(repr, ENGINES))}")
    name = _pick(checkpoint, device) if engine == "auto" else engine
    opens = ENGINES[name]
    if cuda_graphs:
        if name != "torch":
            raise ValueError(
                f"cuda_graphs are the torch engine's; this checkpoint runs on {name}, give engine='torch'"
            )
        opens = partial(_open_torch, cuda_graphs=True)
    elif name == "openvino" and checkpoint.config.get("late_interaction") and _has_constants(checkpoint):
        opens = partial(_open_late_interaction, cache_bytes=passage_cache_bytes)

    def opened() -> Engine:
        plain = opens(checkpoint, device, dtype, token_budget)
        if score_cache is None:
            return plain
        from secondpass.engine.cache import ScoreCache

        return ScoreCache(plain, Path(score_cache), checkpoint.identity())

    return ReopeningEngine(opened)


def open_encoder(
    checkpoint: Checkpoint,
    heads: Heads,
    *,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
) -> Reopening[Encoder]:
    """The encoder of a checkpoint; on torch, unless it is a graph that gives token states, which runs without.

    Raises MissingExtra where torch is needed and not there.
    """
    if checkpoint.config.get("late_interaction") and _pick(checkpoint, device) == "openvino":
        from secondpass.engine.openvino_encoder import OpenVinoEncoder

        settings = {"device": device, "dtype": dtype}
        return Reopening(partial(OpenVinoEncoder, checkpoint, heads, token_budget=token_budget, **settings))
    _check_torch()
    from secondpass.engine.torch_encoder import TorchEncoder

    return Reopening(partial(TorchEncoder, checkpoint, heads, device=device, dtype=dtype, token_budget=token_budget))


# The process in which torch was first used: its threads do not survive a fork, and a child would wait for them.
_torch_process: int | None = None


def _check_torch() -> None:
    """Raises MissingExtra where torch is not installed, EngineError where it cannot be used in this process."""
    global _torch_process
    if find_spec("torch") is None:
        raise MissingExtra("torch", "torch")
    _torch_process = os.getpid() if _torch_process is None else _torch_process
    if _torch_process != os.getpid():
        raise EngineError(
            "torch was used in the process that this one was forked from, and does not survive that; start the "
            "process with multiprocessing.get_context('spawn'), or open the first model after the fork"
        )


def _pick(checkpoint: Checkpoint, device: str) -> str:
    if checkpoint.has_weights() and find_spec("torch") is not None:
        return "torch"
    if device not in ("auto", "cpu"):
        return "torch"  # which reads the weights out of a graph
    return "torch" if checkpoint.graph() is None else "openvino"


def _open_torch(
    checkpoint: Checkpoint, device: str, dtype: str, token_budget: int | None, *, cuda_graphs: bool = False
) -> Engine:
    _check_torch()
    from secondpass.engine.torch import TorchEngine

    return TorchEngine(checkpoint, device=device, dtype=dtype, token_budget=token_budget, cuda_graphs=cuda_graphs)


def _open_openvino(checkpoint: Checkpoint, device: str, dtype: str, token_budget: int | None) -> Engine:
    from secondpass.engine.openvino import OpenVinoEngine

    return OpenVinoEngine(checkpoint, device=device, dtype=dtype, token_budget=token_budget)


def _has_constants(checkpoint: Checkpoint) -> bool:
    """Whether the head can be read out of the graph: of OpenVINO's own; an ONNX graph is run as it is."""
    graph = checkpoint.graph()
    return graph is not None and graph.suffix == ".xml"


def _open_late_interaction(
    checkpoint: Checkpoint, device: str, dtype: str, token_budget: int | None, *, cache_bytes: int | None
) -> Engine:
    from secondpass.engine.late_interaction import LateInteractionEngine

    return LateInteractionEngine(
        checkpoint, device=device, dtype=dtype, token_budget=token_budget, cache_bytes=cache_bytes
    )


ENGINES: dict[str, Callable[[Checkpoint, str, str, int | None], Engine]] = {
    "torch": _open_torch,
    "openvino": _open_openvino,
}
