"""Batches that do not fit in memory are halved, and nothing is lost or changed."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from secondpass import Embedder, Reranker
from secondpass.engine.batches import Budget, OutOfMemory, filled, fitting, in_batches, is_out_of_memory
from secondpass.engine.cpu.parallel import Streams
from secondpass.errors import EngineError
from secondpass.packed import rung
from secondpass.types import Row
from tests.checkpoints import tiny_bert

QUERY = "which river is long"
TEXTS = ["the river is long " + "water " * n for n in range(30)]


@given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 400), st.integers(40, 400))
def test_every_row_runs_once_whatever_fits(lengths: list[int], budget: int, room: int) -> None:
    tried: list[int] = []

    def forward(batch: list[int]) -> list[int]:
        tried.append(sum(lengths[i] for i in batch))
        if tried[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [lengths[i] for i in batch]

    left = Budget(budget)
    done = list(in_batches(lengths, left, forward))
    assert sorted(i for batch, _ in done for i in batch) == list(range(len(lengths)))
    assert all(values == [lengths[i] for i in batch] for batch, values in done)
    assert sum(tokens > room for tokens in tried) <= 9  # each halves the budget
    assert left.tokens == budget or left.tokens <= max(tried) // 2 or left.tokens == 1


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    def forward(batch: list[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    budget = Budget(28)
    with pytest.raises(OutOfMemory, match="out of memory with 7 tokens at once; lower token_budget or max_length"):
        list(in_batches([7, 7, 7, 7], budget, forward))
    assert budget.tokens == 28  # memory that is short for all of them comes back


@pytest.mark.parametrize("run", [in_batches, Streams(64).in_batches])
def test_a_thread_without_kernels_is_replaced(run: Any) -> None:
    """oneDNN keeps that it had no memory for a kernel, for the thread; and no thread outlives a fork."""
    lengths, spoilt, room = [40] * 100, threading.local(), 100

    def forward(batch: list[int]) -> int:
        if getattr(spoilt, "is_so", False) or sum(lengths[i] for i in batch) > room:
            spoilt.is_so = True
            raise RuntimeError("could not create a primitive")
        return len(batch)

    def ranks() -> None:
        nonlocal room
        for _ in range(2):
            with pytest.raises(OutOfMemory):  # where a kernel is too large, nothing is tried again
                list(run(lengths, Budget(4000), forward))
        room = 4000
        child = os.fork()
        if child == 0:
            os._exit(sum(values for _, values in in_batches(lengths, Budget(4000), forward)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 100
        tried = Budget(4000)
        assert sum(values for _, values in run(lengths, tried, forward)) == 100
        assert tried.tokens == 4000

    with ThreadPoolExecutor(1) as thread:  # whose substitute goes with it
        thread.submit(ranks).result()


def test_other_errors_are_not_taken_for_it() -> None:
    def forward(batch: list[int]) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(in_batches([7, 7], Budget(28), forward))


def test_what_the_allocators_of_cpus_say_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


def limited(model: Any, num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that has memory for so many tokens."""
    inner = model.forward

    def forward(batch: Any, *rest: Any) -> Any:
        if len(batch.ids) > num_tokens:
            torch.empty(2**60, dtype=torch.uint8)
        return inner(batch, *rest)

    monkeypatch.setattr(model, "forward", forward)


def test_a_reranker_goes_on_with_less(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = Reranker(folder, dtype="float32", device="cpu")
    wanted = reranker.score(QUERY, TEXTS)
    engine: Any = reranker._scoring.engine.current
    before = engine.facts.token_budget
    limited(engine.model, 100, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert reranker.score(QUERY, TEXTS) == pytest.approx(wanted, abs=1e-5)
    assert 30 <= engine.facts.token_budget <= 100 < before
    assert "out of memory" in caplog.text
    caplog.clear()
    assert reranker.score(QUERY, TEXTS) == pytest.approx(wanted, abs=1e-5)
    assert not caplog.records


def test_an_embedder_goes_on_with_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny_bert(tmp_path) / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "classifier" not in name}, file)
    embedder = Embedder(tmp_path, dtype="float32", device="cpu")
    wanted = embedder.encode(TEXTS)
    engine: Any = embedder._encoder.current
    limited(engine.model, 60, monkeypatch)
    assert embedder.encode(TEXTS) == pytest.approx(wanted, abs=1e-5)
    assert engine.facts.token_budget <= 60


def test_a_text_too_long_for_the_memory_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = Reranker(folder, dtype="float32", device="cpu")
    engine: Any = reranker._scoring.engine.current
    limited(engine.model, 20, monkeypatch)
    with pytest.raises(EngineError, match=r"out of memory with \d+ tokens at once"):
        reranker.score(QUERY, TEXTS)


@pytest.mark.parametrize(("free", "tokens"), [(140 * 2**30, 65536), (2 * 2**30, 21845), (2**20, 1024)])
def test_the_budget_of_a_gpu_fits_its_free_memory(free: int, tokens: int) -> None:
    assert fitting(free, 65536, width=1024, mlp_width=4096, itemsize=2) == tokens


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_tokens_are_filled_up_to_one_of_few_numbers(lengths: list[int]) -> None:
    rows = [Row([7] * length, passage=(1, length)) for length in lengths]
    given_rows = filled(rows, longest=40)
    total = sum(map(len, given_rows))
    assert given_rows[: len(rows)] == rows
    assert total == rung(total) == rung(sum(lengths))
    assert all(1 <= len(row) <= 40 for row in given_rows)
