"""The same scores on a GPU, in every precision, and no waiting for it inside of a forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from secondpass import Reranker
from secondpass.models.varlen import is_usable
from secondpass.packed import pack
from secondpass.types import Row, Run
from tests.goldens import Golden, golden_runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
ENCODERS = ("bert-cross-encoder", "xlm-roberta-cross-encoder", "modernbert-cross-encoder", "gte-new-cross-encoder")
DECODERS = ("gemma-llm-reranker", "qwen3-llm-reranker")


def scores(golden: Golden, dtype: str, device: str = "cuda") -> list[float]:
    return Reranker(golden.folder, dtype=dtype, device=device).score_pairs(golden.pairs)


def distance(left: Sequence[float], right: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


def goldens() -> list[Any]:
    """The first run of each."""
    seen: dict[str, Any] = {}
    for case in golden_runs(*ENCODERS, *DECODERS):
        if case.values[0] is None:
            return [pytest.param(None, marks=pytest.mark.skip(reason="no reference figures here"))]
        seen.setdefault(case.values[0].name, case.values[0])
    return [pytest.param(golden, id=name) for name, golden in seen.items()]


@pytest.mark.parametrize("golden", goldens())
def test_float32_equals_the_cpu(golden: Golden) -> None:
    assert distance(scores(golden, "float32"), scores(golden, "float32", "cpu")) < 2e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("golden", goldens())
def test_half_precision_is_as_near_as_on_the_cpu(golden: Golden, dtype: str) -> None:
    exact = scores(golden, "float32", "cpu")
    on_cpu = distance(scores(golden, dtype, "cpu"), exact)
    assert distance(scores(golden, dtype), exact) < 2 * on_cpu + 0.02


@pytest.mark.parametrize("golden", goldens())
def test_packed_equals_alone(golden: Golden) -> None:
    reranker = Reranker(golden.folder, dtype="float32", device="cuda")
    alone = [reranker.score_pairs([pair])[0] for pair in golden.pairs]
    assert distance(reranker.score_pairs(golden.pairs), alone) < 1e-3


@pytest.mark.parametrize("golden", goldens())
def test_a_forward_does_not_wait_for_the_device(golden: Golden) -> None:
    engine: Any = Reranker(golden.folder, dtype="bfloat16", device="cuda").engine
    batch = pack([Row([5] * length, (2, length)) for length in (30, 9, 9, 4)]).to(torch.device("cuda"))
    run = engine.model.resolved(Run())
    with torch.inference_mode():
        engine.model(batch, run, [])
        torch.cuda.set_sync_debug_mode("error")
        try:
            engine.model(batch, run, [])
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_variable_length_kernel_is_used() -> None:
    assert is_usable(torch.empty(4, 2, 64, dtype=torch.bfloat16, device="cuda"))


def test_memory_that_is_short_costs_time_alone() -> None:
    golden = next(case.values[0] for case in goldens())
    if not isinstance(golden, Golden):
        pytest.skip("no reference figures here")
    reranker = Reranker(golden.folder, dtype="float32", device="cuda", token_budget=10**9)
    texts = ["a long text " * 100] * 1 + [f"text {n} " * 60 for n in range(4000)]
    torch.cuda.set_per_process_memory_fraction(0.005)
    try:
        short = reranker.score("a question", texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert distance(short, reranker.score("a question", texts)) < 1e-3
