from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from secondpass import Reranker
from secondpass.embedder import Embedder
from secondpass.engine.engine import Engine, EngineFacts, ReopeningEngine
from secondpass.errors import EngineError
from secondpass.scoring.open import ModelOptions, open_scoring
from secondpass.scoring.ranking import RankOptions
from secondpass.scoring.scoring import Scoring
from secondpass.server import batching, pacing
from secondpass.server.batching import Batch, BatchedEngine, EngineDown, Expired, QueueFull, State
from secondpass.server.registry import Pooling
from secondpass.types import Advance, EarlyExit, Row, Run
from tests.checkpoints import tiny_bert
from tests.server.live import until
from tests.test_embedder import tiny_embedder

SECONDS = 20  # no future here takes so long


def rows(*lengths: int, token: int = 1) -> list[Row]:
    return [Row([token] * length, (1, length)) for length in lengths]


class Gated:
    """An engine whose runs wait for the test; a row's score is its length, or what `judge` makes of its tokens."""

    def __init__(self, judge: Callable[[Row], float] = len) -> None:
        self.judge = judge
        self.runs: list[list[int]] = []  # the lengths of every run
        self.running = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(name="gated", device="none", dtype="none", reason="", max_length=512, token_budget=4096)

    def check(self, run: Run) -> None:
        """It runs anything."""

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        self.runs.append([len(row) for row in rows])
        self.running.release()
        assert self.gate.acquire(timeout=SECONDS)
        return np.array([[self.judge(row)] for row in rows], np.float32)

    def began(self) -> None:
        """Wait until the next run is on its way."""
        assert self.running.acquire(timeout=SECONDS)

    def open(self) -> None:
        """Let this and every later run end."""
        self.gate.release(10_000)


@pytest.fixture
def engine() -> Gated:
    return Gated()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., BatchedEngine]]:
    monkeypatch.setattr(pacing, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(batching, "LAST_BATCH_S", 0.001)
    found: list[BatchedEngine] = []

    def make(engine: Engine, *later: Callable[[], Engine], **options: object) -> BatchedEngine:
        openings = iter([lambda: engine, *later])
        found.append(BatchedEngine(ReopeningEngine(lambda: next(openings)()), **options))  # type: ignore[arg-type]
        return found[-1]

    yield make
    for each in found:
        each.close(grace_s=SECONDS)


Make = Callable[..., BatchedEngine]


@pytest.mark.promise("docs/scores.md", "A pair's score does not depend on its company")
def test_concurrent_requests_get_the_scores_that_they_get_alone(tmp_path: Path, made: Make) -> None:
    reranker = Reranker(tiny_bert(tmp_path / "model"), engine="torch")
    words = "the river bridge in winter is cold a city house near the sea".split()
    pairs = [
        [(f"where is {words[place % 12]}", " ".join(words[: 1 + (place * 7 + i) % 12])) for i in range(1 + place % 5)]
        for place in range(24)
    ]
    parts = reranker._scoring
    batches: list[Batch] = []
    batcher = made(reranker._scoring.engine.current, batch_tokens=64, on_batch=batches.append)

    def score(each: list[tuple[str, str]]) -> list[float]:
        readings = parts.reader.read(each, parts.limits)
        outcome = batcher.submit([reading.row for reading in readings], parts.run).result(SECONDS)
        assert outcome.scores.shape == (len(readings), 1)
        assert outcome.queue_s >= 0 and outcome.compute_s > 0
        return outcome.scores[:, 0].tolist()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(score, pairs))
    for each, scores in zip(pairs, found, strict=True):
        assert scores == pytest.approx(reranker.score_pairs(each), abs=1e-5)
    assert sum(batch.rows for batch in batches) == sum(map(len, pairs))
    assert max(batch.tokens for batch in batches) <= 64
    assert all(batch.padded_tokens >= batch.tokens for batch in batches)


def test_what_comes_during_a_batch_is_joined_in_the_next(engine: Gated, made: Make) -> None:
    batcher = made(engine, batch_tokens=100)
    futures = [batcher.submit(rows(10))]
    engine.began()
    futures += [batcher.submit(rows(20)), batcher.submit(rows(30, 31))]
    engine.open()
    assert [future.result(SECONDS).scores[:, 0].tolist() for future in futures] == [[10], [20], [30, 31]]
    assert engine.runs == [[10], [20, 31, 30]]


def test_a_short_request_is_computed_between_portions_of_a_long_one(engine: Gated, made: Make) -> None:
    batcher = made(engine, batch_tokens=100)
    long = batcher.submit(rows(*[50] * 6))
    engine.began()
    short = batcher.submit(rows(10))
    engine.open()
    short.result(SECONDS)
    assert long.result(SECONDS).scores[:, 0].tolist() == [50.0] * 6
    assert engine.runs == [[50, 50], [10, 50], [50, 50], [50]]


def test_a_cancelled_request_is_not_computed(engine: Gated, made: Make) -> None:
    batcher = made(engine, batch_tokens=50)
    first = batcher.submit(rows(10))
    engine.began()
    cancelled, kept = batcher.submit(rows(20)), batcher.submit(rows(30))
    assert cancelled.cancel()
    engine.open()
    first.result(SECONDS), kept.result(SECONDS)
    assert engine.runs == [[10], [30]]
    with pytest.raises(CancelledError):
        cancelled.result()


def test_the_rest_of_a_request_cancelled_half_way_is_not_computed(engine: Gated, made: Make) -> None:
    batcher = made(engine, batch_tokens=50)
    long = batcher.submit(rows(50, 50, 50))
    engine.began()
    assert long.cancel()
    engine.open()
    assert batcher.submit(rows(7)).result(SECONDS).scores.tolist() == [[7]]
    assert engine.runs == [[50], [7]]


@pytest.mark.promise("docs/serving.md", "requests whose client is gone or whose time is up are dropped")
def test_a_request_past_its_deadline_is_not_computed(engine: Gated, made: Make) -> None:
    batcher = made(engine)
    first = batcher.submit(rows(10))
    engine.began()
    late = batcher.submit(rows(20), deadline=time.monotonic() - 1)
    engine.open()
    first.result(SECONDS)
    with pytest.raises(Expired, match="deadline"):
        late.result(SECONDS)
    assert engine.runs == [[10]]


def test_a_full_queue_refuses_and_says_when_to_come_back(engine: Gated, made: Make) -> None:
    batcher = made(engine, max_requests=2, max_tokens=1000)
    futures = [batcher.submit(rows(10))]
    engine.began()
    futures += [batcher.submit(rows(10)), batcher.submit(rows(10))]
    with pytest.raises(QueueFull, match="2 requests with 20 tokens") as refused:
        batcher.submit(rows(10))
    assert refused.value.retry_after_s >= 1
    futures[1].cancel()  # what nobody waits for takes no room
    futures.append(batcher.submit(rows(40)))
    engine.open()
    assert [len(f.result(SECONDS).scores) for f in futures if not f.cancelled()] == [1, 1, 1]


def test_tokens_are_bounded_too_but_a_large_request_alone_is_taken(engine: Gated, made: Make) -> None:
    batcher = made(engine, max_tokens=100)
    first = batcher.submit(rows(10))
    engine.began()
    large = batcher.submit(rows(150))
    with pytest.raises(QueueFull, match="150 tokens"):
        batcher.submit(rows(1))
    engine.open()
    assert first.result(SECONDS).scores.tolist() == [[10]]
    assert large.result(SECONDS).scores.tolist() == [[150]]


def test_a_request_that_cannot_be_scored_harms_no_other(made: Make) -> None:
    def judge(row: Row) -> float:
        if row.ids[0] == 13:
            raise EngineError("1 of 1 scores are not finite")
        return len(row)

    engine = Gated(judge)
    batcher = made(engine)
    first = batcher.submit(rows(10))
    engine.began()
    before, bad, after = batcher.submit(rows(20)), batcher.submit(rows(30, 31, token=13)), batcher.submit(rows(40))
    engine.open()
    assert [f.result(SECONDS).scores.tolist() for f in (first, before, after)] == [[[10]], [[20]], [[40]]]
    with pytest.raises(EngineError, match="not finite"):
        bad.result(SECONDS)
    assert batcher.status().restarts == 0


@pytest.mark.promise("docs/serving.md", "An engine that fails is opened anew with growing pauses")
def test_a_crashed_engine_is_opened_anew(made: Make) -> None:
    def crash(row: Row) -> float:
        raise RuntimeError("device lost")

    broken, whole = Gated(crash), Gated()
    calls = threading.Semaphore(0)

    def fails() -> Engine:
        calls.acquire()
        raise OSError("still busy")

    def opens() -> Engine:
        calls.acquire()
        return whole

    batcher = made(broken, fails, opens)
    hit = batcher.submit(rows(10))
    broken.began()
    waiting = batcher.submit(rows(20))
    broken.open()
    for future in (hit, waiting):
        with pytest.raises(EngineDown, match="being restarted") as down:
            future.result(SECONDS)
        assert down.value.retry_after_s >= 1
    status = batcher.status()
    assert (status.state, status.last_error, status.restarts) == (State.restarting, "RuntimeError: device lost", 0)
    with pytest.raises(EngineDown, match="being restarted"):
        batcher.submit(rows(10))
    calls.release(2)
    whole.open()
    until(lambda: batcher.status().state is State.ready)
    assert batcher.submit(rows(7)).result(SECONDS).scores.tolist() == [[7]]
    assert batcher.status().restarts == 1
    assert batcher.status().last_error == "OSError: still busy"


def test_close_computes_what_was_accepted(engine: Gated, made: Make) -> None:
    batcher = made(engine, batch_tokens=10)
    futures = [batcher.submit(rows(10)) for _ in range(3)]
    engine.open()
    assert batcher.close(grace_s=SECONDS)
    assert [future.result(0).scores.tolist() for future in futures] == [[[10]]] * 3
    with pytest.raises(EngineDown, match="stopping"):
        batcher.submit(rows(1))


def test_close_fails_what_is_not_done_in_time(engine: Gated, made: Make) -> None:
    batcher = made(engine, batch_tokens=10)
    futures = [batcher.submit(rows(10)) for _ in range(2)]
    engine.began()
    assert not batcher.close(grace_s=0)
    with pytest.raises(EngineDown, match="stopping"):
        futures[1].result(SECONDS)
    engine.open()
    assert futures[0].result(SECONDS).scores.tolist() == [[10]]


def test_no_rows_need_no_engine(engine: Gated, made: Make) -> None:
    assert made(engine).submit([]).result(0).scores.shape == (0, 1)
    assert engine.runs == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_bert(tmp_path / "model")


def real(folder: Path) -> Scoring:
    return open_scoring(ModelOptions(model=folder, engine="torch"))


def rows_of(scoring: Scoring, *texts: str) -> list[Row]:
    return [one.row for one in scoring.reader.read([("where is the river", text) for text in texts], scoring.limits)]


def break_weights(scoring: Scoring) -> None:
    """From now on every score of this engine is NaN, which it raises EngineError for, whatever it is given."""
    import torch

    assert isinstance(scoring.engine, ReopeningEngine)
    model = vars(scoring.engine.current)["model"]
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))


@pytest.mark.promise("docs/serving.md", "An engine that fails is opened anew with growing pauses")
def test_an_engine_that_fails_for_every_request_is_dead_and_opened_anew(folder: Path, made: Make) -> None:
    scoring = real(folder)
    batched = BatchedEngine(scoring.engine)  # type: ignore[arg-type]
    given = rows_of(scoring, "the old bridge", "a warm night")
    before = batched.run(given, scoring.run)
    break_weights(scoring)
    with pytest.raises(EngineDown, match="being restarted"):
        batched.run(given, scoring.run)
    assert "finite" in str(batched.status().last_error)
    until(lambda: batched.status().state is State.ready)
    assert batched.run(given, scoring.run) == pytest.approx(before)
    assert batched.status().restarts == 1
    assert batched.close(grace_s=SECONDS)


@pytest.mark.promise("docs/serving.md", "An engine that fails is opened anew with growing pauses")
def test_a_reopening_that_fails_is_tried_until_it_succeeds(folder: Path, made: Make) -> None:
    """The checkpoint is away for a while, as a volume that is not mounted yet."""
    scoring = real(folder)
    batched = BatchedEngine(scoring.engine)  # type: ignore[arg-type]
    given = rows_of(scoring, "the old bridge")
    before = batched.run(given, scoring.run)
    away = folder.rename(folder.with_name("away"))
    break_weights(scoring)
    with pytest.raises(EngineDown):
        batched.run(given, scoring.run)
    until(lambda: "finite" not in str(batched.status().last_error))  # at least one attempt has failed
    assert batched.status().state is State.restarting
    with pytest.raises(EngineDown, match="being restarted"):
        batched.run(given, scoring.run)
    away.rename(folder)
    until(lambda: batched.status().state is State.ready)
    assert batched.run(given, scoring.run) == pytest.approx(before)
    assert batched.close(grace_s=SECONDS)


@pytest.mark.slow
def test_an_embedder_that_is_opened_anew_is_in_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching.log, "disabled", True)  # pytest keeps what is logged, and with it the engine
    gc.collect()
    others = [each for each in gc.get_objects() if type(each) is Embedder]  # that tests before this one still hold
    embedder = Embedder(str(tiny_embedder(tmp_path)))
    batched = BatchedEngine(Pooling(embedder))
    given = embedder.rows(["the old bridge"])
    before = batched.run(given, Run())
    encoder = weakref.ref(embedder._encoder.current)
    vars(encoder())["model"] = None  # it raises what no request is to blame for
    with pytest.raises(EngineDown, match="being restarted"):
        batched.run(given, Run())
    until(lambda: batched.status().state is State.ready)
    assert batched.run(given, Run()) == pytest.approx(before, abs=1e-6)
    gc.collect()
    assert encoder() is None
    found = [each for each in gc.get_objects() if type(each) is Embedder]
    assert len([each for each in found if all(each is not other for other in others)]) == 1
    assert embedder.encode(["the old bridge"]) == pytest.approx(before, abs=1e-6)
    assert batched.close(grace_s=SECONDS)


def test_the_library_scores_through_it_and_the_call_knows_what_it_cost(folder: Path) -> None:
    scoring = real(folder)
    batched = BatchedEngine(scoring.engine)  # type: ignore[arg-type]
    view = batched.for_call()
    documents = ["the old bridge", "a river", "night by the sea"]
    served = replace(scoring, engine=view).rank("where is the bridge", documents, RankOptions(top_n=2))
    alone = scoring.rank("where is the bridge", documents, RankOptions(top_n=2))
    assert [hit.score for hit in served] == pytest.approx([hit.score for hit in alone], abs=1e-5)
    assert view.compute_s > 0
    view.cancel()
    with pytest.raises(CancelledError):
        replace(scoring, engine=view).rank("q", documents, RankOptions())
    assert batched.close(grace_s=SECONDS)


@pytest.mark.promise("docs/serving.md", "or than can be computed before the request's own deadline")
def test_what_cannot_be_done_by_its_deadline_is_not_accepted(engine: Gated, made: Make) -> None:
    """A batch of 2,048 tokens in some milliseconds is measured; then one that is far too slow is in the way."""
    batcher = made(engine, batch_tokens=2048)
    batcher._throughput.learn(2000, seconds=2.0)
    first = batcher.submit(rows(512))
    engine.began()
    batcher.submit(rows(*[500] * 8))
    now = time.monotonic()
    assert batcher.submit(rows(5), deadline=now + 3)  # a short one goes first
    with pytest.raises(QueueFull, match="this one would be done too late") as refused:
        batcher.submit(rows(*[500] * 8), deadline=now + 3)
    assert 1 <= refused.value.retry_after_s < 10
    assert batcher.submit(rows(*[500] * 8), deadline=now + 60)
    engine.open()
    assert first.result(SECONDS)


def test_it_is_closed_with_the_reason_that_is_given(engine: Gated, made: Make) -> None:
    batcher = made(engine)
    batcher.close(grace_s=1, reason="the model 'large' is not served any more")
    with pytest.raises(EngineDown, match="'large' is not served any more"):
        batcher.submit(rows(1))


def test_candidates_of_an_early_exit_run_together_and_alone(engine: Gated, made: Make) -> None:
    batcher = made(engine, batch_tokens=50)
    first = batcher.submit(rows(10))
    engine.began()
    run = Run(early_exit=EarlyExit(0.5))
    exits = [batcher.submit(rows(30, 30, 30), run), batcher.submit(rows(20, 20), run)]
    engine.open()
    assert [len(each.result(SECONDS).scores) for each in (first, *exits)] == [1, 3, 2]
    assert [sorted(lengths) for lengths in engine.runs] == [[10], [20, 20], [30, 30, 30]]
