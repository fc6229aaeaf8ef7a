"""Batches side by side: the same scores, every row once, and torch's threads are left as they were."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from secondpass import Embedder, Reranker
from secondpass.engine.batches import Budget, OutOfMemory
from secondpass.engine.cpu import parallel as streams
from secondpass.engine.cpu.parallel import Streams, divide, start
from tests.checkpoints import tiny_bert

QUERY = "which river is long"
TEXTS = ["the river is long " + "water " * (n * 7 % 31) for n in range(60)]
WIDTH = 16

pytestmark = pytest.mark.skipif(
    "OpenMP" not in torch.__config__.parallel_info(), reason="torch divides its threads with OpenMP alone"
)


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads whatever the machine has, and streams for short texts."""
    monkeypatch.setattr(streams, "MIN_TOKENS", 16)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def length_of(lengths: list[int], seen: set[int] | None = None) -> streams.Forward[list[int]]:
    def forward(batch: list[int]) -> list[int]:
        if seen is not None:
            seen.add(threading.get_ident())
        return [lengths[place] for place in batch]

    return forward


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(2, 5), st.integers(60, 500))
def test_batches_hold_every_row_once_and_are_bounded(lengths: list[int], num_streams: int, room: int) -> None:
    batches = divide(lengths, num_streams, room=room, width=WIDTH)
    if batches:
        assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
        assert all(sum(lengths[place] for place in batch) <= room for batch in batches)
        assert len(batches) >= num_streams


def test_rows_of_one_length_stay_together_and_are_divided_evenly() -> None:
    assert [len(batch) for batch in divide([40] * 20, 2, room=1000, width=WIDTH)] == [10, 10]
    assert [len(batch) for batch in divide([40] * 20, 2, room=200, width=WIDTH)] == [5, 5, 5, 5]


@pytest.mark.parametrize(("lengths", "num_streams"), [([40] * 20, 1), ([3] * 5, 2), ([100, 30], 2), ([], 2)])
def test_what_does_not_pay_is_not_divided(lengths: list[int], num_streams: int) -> None:
    assert divide(lengths, num_streams, room=1000, width=WIDTH) == []


@pytest.mark.parametrize("budget", [64, 200, 5000])
def test_streams_take_turns_at_every_row(budget: int) -> None:
    lengths = [1 + place * 13 % 50 for place in range(80)]
    seen: set[int] = set()
    found = list(Streams(WIDTH).in_batches(lengths, Budget(budget), length_of(lengths, seen)))
    assert sorted(place for batch, _ in found for place in batch) == list(range(len(lengths)))
    assert all(values == [lengths[place] for place in batch] for batch, values in found)
    assert len(seen - {threading.get_ident()}) in (1, 2)
    # rows that need more than half of the budget are run by all threads, in the caller's
    assert (threading.get_ident() in seen) is (budget == 64)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("lengths", [[40] * 300, [1900, *[40] * 60], [3000, 200, 200]])
def test_no_batch_has_more_tokens_than_a_product(lengths: list[int], num_threads: int) -> None:
    """But for a longer row, whether it is run by one stream or by all threads."""
    torch.set_num_threads(num_threads)
    found = [batch for batch, _ in Streams(WIDTH).in_batches(lengths, Budget(16384), length_of(lengths))]
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[place] for place in batch) <= streams.MAX_TOKENS for batch in found)


def test_each_stream_has_its_share_and_the_caller_all() -> None:
    def forward(batch: list[int]) -> tuple[int, bool]:
        return torch.get_num_threads(), torch.is_inference_mode_enabled()

    torch.set_num_threads(5)
    found = list(Streams(WIDTH).in_batches([40] * 20, Budget(200), forward))
    assert {values for _, values in found} <= {(1, True), (2, True)}
    assert torch.get_num_threads() == 5
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [5]


def test_a_changed_number_of_threads_counts() -> None:
    sides = Streams(WIDTH)
    lengths = [40] * 20
    seen: set[int] = set()
    list(sides.in_batches(lengths, Budget(1000), length_of(lengths, seen)))
    assert threading.get_ident() not in seen
    torch.set_num_threads(1)
    seen.clear()
    list(sides.in_batches(lengths, Budget(1000), length_of(lengths, seen)))
    assert seen == {threading.get_ident()}


def test_threads_that_cannot_be_divided_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "ATen parallel backend: native thread pool")
    assert not start(2).is_divided
    lengths = [40] * 20
    seen: set[int] = set()
    list(Streams(WIDTH).in_batches(lengths, Budget(1000), length_of(lengths, seen)))
    assert seen == {threading.get_ident()}


def test_an_error_of_a_stream_is_raised_and_nothing_goes_on() -> None:
    begun: list[int] = []

    def forward(batch: list[int]) -> int:
        begun.append(batch[0])
        if 0 in batch:
            raise RuntimeError("shapes differ")
        time.sleep(0.01)
        return len(batch)

    sides = Streams(WIDTH)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(sides.in_batches([40] * 200, Budget(200), forward))
    count = len(begun)
    assert count < 50  # of 100 batches
    assert sum(values for _, values in sides.in_batches([40] * 20, Budget(1000), len)) == 20  # it works as before
    assert len(begun) == count


def test_what_does_not_fit_in_memory_is_halved() -> None:
    def forward(batch: list[int]) -> list[int]:
        if sum(lengths[place] for place in batch) > 100:
            raise MemoryError
        return [lengths[place] for place in batch]

    lengths = [10 + place % 30 for place in range(50)]
    budget = Budget(600)
    found = list(Streams(WIDTH).in_batches(lengths, budget, forward))
    assert sorted(place for batch, _ in found for place in batch) == list(range(50))
    assert all(values == [lengths[place] for place in batch] for batch, values in found)
    assert budget.tokens <= 100


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    def forward(batch: list[int]) -> None:
        raise MemoryError

    with pytest.raises(OutOfMemory, match="out of memory with 40 tokens at once"):
        list(Streams(WIDTH).in_batches([40] * 20, Budget(400), forward))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_scores_are_the_same(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = Reranker(tiny_bert(tmp_path), dtype=dtype, engine="torch", token_budget=512)
    names: set[str] = set()
    run = streams.Team.run

    def spied(*given: object) -> object:
        names.add("side by side")
        return run(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(streams.Team, "run", spied)
    found = reranker.score(QUERY, TEXTS)
    assert names
    torch.set_num_threads(1)
    np.testing.assert_allclose(found, reranker.score(QUERY, TEXTS), atol=1e-6 if dtype == "float32" else 2e-2)


def test_vectors_are_the_same(tmp_path: Path) -> None:
    file = tiny_bert(tmp_path) / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "classifier" not in name}, file)
    embedder = Embedder(tmp_path, dtype="float32", device="cpu")
    found = embedder.encode(TEXTS)
    torch.set_num_threads(1)
    np.testing.assert_allclose(found, embedder.encode(TEXTS), atol=1e-6)
