"""Service: calls in, answers out, over the models that are loaded; knows no dialect and no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from secondpass import __version__
from secondpass.embedder import Embedder
from secondpass.errors import EngineError
from secondpass.reranker import Reranker
from secondpass.server.batching import Batch, EngineDown, Expired, Outcome, QueueFull, State
from secondpass.server.reading import read
from secondpass.server.registry import Hosted, Registry
from secondpass.server.settings import ModelSource, Settings
from secondpass.text.documents import clean_query
from secondpass.text.reader import Pair
from secondpass.types import Row, Run
from secondpass.wire.calls import (
    Cost,
    EmbedCall,
    Fault,
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


class Service:
    """The models of `settings` behind one face. `start` loads them; until then calls are refused as unavailable.

    Every method may raise Refusal. on_batch(model, batch) is called in the batchers' threads.
    """

    def __init__(self, settings: Settings, *, on_batch: Callable[[str, Batch], None] | None = None) -> None:
        self.settings = settings
        self.on_batch = on_batch
        self.registry = Registry(settings, self._observe)
        self._pool = ThreadPoolExecutor(settings.tokenize_threads or 2, thread_name_prefix="tokenize")
        self._is_starting, self._is_started, self._is_stopping = False, False, False
        self._error: str | None = None
        self.is_idle = True  # False where an engine was still at a batch when the service was closed

    async def start(self) -> None:
        """Load and warm up every model, once; what cannot be loaded is raised."""
        if self._is_starting:
            return
        self._is_starting = True
        loop = asyncio.get_running_loop()
        try:
            for source in self.settings.models:
                await loop.run_in_executor(None, self.registry.load, source)
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
            hosted.batcher.abandon()

    def close(self) -> None:
        """Let go of the models; whoever was accepted has been answered, or was refused."""
        self.abandon()
        self.is_idle = self.registry.close(0.0)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def rerank(self, call: RerankCall, context: CallContext) -> Ranked:
        """The documents, best first; equal scores keep their input order."""
        self._check_documents(call.documents)
        ranked = await self._score([(call.query, text) for text in call.documents], call, context)
        best = sorted(ranked.items, key=lambda item: -item.logit)
        return replace(ranked, items=tuple(best[: call.top_n] if call.top_n else best))

    async def score(self, call: ScoreCall, context: CallContext) -> Ranked:
        """Items in the order of the pairs."""
        self._check_documents([text for pair in call.pairs for text in pair])
        return await self._score(call.pairs, call, context)

    async def embed(self, call: EmbedCall, context: CallContext) -> Vectors:
        """One vector per text, in order."""
        self._check_documents(call.texts)
        hosted = self._hosted(call.model, "embedder")
        started = time.monotonic()
        embedder = hosted.model
        assert isinstance(embedder, Embedder)
        texts = [clean_query(text) for text in call.texts]
        kind = "query" if call.is_query else "document"
        rows = await self._in_pool(lambda: embedder.rows(texts, kind=kind), context)
        tokenized = time.monotonic()
        outcome = await self._computed(hosted, rows, Run(), context, priority=0)
        tokens = sum(map(len, rows))
        return Vectors(
            id=context.request_id,
            model=hosted.source.name,
            vectors=tuple(map(tuple, outcome.scores.tolist())),
            cost=Cost(
                tokens=tokens,
                truncated=sum(any(row.cut) for row in rows),
                rows=len(rows),
                characters=sum(map(len, texts)),
            ),
            timing=_timing(started, tokenized, outcome),
        )

    async def load(self, source: ModelSource) -> ModelCard:
        """Load one more model."""
        loop = asyncio.get_running_loop()
        return (await loop.run_in_executor(None, self.registry.load, source)).card

    async def unload(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.registry.unload, name)

    def models(self) -> list[ModelCard]:
        return [hosted.card for hosted in self.registry.all()]

    def card(self) -> ServerCard:
        return ServerCard(
            models=tuple(self.models()),
            version=__version__,
            is_ready=self.health().is_ready,
            max_documents=self.settings.max_documents,
            max_batch_tokens=self.settings.max_queue_tokens,
            max_concurrent_requests=self.settings.max_queue_requests,
        )

    def loads(self) -> list[tuple[str, int, int, int]]:
        """(model, waiting requests, waiting tokens, restarts of the engine) of each model."""
        found = [(hosted.source.name, hosted.batcher.status()) for hosted in self.registry.all()]
        return [(name, status.requests, status.tokens, status.restarts) for name, status in found]

    def health(self) -> Health:
        """Alive unless an engine is stuck; ready when every model is loaded and none is being restarted."""
        models: dict[str, dict[str, object]] = {}
        is_alive = True
        is_ready = self._is_started and not self._is_stopping
        for hosted in self.registry.all():
            status = hosted.batcher.status()
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

    async def _score(self, pairs: Sequence[Pair], call: RerankCall | ScoreCall, context: CallContext) -> Ranked:
        """Items in the order of the pairs."""
        hosted = self._hosted(call.model, "reranker")
        started = time.monotonic()
        reranker = hosted.model
        assert isinstance(reranker, Reranker)
        instruction, warnings = _instruction(call, reranker)
        asked = await self._in_pool(lambda: read(reranker, pairs, call.budgets, instruction), context)
        tokenized = time.monotonic()
        rows = [reading.row for reading in asked.readings]
        outcome = await self._computed(hosted, rows, reranker.parts.run, context, priority=call.priority)
        return Ranked(
            id=context.request_id,
            model=hosted.source.name,
            warnings=warnings,
            items=tuple(asked.items(outcome.scores[:, 0].tolist(), reranker)),
            cost=asked.cost(),
            timing=_timing(started, tokenized, outcome),
        )

    def _hosted(self, model: str | None, kind: str) -> Hosted:
        if self._is_stopping:
            raise Refusal(Fault.unavailable, "the server is stopping", retry_after=5.0)
        if not self._is_started:
            raise Refusal(Fault.unavailable, "the server is loading its models", retry_after=2.0)
        return self.registry.find(model, kind)

    def _check_documents(self, texts: Sequence[str]) -> None:
        settings = self.settings
        if len(texts) > settings.max_documents:
            raise Refusal(
                Fault.too_large,
                f"{len(texts)} documents; this server takes {settings.max_documents} in one request",
                parameter="documents",
            )
        longest = max(map(len, texts), default=0)
        if longest > settings.max_document_characters:
            raise Refusal(
                Fault.too_large,
                f"a document has {longest} characters; this server takes {settings.max_document_characters}",
                parameter="documents",
            )

    async def _in_pool(self, work: Callable[[], T], context: CallContext) -> T:
        """The result of work on texts, in a thread, so that the loop goes on."""
        loop = asyncio.get_running_loop()
        return await _within(loop.run_in_executor(self._pool, work), context)

    async def _computed(
        self, hosted: Hosted, rows: Sequence[Row], run: Run, context: CallContext, *, priority: int
    ) -> Outcome:
        """The rows' scores. Raises Refusal where the queue is full, the engine down, or time is up."""
        tokens = sum(map(len, rows))
        if tokens > self.settings.max_request_tokens:
            most = self.settings.max_request_tokens
            raise Refusal(
                Fault.too_large, f"{tokens} tokens; this server takes {most} in one request", parameter="documents"
            )
        try:
            future = hosted.batcher.submit(rows, run, priority=priority, deadline=context.deadline)
            return await _within(asyncio.wrap_future(future), context)
        except QueueFull as error:
            raise Refusal(Fault.overloaded, str(error), retry_after=error.retry_after_s) from error
        except EngineDown as error:
            raise Refusal(Fault.unavailable, str(error), retry_after=error.retry_after_s) from error
        except Expired as error:
            raise _late() from error
        except EngineError as error:
            raise Refusal(Fault.internal, str(error)) from error
        except ValueError as error:
            raise Refusal(Fault.unsupported, str(error)) from error

    def _observe(self, model: str, batch: Batch) -> None:
        if self.on_batch is not None:
            self.on_batch(model, batch)


def _instruction(call: RerankCall | ScoreCall, reranker: Reranker) -> tuple[str | None, tuple[str, ...]]:
    """The instruction, and a warning where it is left out of a call that bears it."""
    if not call.instruction or isinstance(call, ScoreCall) or not call.is_lenient:
        return call.instruction, ()
    try:
        reranker.parts.reader.recipe.instructed(call.instruction)
    except ValueError as error:
        return None, (f"the instruction was left out: {error}",)
    return call.instruction, ()


async def _within(awaitable: Awaitable[T], context: CallContext) -> T:
    """The awaited result by the call's deadline; what is awaited is cancelled then."""
    if context.deadline is None:
        return await awaitable
    try:
        return await asyncio.wait_for(awaitable, max(context.deadline - time.monotonic(), 0))
    except asyncio.TimeoutError as error:
        raise _late() from error


def _late() -> Refusal:
    return Refusal(Fault.deadline, "not done by the deadline; send less at once, or allow more time", retry_after=1.0)


def _timing(started: float, tokenized: float, outcome: Outcome) -> Timing:
    return Timing(
        total=time.monotonic() - started,
        tokenize=tokenized - started,
        queue=outcome.queue_s,
        compute=outcome.compute_s,
    )
