from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from secondpass import Reranker
from secondpass.embedder import Embedder
from secondpass.engine.engine import EngineFacts
from secondpass.server.service import CallContext, Service
from secondpass.server.settings import ModelSource, Settings
from secondpass.types import Advance, Row, Run
from secondpass.wire.calls import Budgets, EmbedCall, Fault, Refusal, RerankCall, ScoreCall
from tests.checkpoints import tiny_bert
from tests.test_embedder import tiny_embedder

T = TypeVar("T")
CONTEXT = CallContext(request_id="r1")
QUERY = "where is the old bridge"
WORDS = "the river bridge in winter is cold a city house near sea".split()
DOCUMENTS = tuple(" ".join(WORDS[: 1 + place % len(WORDS)]) for place in range(9))
LONG = " ".join(WORDS * 40)  # several times as long as the model reads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Reranker:
    return Reranker(folder)


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[..., Service]]:
    """Makes services that are started, and closes them."""
    made: list[Service] = []

    def start(**settings: Any) -> Service:
        models = settings.pop("models", (ModelSource(name="tiny", path=str(folder)),))
        service = Service(Settings(models=models, **settings))
        made.append(service)
        asyncio.run(service.start())
        return service

    yield start
    for service in made:
        service.close()


Serve = Callable[..., Service]


def refused(work: Awaitable[Any]) -> Refusal:
    with pytest.raises(Refusal) as found:
        wait(work)
    return found.value


def wait(work: Awaitable[T]) -> T:
    async def done() -> T:
        return await work

    return asyncio.run(done())


def test_a_ranking_is_the_rerankers_own(serve: Serve, reranker: Reranker) -> None:
    ranked = wait(serve().rerank(RerankCall(query=QUERY, documents=DOCUMENTS, top_n=4), CONTEXT))
    hits = reranker.rank(QUERY, DOCUMENTS, top_n=4)
    assert [item.index for item in ranked.items] == [hit.index for hit in hits]
    assert [item.logit for item in ranked.items] == pytest.approx([hit.score for hit in hits], abs=1e-5)
    assert [item.probability for item in ranked.items] == pytest.approx([hit.probability for hit in hits], abs=1e-5)
    assert (ranked.id, ranked.model) == ("r1", "tiny")
    assert ranked.cost.tokens == hits.usage.tokens
    assert ranked.cost.rows == len(DOCUMENTS)
    assert ranked.cost.characters == len(QUERY) + sum(map(len, DOCUMENTS))
    assert ranked.timing.total >= ranked.timing.compute > 0


def test_scores_come_in_the_order_of_the_pairs(serve: Serve, reranker: Reranker) -> None:
    pairs = (("river", "bridge"), ("sea", "cold water"), ("river", "bridge"))
    scored = wait(serve().score(ScoreCall(pairs=pairs), CONTEXT))
    assert [item.index for item in scored.items] == [0, 1, 2]
    assert [item.logit for item in scored.items] == pytest.approx(reranker.score_pairs(pairs), abs=1e-5)


def test_many_at_once_get_what_they_get_alone(serve: Serve, reranker: Reranker) -> None:
    service = serve()
    queries = [f"{QUERY} {word}" for word in WORDS]

    async def all_at_once() -> list[list[float]]:
        calls = [
            service.score(ScoreCall(pairs=tuple((query, text) for text in DOCUMENTS)), CONTEXT) for query in queries
        ]
        return [[item.logit for item in ranked.items] for ranked in await asyncio.gather(*calls)]

    for query, scores in zip(queries, asyncio.run(all_at_once()), strict=True):
        assert scores == pytest.approx(reranker.score(query, DOCUMENTS), abs=1e-5)


def test_documents_are_cut_as_asked(serve: Serve, reranker: Reranker) -> None:
    service = serve()

    def logit(**budgets: Any) -> float:
        call = RerankCall(query=QUERY, documents=(LONG,), budgets=Budgets(**budgets))
        item = wait(service.rerank(call, CONTEXT)).items[0]
        assert item.is_cut
        return item.logit

    words = LONG.split()
    assert logit() == pytest.approx(reranker.score(QUERY, [LONG])[0], abs=1e-5)
    assert logit(max_length=40) == pytest.approx(reranker.score(QUERY, [LONG], max_length=40)[0], abs=1e-5)
    assert logit(max_length=10**6) == pytest.approx(reranker.score(QUERY, [LONG])[0], abs=1e-5)
    first, last = " ".join(words[:20]), " ".join(words[-20:])
    assert logit(max_document_tokens=20) == pytest.approx(reranker.score(QUERY, [first])[0], abs=1e-5)
    assert logit(max_document_tokens=20, keep_end=True) == pytest.approx(reranker.score(QUERY, [last])[0], abs=1e-5)
    room = 128 - len(reranker._scoring.reader.read([(QUERY, "")], reranker._scoring.limits)[0].row)
    tail = " ".join(words[-room:])
    assert logit(keep_end=True) == pytest.approx(reranker.score(QUERY, [tail])[0], abs=1e-5)
    cut_query = " ".join(QUERY.split()[:2])
    assert logit(max_query_tokens=2, max_document_tokens=20) == pytest.approx(
        reranker.score(cut_query, [first])[0], abs=1e-5
    )


def test_the_best_window_of_a_long_document_counts(serve: Serve, folder: Path) -> None:
    service = serve()
    chunked = Reranker(folder, long_documents="chunk")

    def ask(**budgets: Any) -> Any:
        call = RerankCall(query=QUERY, documents=(LONG, "river"), budgets=Budgets(in_windows=True, **budgets))
        return wait(service.rerank(call, CONTEXT))

    found = {item.index: item for item in ask().items}
    scores = chunked.score(QUERY, [LONG, "river"])
    assert [found[0].logit, found[1].logit] == pytest.approx(scores, abs=1e-5)
    assert not found[0].is_cut
    windows = ask().cost.rows - 1
    assert windows > 2
    limited = ask(max_windows=2)
    assert limited.cost.rows == 3
    assert {item.index: item.is_cut for item in limited.items} == {0: True, 1: False}
    part = " ".join(LONG.split()[:150])
    cut = {item.index: item for item in ask(max_document_tokens=150).items}
    assert cut[0].logit == pytest.approx(chunked.score(QUERY, [part])[0], abs=1e-5)


def test_what_may_not_be_cut_is_refused(serve: Serve) -> None:
    service = serve()
    budgets = Budgets(may_truncate=False)
    refusal = refused(service.rerank(RerankCall(query=QUERY, documents=("a", LONG), budgets=budgets), CONTEXT))
    assert refusal.fault is Fault.too_large
    assert "1 of 2 inputs are longer than 128 tokens" in refusal.message
    assert wait(service.rerank(RerankCall(query=QUERY, documents=("a",), budgets=budgets), CONTEXT)).items


def test_strange_texts_are_ranked(serve: Serve) -> None:
    texts = ("", "\x00", "\ud800 lone", "\u202e right to left", "🙂" * 300, " ", "a" * 5000)
    ranked = wait(serve().rerank(RerankCall(query="\udfff?", documents=texts), CONTEXT))
    assert sorted(item.index for item in ranked.items) == list(range(len(texts)))
    assert all(np.isfinite(item.logit) for item in ranked.items)


def test_no_documents_are_an_empty_ranking(serve: Serve) -> None:
    assert wait(serve().rerank(RerankCall(query=QUERY, documents=()), CONTEXT)).items == ()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_documents": 2}, "9 documents; this server takes 2"),
        ({"max_document_characters": 20}, "characters; this server takes 20"),
        ({"max_request_tokens": 50}, "tokens; this server takes 50"),
    ],
)
def test_limits_are_said(serve: Serve, settings: dict[str, Any], words: str) -> None:
    refusal = refused(serve(**settings).rerank(RerankCall(query=QUERY, documents=DOCUMENTS), CONTEXT))
    assert (refusal.fault, refusal.parameter) == (Fault.too_large, "documents")
    assert words in refusal.message


def test_limits_of_embeddings_name_their_texts(serve: Serve) -> None:
    refusal = refused(serve(max_documents=2).embed(EmbedCall(texts=("a", "b", "c")), CONTEXT))
    assert (refusal.fault, refusal.parameter) == (Fault.too_large, "input")
    assert refusal.message == "3 texts; this server takes 2 in one request"


def test_an_instruction_needs_a_model_that_reads_it(serve: Serve) -> None:
    call = RerankCall(query=QUERY, documents=DOCUMENTS, instruction="be kind")
    assert refused(serve().rerank(call, CONTEXT)).fault is Fault.unsupported


def test_models_are_found_by_name(serve: Serve, folder: Path, tmp_path: Path) -> None:
    other = tiny_bert(tmp_path / "other", seed=5)
    two = (ModelSource(name="tiny", path=str(folder)), ModelSource(name="other", path=str(other)))

    def served(service: Service, model: str | None) -> str | Fault:
        try:
            return wait(service.rerank(RerankCall(query=QUERY, documents=("a",), model=model), CONTEXT)).model
        except Refusal as refusal:
            return refusal.fault

    service = serve(models=two, aliases={"rerank-v3.5": "other"})
    assert [served(service, name) for name in (None, "default", "tiny", "other", "rerank-v3.5", "x")] == [
        "tiny", "tiny", "tiny", "other", "other", Fault.unknown_model,
    ]  # fmt: skip
    assert served(serve(), "rerank-v3.5") == "tiny"
    assert served(serve(strict_models=True), "rerank-v3.5") == Fault.unknown_model


def test_models_come_and_go(serve: Serve, tmp_path: Path) -> None:
    service = serve()
    other = ModelSource(name="other", path=str(tiny_bert(tmp_path / "other", seed=5)))

    async def change() -> list[list[str]]:
        names = []
        await service.load(other)
        names.append([card.name for card in service.models()])
        with pytest.raises(Refusal, match="'other' is served already"):
            await service.load(other)
        await service.unload("tiny")
        names.append([card.name for card in service.models()])
        with pytest.raises(Refusal, match="no model is named 'tiny'; there are other"):
            await service.unload("tiny")
        return names

    assert asyncio.run(change()) == [["tiny", "other"], ["other"]]
    assert wait(service.rerank(RerankCall(query=QUERY, documents=("a",)), CONTEXT)).model == "other"


def test_an_embedder_embeds(serve: Serve, tmp_path: Path, folder: Path) -> None:
    path = str(tiny_embedder(tmp_path))
    sources = (ModelSource(name="tiny", path=str(folder)), ModelSource(name="vectors", path=path, kind="embedder"))
    service = serve(models=sources)
    found = wait(service.embed(EmbedCall(texts=("river", "the old bridge")), CONTEXT))
    assert np.allclose(found.vectors, Embedder(path).encode(["river", "the old bridge"]), atol=1e-5)
    assert (found.model, found.cost.rows) == ("vectors", 2)
    assert [(card.is_reranker, card.is_embedder) for card in service.models()] == [(True, False), (False, True)]
    assert refused(service.embed(EmbedCall(texts=("a",), model="tiny"), CONTEXT)).fault is Fault.unsupported
    assert refused(serve().embed(EmbedCall(texts=("a",)), CONTEXT)).fault is Fault.unsupported
    assert wait(service.rerank(RerankCall(query=QUERY, documents=("a",)), CONTEXT)).model == "tiny"


FACTS = EngineFacts(name="held", device="none", dtype="none", reason="", max_length=512, token_budget=4096)


class Stuck:
    """An engine that the test holds back."""

    facts = FACTS

    def __init__(self) -> None:
        self.gate, self.running = threading.Event(), threading.Event()
        self.rows = 0

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        self.running.set()
        assert self.gate.wait(20)
        self.rows += len(rows)
        return np.zeros((len(rows), 1), np.float32)


@pytest.fixture
def stuck(serve: Serve) -> Iterator[tuple[Service, Stuck]]:
    service, engine = serve(max_queue_requests=1, stall_s=0.001), Stuck()
    _put(service, engine)
    yield service, engine
    engine.gate.set()


def test_a_full_queue_refuses_a_late_call_is_given_up_a_stuck_engine_is_seen(stuck: tuple[Service, Stuck]) -> None:
    service, engine = stuck
    call = RerankCall(query=QUERY, documents=("a", "b"))

    async def crowd() -> None:
        first = asyncio.create_task(service.rerank(call, CONTEXT))
        await asyncio.to_thread(engine.running.wait, 20)
        soon = CallContext(request_id="r2", deadline=time.monotonic() + 0.2)
        late = asyncio.create_task(service.rerank(call, soon))
        while not service.loads()[0][1]:
            await asyncio.sleep(0.001)
        with pytest.raises(Refusal) as full:
            await service.rerank(call, CONTEXT)
        assert full.value.fault is Fault.overloaded
        assert full.value.retry_after is not None
        with pytest.raises(Refusal) as expired:
            await late
        assert expired.value.fault is Fault.deadline
        health = service.health()
        assert not health.is_alive
        assert health.models["tiny"]["state"] == "stalled"
        engine.gate.set()
        assert len((await first).items) == 2

    asyncio.run(crowd())
    assert engine.rows == 2  # the late call was not computed
    assert service.health().is_ready


def _put(service: Service, engine: object) -> None:
    """This engine in place of the open one, until it is opened anew."""
    held = vars(service.registry.all()[0].batches)["_engine"]
    vars(held._held)["_current"] = engine


def test_a_crash_of_the_engine_is_said_and_mended(serve: Serve, reranker: Reranker) -> None:
    service = serve()

    class Dead:
        facts = FACTS

        def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
            raise MemoryError("no more")

    _put(service, Dead())
    call = RerankCall(query=QUERY, documents=DOCUMENTS)
    refusal = refused(service.rerank(call, CONTEXT))
    assert (refusal.fault, refusal.retry_after) == (Fault.unavailable, 1.0)
    assert not service.health().is_ready
    assert service.health().models["tiny"]["last_error"] == "MemoryError: no more"
    end = time.monotonic() + 20
    while not service.health().is_ready and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert service.health().models["tiny"]["restarts"] == 1
    ranked = wait(service.score(ScoreCall(pairs=tuple((QUERY, text) for text in DOCUMENTS)), CONTEXT))
    assert [item.logit for item in ranked.items] == pytest.approx(reranker.score(QUERY, DOCUMENTS), abs=1e-5)


class Texts(tuple[str, ...]):
    """Texts that know how often they were read."""

    num_reads = 0

    def __iter__(self) -> Iterator[str]:
        self.num_reads += 1
        return super().__iter__()


@pytest.mark.promise("docs/serving.md", "requests whose client is gone or whose time is up are dropped")
def test_the_texts_of_a_call_that_was_given_up_are_not_read(serve: Serve) -> None:
    service, documents = serve(tokenize_threads=1), Texts(DOCUMENTS)
    slots = service._slots
    turn = slots.enter(0, None)

    async def given_up() -> int:
        working = asyncio.ensure_future(service.rerank(RerankCall(query=QUERY, documents=documents), CONTEXT))
        while not slots._waiting:
            await asyncio.sleep(0.001)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        return documents.num_reads

    num_reads = asyncio.run(given_up())
    turn.leave()
    service._pool.shutdown()
    assert (documents.num_reads, slots._free) == (num_reads, 1)


def test_a_call_for_which_no_thread_can_be_started_is_refused_and_the_next_is_answered(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve()
    start = threading.Thread.start

    def start_none_for_a_call(thread: threading.Thread) -> None:
        if thread.name.startswith("call"):
            raise RuntimeError("can't start new thread")
        start(thread)

    call = RerankCall(query=QUERY, documents=DOCUMENTS)
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", start_none_for_a_call)
        refusal = refused(service.rerank(call, CONTEXT))
    assert (refusal.fault, refusal.retry_after) == (Fault.unavailable, 2.0)
    assert refusal.message == "the server has no thread for this call: can't start new thread"
    assert len(wait(service.rerank(call, CONTEXT)).items) == len(DOCUMENTS)


def test_calls_before_the_start_and_after_the_stop_are_refused(folder: Path) -> None:
    service = Service(Settings(models=(ModelSource(name="tiny", path=str(folder)),)))
    call = RerankCall(query=QUERY, documents=("a",))
    assert refused(service.rerank(call, CONTEXT)).message == "the server is loading its models"
    assert not service.health().is_ready
    asyncio.run(service.start())
    assert service.health().is_ready
    service.close()
    assert refused(service.rerank(call, CONTEXT)).message == "the server is stopping"
