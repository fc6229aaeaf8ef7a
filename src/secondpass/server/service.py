"""Service: calls in, answers out, over the models that are loaded; knows no dialect and no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from secondpass import __version__
from secondpass.embedder import Embedder
from secondpass.errors import EngineError
from secondpass.scoring.scoring import Scoring
from secondpass.server.batching import Batch, BatchedCall, Expired, QueueFull, Refused, State
from secondpass.server.calls import (
    CheckedEngine,
    Slot,
    Slots,
    documents_of,
    item_of,
    items_of,
    rank_options,
    scoring_of,
)
from secondpass.server.registry import Hosted, OnBatch, Registry
from secondpass.server.settings import ModelSource, Settings
from secondpass.text.documents import clean_query
from secondpass.types import Run, Usage
from secondpass.wire.calls import (
    Answer,
    Budgets,
    Call,
    Cost,
    EmbedCall,
    Fault,
    Item,
    ModelCard,
    Ranked,
    Refusal,
    RerankCall,
    ScoreCall,
    ServerCard,
    Timing,
    Vectors,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class CallContext:
    """What is known of a call beside its content. deadline is a time of time.monotonic()."""

    request_id: str
    deadline: float | None = None
    dialect: str = ""


@dataclass(frozen=True, kw_only=True)
class Health:
    """Whether the server works, and each model's state in words."""

    is_ready: bool
    is_alive: bool
    models: dict[str, dict[str, object]]
    error: str | None = None


class Answering(Protocol):
    """What answers calls: the models of this process, or those of others. Its methods may raise Refusal.

    on_batch(model, batch) is called for each batch of an engine, in any thread.
    """

    settings: Settings
    on_batch: OnBatch | None

    async def start(self) -> None: ...

    def close(self) -> None: ...

    async def answer(self, call: Call, context: CallContext) -> Answer: ...

    def models(self) -> list[ModelCard]: ...

    def card(self) -> ServerCard: ...

    def loads(self) -> list[tuple[str, int, int, int]]:
        """(model, waiting requests, waiting tokens, restarts of the engine) of each model."""

    def health(self) -> Health: ...


class Service:
    """The models of `settings` behind one face. `start` loads them; until then calls are refused as unavailable.

    Every method may raise Refusal. on_batch(model, batch) is called in the batchers' threads.
    """

    def __init__(self, settings: Settings, *, on_batch: OnBatch | None = None) -> None:
        self.settings = settings
        self.on_batch = on_batch
        self.registry = Registry(settings, self._observe)
        self._slots = Slots(settings.tokenize_threads or 2)
        # A call has a thread for as long as it waits for the engine: the library's own way of scoring, unchanged.
        self._pool = ThreadPoolExecutor(settings.max_queue_requests + 2, thread_name_prefix="call")
        self._loaders = ThreadPoolExecutor(thread_name_prefix="load")
        self._is_starting, self._is_started, self._is_stopping = False, False, False
        self._error: str | None = None
        self._loads: set[Future[Hosted]] = set()
        self.is_idle = True  # False where a batch, or the loading of a model, goes on after the service was closed

    async def start(self) -> None:
        """Load and warm up every model, once; what cannot be loaded is raised."""
        if self._is_starting:
            return
        self._is_starting = True
        try:
            for source in self.settings.models:
                await self._load(source)
        except Exception as error:
            self._error = str(error)
            raise
        self._is_started = True

    def stop(self) -> None:
        """Refuse new calls from now on."""
        self._is_stopping = True

    def abandon(self) -> None:
        """Refuse what is still waiting, as unavailable; what is being computed is answered."""
        self.stop()
        for hosted in self.registry.all():
            hosted.batches.abandon()

    def close(self) -> None:
        """Let go of the models; whoever was accepted has been answered, or was refused."""
        self.abandon()
        for pool in (self._pool, self._loaders):
            pool.shutdown(wait=False, cancel_futures=True)
        self.is_idle = self.registry.close(0.0) and not self._loads

    async def answer(self, call: Call, context: CallContext) -> Answer:
        if isinstance(call, RerankCall):
            return await self.rerank(call, context)
        if isinstance(call, ScoreCall):
            return await self.score(call, context)
        return await self.embed(call, context)

    async def rerank(self, call: RerankCall, context: CallContext) -> Ranked:
        """The documents, best first; equal scores keep their input order."""
        self._check_texts((call.query, *call.documents), len(call.documents))
        hosted = self.registry.fitting(self._hosted(call.model, "reranker"), call.query, call.documents)

        def work(scoring: Scoring, begun: _Begun) -> Ranked:
            ranking = scoring.rank(call.query, documents_of(call), rank_options(call))
            items = tuple(map(item_of, ranking))
            told = replace(begun, warnings=begun.warnings + ranking.warnings)
            return told.ranked(hosted, items, ranking.usage, _characters(call.query, *call.documents))

        return await self._scored(hosted, call, context, work)

    async def score(self, call: ScoreCall, context: CallContext) -> Ranked:
        """Items in the order of the pairs."""
        texts = [text for pair in call.pairs for text in pair]
        self._check_texts(texts, len(call.pairs))
        hosted = self.registry.fitting(self._hosted(call.model, "reranker"), "", texts)

        def work(scoring: Scoring, begun: _Begun) -> Ranked:
            pairs = [(clean_query(query), clean_query(text)) for query, text in call.pairs]
            scored = scoring.score(pairs)
            items = tuple(items_of(pairs, scored, scoring))
            characters = sum(len(query) + len(text) for query, text in pairs)
            return begun.ranked(hosted, items, scored.usage(0.0), characters)

        return await self._scored(hosted, call, context, work)

    async def embed(self, call: EmbedCall, context: CallContext) -> Vectors:
        """One vector per text, in order."""
        self._check_texts(call.texts, len(call.texts), kind="text", parameter="input")
        hosted = self._hosted(call.model, "embedder")
        embedder = hosted.model
        assert isinstance(embedder, Embedder)
        view = hosted.batches.for_call(deadline=context.deadline)

        def work(slot: Slot) -> Vectors:
            texts = [clean_query(text) for text in call.texts]
            begun = _Begun(context, view)
            rows = embedder.rows(texts, kind="query" if call.is_query else "document")
            tokenized = time.monotonic()
            checked = CheckedEngine(view, Budgets(), self.settings.max_request_tokens, slot.leave)
            vectors = checked.run(rows, Run())
            cut = sum(any(row.cut) for row in rows)
            cost = Cost(tokens=checked.tokens, truncated=cut, rows=len(rows), characters=_characters(*texts))
            return Vectors(
                id=context.request_id,
                model=hosted.source.name,
                vectors=tuple(tuple(vector.tolist()) for vector in vectors),
                cost=cost,
                timing=begun.timing(tokenized - begun.started),
            )

        return await self._in_thread(work, view, context, _characters(*call.texts))

    async def load(self, source: ModelSource) -> ModelCard:
        """Load one more model."""
        return (await self._load(source)).card

    async def _load(self, source: ModelSource) -> Hosted:
        """In a thread that asyncio does not wait for at its end: a model may take minutes to come from its hub."""
        loading = self._loaders.submit(self.registry.load, source)
        self._loads.add(loading)
        loading.add_done_callback(self._loads.discard)
        return await asyncio.wrap_future(loading)

    async def unload(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.registry.unload, name)

    def models(self) -> list[ModelCard]:
        return [hosted.card for hosted in self.registry.all()]

    def card(self) -> ServerCard:
        return card_of(self)

    def loads(self) -> list[tuple[str, int, int, int]]:
        found = [(hosted.source.name, hosted.batches.status()) for hosted in self.registry.all()]
        return [(name, status.requests, status.tokens, status.restarts) for name, status in found]

    def health(self) -> Health:
        """Alive unless an engine is stuck; ready when every model is loaded and none is being restarted."""
        models: dict[str, dict[str, object]] = {}
        is_alive = True
        is_ready = self._is_started and not self._is_stopping
        for hosted in self.registry.all():
            status = hosted.batches.status()
            is_stalled = status.busy_s > self.settings.stall_s
            is_alive &= not is_stalled
            is_ready &= status.state is State.ready and not is_stalled
            models[hosted.source.name] = {
                "state": "stalled" if is_stalled else status.state.value,
                "waiting_requests": status.requests,
                "waiting_tokens": status.tokens,
                "restarts": status.restarts,
                "last_error": status.last_error,
            }
        return Health(is_ready=is_ready, is_alive=is_alive, models=models, error=self._error)

    async def _scored(
        self,
        hosted: Hosted,
        call: RerankCall | ScoreCall,
        context: CallContext,
        work: Callable[[Scoring, _Begun], Ranked],
    ) -> Ranked:
        """What work makes of the model's scoring as the call wants it."""
        loaded = hosted.model
        assert isinstance(loaded, Scoring)
        view = hosted.batches.for_call(deadline=context.deadline, priority=call.priority)

        def worked(slot: Slot) -> Ranked:
            scoring, warnings = scoring_of(loaded, call)
            engine = CheckedEngine(view, call.budgets, self.settings.max_request_tokens, slot.leave)
            return work(replace(scoring, engine=engine), _Begun(context, view, warnings))

        texts = call.documents if isinstance(call, RerankCall) else [text for pair in call.pairs for text in pair]
        return await self._in_thread(worked, view, context, _characters(*texts))

    def _hosted(self, model: str | None, kind: str) -> Hosted:
        if self._is_stopping:
            raise Refusal(Fault.unavailable, "the server is stopping", retry_after=5.0)
        if not self._is_started:
            raise Refusal(Fault.unavailable, "the server is loading its models", retry_after=2.0)
        return self.registry.find(model, kind)

    def _check_texts(
        self, texts: Sequence[str], count: int, kind: str = "document", parameter: str = "documents"
    ) -> None:
        settings = self.settings
        if count > settings.max_documents:
            message = f"{count} {kind}s; this server takes {settings.max_documents} in one request"
            raise Refusal(Fault.too_large, message, parameter=parameter)
        longest = max(map(len, texts), default=0)
        if longest > settings.max_document_characters:
            most = settings.max_document_characters
            message = f"a {kind} has {longest} characters; this server takes {most}"
            raise Refusal(Fault.too_large, message, parameter=parameter)

    async def _in_thread(
        self, work: Callable[[Slot], T], view: BatchedCall, context: CallContext, characters: int
    ) -> T:
        """The result of work, which reads texts in its turn and then waits for the engine, so that the loop goes on.

        Raises Refusal where the queue is full, the engine down, or time is up; nothing is computed after that.
        """

        def in_turn() -> T:
            slot = self._slots.enter(characters, context.deadline)
            try:
                if view.is_cancelled:  # its client went while it waited: reading its texts takes seconds
                    raise CancelledError
                return work(slot)
            finally:
                slot.leave()

        try:
            return await within(self._begun(in_turn), context.deadline)
        except QueueFull as error:
            raise Refusal(Fault.overloaded, str(error), retry_after=error.retry_after_s) from error
        except Refused as error:
            raise Refusal(Fault.unavailable, str(error), retry_after=error.retry_after_s) from error
        except Expired as error:
            raise too_late() from error
        except EngineError as error:
            raise Refusal(Fault.internal, str(error)) from error
        except ValueError as error:
            raise Refusal(Fault.unsupported, str(error)) from error
        finally:
            view.cancel()

    def _begun(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Raises Refusal where the machine has no thread left; the calls that have one go on."""
        try:
            return asyncio.get_running_loop().run_in_executor(self._pool, work)
        except RuntimeError as error:
            message = f"the server has no thread for this call: {error}"
            raise Refusal(Fault.unavailable, message, retry_after=2.0) from error

    def _observe(self, model: str, batch: Batch) -> None:
        if self.on_batch is not None:
            self.on_batch(model, batch)


def card_of(service: Answering) -> ServerCard:
    settings = service.settings
    return ServerCard(
        models=tuple(service.models()),
        version=__version__,
        is_ready=service.health().is_ready,
        max_documents=settings.max_documents,
        index=settings.index,
        max_batch_tokens=settings.max_queue_tokens,
        max_concurrent_requests=settings.max_queue_requests,
    )


async def within(awaitable: Awaitable[T], deadline: float | None) -> T:
    """The awaited result by a time of time.monotonic(); what is awaited is cancelled then. Raises Refusal."""
    if deadline is None:
        return await awaitable
    try:
        return await asyncio.wait_for(awaitable, max(deadline - time.monotonic(), 0))
    except asyncio.TimeoutError as error:
        raise too_late() from error


def too_late() -> Refusal:
    return Refusal(Fault.deadline, "not done by the deadline; send less at once, or allow more time", retry_after=1.0)


def _characters(*texts: str) -> int:
    return sum(map(len, texts))


@dataclass(frozen=True)
class _Begun:
    """A call that has its turn, and what becomes of it."""

    context: CallContext
    view: BatchedCall
    warnings: tuple[str, ...] = ()
    started: float = field(default_factory=time.monotonic)

    def timing(self, tokenize_s: float) -> Timing:
        total = time.monotonic() - self.started
        return Timing(total=total, tokenize=tokenize_s, queue=self.view.queue_s, compute=self.view.compute_s)

    def ranked(self, hosted: Hosted, items: tuple[Item, ...], usage: Usage, characters: int) -> Ranked:
        warnings = self.warnings
        if usage.unscored:
            warnings += (f"{usage.unscored} documents were not scored within the budget",)
        return Ranked(
            id=self.context.request_id,
            model=hosted.source.name,
            items=items,
            cost=Cost(
                tokens=usage.tokens,
                truncated=usage.truncated,
                rows=usage.rows,
                characters=characters,
                unscored=usage.unscored,
            ),
            timing=self.timing(usage.tokenize_seconds),
            warnings=warnings,
        )
