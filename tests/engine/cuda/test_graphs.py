"""Recorded forward passes, by a recorder that as CUDA graphs do repeats operators at fixed addresses, not Python."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secondpass import Reranker
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.engine.batches import Budget, in_batches
from secondpass.engine.cuda import graphs as module
from secondpass.engine.cuda.graphs import Bucket, Graphs, is_alike, obstacle_of, open_graphs
from secondpass.engine.open import open_engine
from secondpass.models.attention import use_kernel, varlen
from secondpass.models.attention.cpu_bf16 import attend_cpu_bf16
from secondpass.models.attention.reference import Kernel
from secondpass.models.attention.sdpa import attend_sdpa
from secondpass.models.attention.varlen import attend_varlen
from secondpass.packed import pack
from secondpass.types import Row
from tests.checkpoints import tiny_bert
from tests.goldens import Golden, golden_runs
from tests.models.attention.test_varlen import written_out

ENCODERS = (
    "bert-cross-encoder",
    "xlm-roberta-cross-encoder",
    "xlm-roberta-cross-encoder-8k",
    "modernbert-cross-encoder",
    "modernbert-cross-encoder-cls",
    "gte-new-cross-encoder",
)
CPU = torch.device("cpu")


@torch.library.custom_op("secondpass_tests::varlen", mutates_args=())
def opaque(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, m: int, n: int, scale: float, left: int, right: int
) -> Tensor:
    """The kernel's documented meaning as one operator, which reads the lengths when it runs, as the kernel does."""
    return written_out(
        q, k, v, a, b, m, n, scale=scale, window_size=(left, right), enable_gqa=q.shape[1] != k.shape[1]
    )


def kernel(*args: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool) -> Tensor:
    found: Tensor = opaque(*args, scale, *window_size)
    return found


class Tape(TorchDispatchMode):
    """The operators of a forward pass with their arguments; replaying writes into the tensors that were made then."""

    def __init__(self, forward: Callable[[], Tensor]) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.is_released = False
        with self:
            self.scores = forward()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more of it")
        made = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, made))
        return made

    def replay(self) -> Tensor:
        assert not self.is_released
        for func, args, kwargs, made in self.steps:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)
        return self.scores

    def release(self) -> None:
        self.is_released = True


class Recorder:
    def __init__(self, *, fails: Exception | None = None, differs: float = 0.0) -> None:
        self.tapes: list[Tape] = []
        self.attempts, self.fails, self.differs = 0, fails, differs

    def __call__(self, forward: Callable[[], Tensor]) -> Tape:
        self.attempts += 1
        if self.fails is not None:
            raise self.fails
        self.tapes.append(Tape(lambda: forward() + self.differs))
        return self.tapes[-1]


@pytest.fixture
def varlen_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: kernel)
    monkeypatch.setattr("secondpass.engine.torch.pick_kernel", lambda *_, has_amx: attend_varlen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


def opened(folder: Path, recorder: Recorder, *, max_tokens: int = 4096) -> tuple[Reranker, Any]:
    """A reranker on the CPU and its engine, which records."""
    reranker = Reranker(folder, engine="torch", device="cpu", dtype="float32")
    engine: Any = reranker._scoring.engine.current
    max_length = engine.model.backbone.config.max_length
    engine._graphs = Graphs(engine.model, CPU, recorder, max_length=max_length, max_tokens=max_tokens)
    return reranker, engine


def encoders() -> list[Any]:
    seen: dict[str, Any] = {}
    for case in golden_runs(*ENCODERS):
        seen.setdefault(str(case.values[0] and case.values[0].name), case)
    return [pytest.param(case.values[0], id=name, marks=case.marks) for name, case in seen.items()]


LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=300)


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.sampled_from([512, 514, 8192]))
def test_a_bucket_holds_its_rows_and_little_more(lengths: list[int], max_length: int) -> None:
    bucket = Bucket.of(lengths, max_length=max_length)
    rows = [Row([7] * length, (0, length)) for length in lengths]
    filled = bucket.filled(rows)
    added = filled[len(rows) :]
    assert filled[: len(rows)] == rows
    assert (len(filled), sum(map(len, filled))) == (bucket.rows, bucket.tokens)
    assert min(map(len, added)) >= 1
    assert max(map(len, filled)) <= bucket.longest <= max_length
    assert bucket.rows <= max(4 * len(lengths), 16)
    assert sum(map(len, added)) <= max(bucket.tokens / module.STEPS, module.MIN_TOKENS) + len(added)


def test_mixed_lists_of_one_kind_fall_into_few_buckets() -> None:
    buckets = {Bucket.of([150 + n % 60] * 20, max_length=512) for n in range(500)}
    assert len(buckets) <= 8


@settings(max_examples=40, deadline=None)
@given(LENGTHS)
def test_an_empty_bucket_is_rows_within_its_limits(lengths: list[int]) -> None:
    bucket = Bucket.of(lengths, max_length=512)
    assert max(map(len, bucket.filled([]))) <= bucket.longest


@pytest.mark.parametrize("golden", encoders())
def test_rows_that_fill_up_change_no_score(golden: Golden) -> None:
    engine: Any = Reranker(golden.folder, device="cpu", dtype="float32")._scoring.engine.current
    rows = [Row(list(range(5, 5 + length)), (2, length)) for length in (60, 9, 9, 40, 3)]
    bucket = Bucket.of([len(row) for row in rows], max_length=engine.facts.max_length)
    with torch.inference_mode():
        plain, filled = engine.model(pack(rows)), engine.model(pack(bucket.filled(rows)))
    torch.testing.assert_close(filled[: len(rows)], plain, atol=2e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("varlen_kernel")
@pytest.mark.parametrize("golden", encoders())
def test_replayed_passes_give_the_plain_scores(golden: Golden) -> None:
    """Other tokens than those that were recorded, in rows of other lengths and in other numbers."""
    recorder = Recorder()
    _, engine = opened(golden.folder, recorder)
    replayed = []
    with torch.inference_mode():
        for lengths in ([30, 4, 4], [1, 2, 33], [12, 12, 12], [38], [2] * 5, [50, 2]):
            rows = [
                Row(list(range(5 + n, 5 + n + length)), (length // 2, length)) for n, length in enumerate(lengths)
            ]
            found = engine._graphs.scores(rows)
            if found is not None:
                replayed.append((found, engine.model(pack(rows))))
    assert (len(replayed), len(recorder.tapes)) == (5, 1)  # all six are of one size
    for found, plain in replayed:
        torch.testing.assert_close(found, plain, atol=5e-6, rtol=1e-5)


@pytest.mark.usefixtures("varlen_kernel")
def test_a_reranker_gives_the_same_scores_with_and_without(folder: Path) -> None:
    recorder = Recorder()
    reranker, _ = opened(folder, recorder)
    plain = Reranker(folder, engine="torch", device="cpu", dtype="float32")
    for count in (3, 5, 4, 3, 1, 7):
        texts = ["the river is long", "water", "old bridge of stone and light", "a ship", "rain", "cold wind", "sea"]
        found = reranker.score("which river", texts[-count:])
        assert found == pytest.approx(plain.score("which river", texts[-count:]), abs=1e-5)
    assert recorder.attempts == 1
    assert reranker.info().reason.endswith("CUDA graphs up to 4096 tokens")


@pytest.mark.usefixtures("varlen_kernel")
def test_scores_are_not_overwritten_by_the_next_replay(folder: Path) -> None:
    _, engine = opened(folder, Recorder())
    with torch.inference_mode():
        batches = [[Row([5 + n] * 20, (4, 20))] for n in range(6)]
        found = [engine._graphs.scores(rows) for rows in batches]
        kept = [engine.model(pack(rows)) for rows in batches]
    assert found[0] is None
    for scores, plain in zip(found[1:], kept[1:], strict=True):
        torch.testing.assert_close(scores, plain, atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("varlen_kernel")
def test_those_least_recently_used_are_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GRAPHS", 2)
    recorder = Recorder()
    _, engine = opened(folder, recorder)
    with torch.inference_mode():
        for count in (1, 1, 10, 10, 1, 20, 20):  # rows: sizes of 8, 16 and 32
            engine._graphs.scores([Row([5] * 3, (1, 3))] * count)
        assert [tape.is_released for tape in recorder.tapes] == [False, True, False]
        engine._graphs.scores([Row([5] * 3, (1, 3))])
    assert recorder.attempts == 3


@pytest.mark.usefixtures("varlen_kernel")
@pytest.mark.parametrize(
    ("recorder", "why"),
    [
        (
            Recorder(fails=torch.OutOfMemoryError("CUDA out of memory. Tried")),
            "cannot be recorded .CUDA out of memory",
        ),
        (Recorder(fails=NotImplementedError("no such kernel")), "cannot be recorded .no such kernel"),
        (Recorder(differs=0.5), "recorded passes gave other scores"),
    ],
)
def test_what_cannot_be_recorded_runs_plainly(
    folder: Path, recorder: Recorder, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    reranker, engine = opened(folder, recorder)
    texts = ["the river is long", "water", "old bridge"]
    with caplog.at_level(logging.WARNING):
        scores = [reranker.score("which river", texts) for _ in range(4)]
    assert scores[0] == scores[1] == scores[2] == scores[3]
    assert recorder.attempts == 1  # it is not tried again
    assert all(tape.is_released for tape in recorder.tapes) and not engine._graphs._graphs
    assert [record.message.startswith("no CUDA graphs from now on") for record in caplog.records] == [True]
    assert re.search(f"no CUDA graphs: .*{why}", reranker.info().reason)


def test_what_reads_lengths_on_the_host_is_never_recorded(folder: Path) -> None:
    """Without the variable-length kernel the batch is cut by lengths, which the batch of a graph does not have."""
    recorder = Recorder()
    reranker, engine = opened(folder, recorder)
    scores = [reranker.score("which river", ["the river", "old bridge"]) for _ in range(3)]
    assert scores[0] == scores[1] == scores[2]
    assert recorder.attempts == 1 and not recorder.tapes
    assert "cannot be recorded" in engine.facts.reason


@pytest.mark.usefixtures("varlen_kernel")
def test_large_batches_run_plainly(folder: Path) -> None:
    recorder = Recorder()
    _, engine = opened(folder, recorder, max_tokens=100)
    with torch.inference_mode():
        for _ in range(3):
            assert engine._graphs.scores([Row([5] * 101, (1, 101))]) is None
    assert recorder.attempts == 0


@pytest.mark.usefixtures("varlen_kernel")
def test_graphs_give_way_where_memory_is_short(folder: Path) -> None:
    recorder = Recorder()
    _, engine = opened(folder, recorder)
    rows = [Row([5] * 3, (1, 3))]
    with torch.inference_mode():
        engine._graphs.scores(rows)
        engine._graphs.scores(rows)
    budget = Budget(8, release=lambda: engine._graphs.stop("memory ran short"))

    def forward(batch: list[int]) -> int:
        if not recorder.tapes[0].is_released:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(batch)

    assert sum(count for _, count in in_batches([4, 4], budget, forward)) == 2
    assert engine._graphs.scores(rows) is None
    assert engine._graphs.reason == "no CUDA graphs: memory ran short"


def model_of(name: str) -> Any:
    golden = golden_runs(name)[0].values[0]
    if golden is None:
        pytest.skip("no reference figures here")
    engine: Any = Reranker(golden.folder, device="cpu", dtype="float32")._scoring.engine.current
    return engine.model


@pytest.mark.parametrize(
    ("name", "kernel", "why"),
    [
        ("qwen3-llm-reranker", attend_varlen, "a decoder first computes what rows share"),
        ("bert-cross-encoder", attend_sdpa, "attention goes row by row"),
        ("bert-cross-encoder", attend_cpu_bf16, "attention goes row by row"),
        ("bert-cross-encoder", attend_varlen, None),
    ],
)
def test_which_families_are_recorded(name: str, kernel: Kernel, why: str | None) -> None:
    assert obstacle_of(model_of(name), kernel) == why


def test_what_goes_row_by_row_in_spite_of_the_kernel_is_not_recorded() -> None:
    """DeBERTa's distances have no form in the variable-length kernel."""
    model = model_of("deberta-v2-cross-encoder")
    use_kernel(model, attend_varlen)
    recorder = Recorder()
    graphs = Graphs(model, CPU, recorder, max_length=64, max_tokens=1000)
    with torch.inference_mode():
        found = [graphs.scores([Row([5] * 20, (4, 20))]) for _ in range(3)]
    assert found == [None, None, None]
    assert not recorder.tapes and "cannot be recorded" in graphs.reason


def test_graphs_are_asked_for_when_an_engine_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(folder)
    asked: list[Kernel] = []
    monkeypatch.setattr("secondpass.engine.torch.open_graphs", lambda model, kernel, *_: asked.append(kernel))
    open_engine(checkpoint, engine="torch", device="cpu", dtype="float32")
    assert not asked
    open_engine(checkpoint, engine="torch", device="cpu", dtype="float32", cuda_graphs=True)
    assert asked == [attend_sdpa]
    with pytest.raises(ValueError, match=r"cuda_graphs are the torch engine's"):
        open_engine(checkpoint, engine="openvino", cuda_graphs=True)


def test_nothing_is_recorded_unless_it_is_asked_for(folder: Path) -> None:
    engine: Any = Reranker(folder, engine="torch", device="cpu", dtype="float32")._scoring.engine.current
    assert open_graphs(engine.model, attend_varlen, CPU, Budget(1)) is None
    assert engine._graphs is None and "graphs" not in engine.facts.reason


def test_scores_that_differ_by_rounding_are_alike() -> None:
    scores = torch.tensor([[-8.0], [1.5], [4.0]])
    assert is_alike(scores + 0.05, scores)
    assert not is_alike(scores.flip(0), scores)
    assert not is_alike(scores * float("nan"), scores)
