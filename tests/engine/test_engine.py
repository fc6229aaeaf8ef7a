"""Turns in the order of arrival, a long list that lets a short one in, and engines that are opened anew."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from secondpass import Reranker
from secondpass.engine import openvino, torch
from secondpass.engine.engine import EngineFacts, Reopening, ReopeningEngine, Turns
from secondpass.errors import EngineError
from secondpass.types import Row, Run
from tests.checkpoints import tiny_bert

FACTS = EngineFacts(name="one", device="cpu", dtype="float32", reason="", max_length=8, token_budget=16)


class OneEngine:
    """Scores every row 1."""

    facts = FACTS

    def check(self, run: Run) -> None:
        if run != Run():
            raise ValueError("not this run")

    def run(self, rows: Sequence[Row], run: Run, progress: Any = None) -> NDArray[np.float32]:
        return np.ones((len(rows), 1), np.float32)


def test_turns_go_round_in_the_order_of_arrival() -> None:
    turns, order = Turns(), list[int]()

    def take(name: int, ready: threading.Event) -> None:
        ready.set()
        for _ in range(3):
            with turns:
                order.append(name)

    with turns:
        threads = []
        for name in range(4):
            ready = threading.Event()
            threads.append(threading.Thread(target=take, args=(name, ready)))
            threads[-1].start()
            ready.wait()
            while len(turns._waiting) <= name:
                pass
        assert turns.is_wanted
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3] * 3
    assert not turns.is_wanted


def test_an_error_in_a_turn_lets_the_next_in() -> None:
    turns = Turns()
    with pytest.raises(RuntimeError), turns:
        raise RuntimeError
    with turns:
        pass


def test_who_gives_up_waiting_is_passed_over() -> None:
    turns = Turns()
    first, second = threading.Event(), threading.Event()
    with turns:
        turns._waiting.extend([first, second])
        turns._give_up(second)  # Ctrl-C while it waits
        assert not second.is_set()
    assert first.is_set()
    turns._give_up(first)  # Ctrl-C just when its turn came
    with turns:
        pass


def test_a_thread_that_would_wait_for_itself_is_told() -> None:
    turns = Turns()
    with turns, pytest.raises(EngineError, match="do not score in `progress`"), turns:
        pass
    with turns:
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "module"), [("torch", torch), ("openvino", openvino)])
def test_a_short_call_waits_for_a_batch_of_a_long_one(
    engine: str, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_bert(tmp_path) if engine == "torch" else "default"
    reranker: Any = Reranker(model, engine=engine, device="cpu", token_budget=64, passage_cache_bytes=0)
    monkeypatch.setattr(module, "TURN_TOKENS", 64)
    texts = [f"the river is long {n}" for n in range(200)]
    wanted = reranker.score("which river", texts)
    done: list[int] = []
    short: list[tuple[int, list[float]]] = []
    threads: list[threading.Thread] = []

    def score_one() -> None:
        scores = reranker.score("which river", texts[7:8])
        short.append((len(done), scores))

    def progress(rows: int, total: int) -> None:
        done.append(rows)
        if not threads:
            threads.append(threading.Thread(target=score_one))
            threads[0].start()
            current = reranker._scoring.engine.current
            while not (current._turns if engine == "torch" else current._requests._turns).is_wanted:
                pass

    assert reranker.score_pairs([("which river", text) for text in texts], progress=progress) == pytest.approx(wanted)
    threads[0].join()
    at, scores = short[0]
    assert at < len(done)
    assert scores == pytest.approx(wanted[7:8], abs=0.02)


def test_an_engine_that_cannot_be_opened_may_be_tried_again() -> None:
    fails: list[Exception] = []

    def opens() -> OneEngine:
        if fails:
            raise fails.pop()
        return OneEngine()

    engine = ReopeningEngine(opens)
    row = Row([1, 2], (1, 2))
    for _ in range(2):
        fails.append(MemoryError("no room"))
        with pytest.raises(MemoryError):
            engine.reopen()
        with pytest.raises(EngineError, match="could not be opened anew: no room"):
            engine.run([row], Run())
        assert engine.facts == FACTS
    engine.reopen()
    assert engine.run([row], Run()).tolist() == [[1.0]]
    with pytest.raises(ValueError, match="not this run"):
        engine.check(Run(compress_ratio=2))


@pytest.mark.slow
def test_the_old_one_is_gone_before_the_new_one_is_opened() -> None:
    seen: list[weakref.ref[OneEngine]] = []

    def opens() -> OneEngine:
        gc.collect()
        assert all(old() is None for old in seen)
        new = OneEngine()
        seen.append(weakref.ref(new))
        return new

    held = Reopening(opens)
    held.reopen()
    held.reopen()
    assert len(seen) == 3
    assert held.current is seen[-1]()


def reopenable(reranker: Reranker) -> ReopeningEngine:
    engine = reranker._scoring.engine
    assert isinstance(engine, ReopeningEngine)
    return engine


def test_a_reranker_goes_on_after_a_reopening_that_failed(tmp_path: Path) -> None:
    reranker: Any = Reranker(tiny_bert(tmp_path), device="cpu", dtype="float32")
    wanted = reranker.score("which river", ["a river", "a bridge"])
    weights = tmp_path / "model.safetensors"
    weights.rename(tmp_path / "away")
    with pytest.raises(Exception, match=r"model\.safetensors"):
        reopenable(reranker).reopen()
    with pytest.raises(EngineError):
        reranker.score("which river", ["a river"])
    assert reranker.info().engine == "torch"
    (tmp_path / "away").rename(weights)
    reopenable(reranker).reopen()
    assert reranker.score("which river", ["a river", "a bridge"]) == wanted
