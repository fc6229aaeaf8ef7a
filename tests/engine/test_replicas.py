"""Replicas on several devices: the same scores in order, and no failure is silent or waits for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondpass import Reranker
from secondpass.engine.replicas import ReplicaEngine, devices_of
from secondpass.errors import EngineError
from tests.checkpoints import tiny_bert

QUERY = "which river is long"
TEXTS = ["the river is long " + "water " * (n % 60) + "light " * (n // 60) for n in range(150)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def single(folder: Path) -> Reranker:
    return Reranker(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def double(folder: Path) -> Iterator[Reranker]:
    yield Reranker(folder, dtype="float32", device="cpu,cpu", token_budget=64)


def processes(reranker: Reranker) -> list[Any]:
    engine = reranker.engine
    assert isinstance(engine, ReplicaEngine)
    return [replica._process for replica in engine._replicas]


@pytest.mark.parametrize(
    ("device", "devices"),
    [
        ("auto", ["auto"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:0,cuda:2", ["cuda:0", "cuda:2"]),
        ("cuda:0,1,3", ["cuda:0", "cuda:1", "cuda:3"]),
        ("cpu,cpu", ["cpu", "cpu"]),
    ],
)
def test_devices_are_named_with_commas(device: str, devices: list[str]) -> None:
    assert devices_of(device) == devices


@pytest.mark.slow
def test_scores_are_those_of_one_device_in_order(single: Reranker, double: Reranker) -> None:
    seen: list[tuple[int, int]] = []
    pairs = [(QUERY, text) for text in TEXTS]
    scores = double.score_pairs(pairs, progress=lambda *at: seen.append(at))
    assert scores == pytest.approx(single.score_pairs(pairs), abs=1e-5)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (150, 150)
    assert double.score(QUERY, []) == []
    info = double.info()
    assert (info.engine, info.device, info.dtype) == ("torch", "cpu,cpu", "float32")
    assert "2 replicas" in info.reason


@pytest.mark.slow
def test_both_work(double: Reranker) -> None:
    def spent() -> list[float]:
        ticks = os.sysconf("SC_CLK_TCK")
        stats = [Path(f"/proc/{each.pid}/stat").read_text().rsplit(")", 1)[1].split() for each in processes(double)]
        return [int(fields[11]) / ticks for fields in stats]

    if not Path("/proc/self/stat").exists():
        pytest.skip("processor time of a process is read from /proc")
    before = spent()
    for _ in range(20):
        double.score(QUERY, TEXTS)
    assert all(after > earlier for after, earlier in zip(spent(), before, strict=True))


@pytest.mark.slow
def test_what_the_model_does_not_have_is_refused_and_work_goes_on(double: Reranker, single: Reranker) -> None:
    with pytest.raises(ValueError, match="layer"):
        double.score(QUERY, TEXTS, cutoff_layer=1)
    assert double.score(QUERY, TEXTS) == pytest.approx(single.score(QUERY, TEXTS), abs=1e-5)


@pytest.mark.slow
def test_an_error_has_the_workers_traceback(tmp_path: Path) -> None:
    (tiny_bert(tmp_path) / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EngineError, match=r"(?s)the replica on cpu failed.*Traceback.*replica_worker"):
        Reranker(tmp_path, device="cpu,cpu")


@pytest.mark.slow
def test_a_device_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="device is 'cpu:7x'"):
        Reranker(folder, device="cpu,cpu:7x")


@pytest.mark.slow
def test_a_dead_replica_is_an_error_and_a_new_engine_works(folder: Path, single: Reranker) -> None:
    reranker = Reranker(folder, dtype="float32", device="cpu,cpu")
    os.kill(processes(reranker)[1].pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(EngineError, match="the replica on cpu died with exit code -9"):
        for _ in range(50):  # the other may take all batches of a short list
            reranker.score(QUERY, TEXTS)
    assert time.monotonic() - started < 30
    reranker.reopen_engine()
    assert reranker.score(QUERY, TEXTS) == pytest.approx(single.score(QUERY, TEXTS), abs=1e-5)


@pytest.mark.slow
def test_the_workers_end_with_the_engine(folder: Path) -> None:
    reranker = Reranker(folder, dtype="float32", device="cpu,cpu")
    workers = processes(reranker)
    del reranker
    assert [worker.wait(timeout=10) is not None for worker in workers] == [True, True]
