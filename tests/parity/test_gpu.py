"""The same scores on a GPU, in every precision, launched one by one or as a graph, and no waiting in a forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from secondpass import Reranker
from secondpass.engine.cuda import graphs
from secondpass.engine.cuda.graphs import CudaGraphs, Graphs, open_graphs
from secondpass.models.attention import pick_kernel
from secondpass.models.attention.reference import Kernel, Rule
from secondpass.models.attention.sdpa import attend_sdpa
from secondpass.models.attention.varlen import attend_varlen, is_usable
from secondpass.packed import Packed, pack
from secondpass.types import Row, Run
from tests.goldens import Golden, golden_runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
ENCODERS = ("bert-cross-encoder", "xlm-roberta-cross-encoder", "modernbert-cross-encoder", "gte-new-cross-encoder")
DECODERS = ("gemma-llm-reranker", "qwen3-llm-reranker")


def scores(golden: Golden, dtype: str, device: str = "cuda") -> list[float]:
    return Reranker(golden.folder, special_tokens="parse", dtype=dtype, device=device).score_pairs(golden.pairs)


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
    reranker = Reranker(golden.folder, special_tokens="parse", dtype="float32", device="cuda")
    alone = [reranker.score_pairs([pair])[0] for pair in golden.pairs]
    assert distance(reranker.score_pairs(golden.pairs), alone) < 1e-3


@pytest.mark.parametrize("golden", goldens())
def test_a_forward_does_not_wait_for_the_device(golden: Golden) -> None:
    engine: Any = Reranker(
        golden.folder, special_tokens="parse", dtype="bfloat16", device="cuda"
    )._scoring.engine.current
    batch = pack([Row([5] * length, (2, length)) for length in (30, 9, 9, 4)]).to(torch.device("cuda"))
    run = engine.model.resolved(Run())
    with torch.inference_mode():
        engine.model(batch, run, [])
        torch.cuda.set_sync_debug_mode("error")
        try:
            engine.model(batch, run, [])
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("has_gradient", [False, True])
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_the_variable_length_kernel_is_used(width: int, has_gradient: bool) -> None:
    assert is_usable(torch.device("cuda"), torch.bfloat16, width, has_gradient=has_gradient)


def rows_of(lengths: Sequence[int], seed: int = 0) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(5, 60, (length,), generator=generator).tolist() for length in lengths]
    return [Row(each, (len(each) // 2, len(each))) for each in ids]


@pytest.mark.parametrize("window", [None, 3])
def test_gradients_equal_those_of_rows_one_by_one(window: int | None) -> None:
    batch = pack(rows_of((30, 9, 9, 4, 1))).to(torch.device("cuda"))
    joined = torch.randn(53, 3, 4, 64, dtype=torch.bfloat16, device="cuda")

    def slopes(kernel: Kernel) -> tuple[torch.Tensor, ...]:
        x = joined.clone().requires_grad_()
        q, k, v = x.unbind(1)
        mixed = kernel(q, k, v, batch, rule=Rule(scale=0.125, window=window))
        kept = kernel(q, k, v, batch, rule=Rule(scale=0.125), keep=batch.first())
        (mixed.float().square().sum() + kept.float().sum()).backward()
        assert x.grad is not None
        return mixed.detach(), kept.detach(), x.grad

    for fast, plain in zip(slopes(attend_varlen), slopes(attend_sdpa), strict=True):
        torch.testing.assert_close(fast, plain, atol=0.03, rtol=0.03)


def recording(golden: Golden) -> Any:
    """An engine that records graphs."""
    engine: Any = Reranker(
        golden.folder, special_tokens="parse", dtype="bfloat16", device="cuda"
    )._scoring.engine.current
    kernel = pick_kernel(engine._device, engine._dtype, engine.model.backbone.config.head_width)
    engine._graphs = open_graphs(engine.model, kernel, engine._device, engine._budget)
    return engine


ENCODER_GOLDENS = [case for case in goldens() if not isinstance(case.values[0], Golden) or case.id in ENCODERS]


@pytest.mark.parametrize("golden", ENCODER_GOLDENS)
def test_graphs_equal_the_plain_path_at_many_sizes(golden: Golden) -> None:
    engine = recording(golden)
    draw = torch.Generator().manual_seed(0)
    num_replayed = 0
    with torch.inference_mode():
        for seed in range(120):
            count = int(torch.randint(1, 40, (1,), generator=draw))
            lengths = torch.randint(1, min(100, engine.facts.max_length), (count,), generator=draw).tolist()
            rows = rows_of(lengths, seed)
            found = engine._graphs.scores(rows)
            if found is not None:
                num_replayed += 1
                plain = engine.model(pack(rows).to(torch.device("cuda")))
                assert float((found - plain).abs().max()) < 0.1
    assert num_replayed > 60
    assert engine.facts.reason.endswith("CUDA graphs up to 16384 tokens")
    assert len(engine._graphs._graphs) <= graphs.MAX_GRAPHS


@pytest.mark.parametrize("golden", ENCODER_GOLDENS)
def test_a_replay_does_not_wait_for_the_device(golden: Golden) -> None:
    engine = recording(golden)
    rows = rows_of((30, 9, 9, 4))
    with torch.inference_mode():
        for _ in range(2):
            engine._graphs.scores(rows)
        torch.cuda.set_sync_debug_mode("error")
        try:
            assert engine._graphs.scores(rows) is not None
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("golden", ENCODER_GOLDENS[:1])
def test_graphs_take_a_bounded_part_of_the_memory(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 8)
    engine = recording(golden)
    taken = []
    with torch.inference_mode():
        for count in [*range(1, 60), *range(1, 60)]:
            for _ in range(2):
                engine._graphs.scores(rows_of([60] * count))
            taken.append(torch.cuda.memory_reserved())
    assert len(engine._graphs._graphs) == 8
    assert taken[-1] <= 1.2 * taken[58]
    engine._graphs.stop("the test is over")
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < taken[-1]


@pytest.mark.parametrize("golden", ENCODER_GOLDENS[:1])
def test_a_recording_that_fails_leaves_the_device_usable(golden: Golden) -> None:
    engine = recording(golden)
    device, rows = torch.device("cuda"), rows_of((30, 9, 9, 4))

    def waits(batch: Packed) -> torch.Tensor:
        found: torch.Tensor = engine.model(batch)
        if torch.cuda.is_current_stream_capturing():
            found.sum().item()
        return found

    engine._graphs = Graphs(waits, device, CudaGraphs(device), max_length=engine.facts.max_length, max_tokens=1000)
    stream = torch.cuda.current_stream()
    scores = [engine.run(rows, Run()) for _ in range(3)]
    assert "cannot be recorded" in engine.facts.reason
    assert torch.cuda.current_stream() == stream
    assert distance(scores[0][:, 0], scores[2][:, 0]) == 0.0


def test_memory_that_is_short_costs_time_alone() -> None:
    golden = next(case.values[0] for case in goldens())
    if not isinstance(golden, Golden):
        pytest.skip("no reference figures here")
    reranker = Reranker(golden.folder, special_tokens="parse", dtype="float32", device="cuda", token_budget=10**9)
    texts = ["a long text " * 100] * 1 + [f"text {n} " * 60 for n in range(4000)]
    torch.cuda.set_per_process_memory_fraction(0.005)
    try:
        short = reranker.score("a question", texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert distance(short, reranker.score("a question", texts)) < 1e-3
