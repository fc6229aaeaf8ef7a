"""Hosting: the models that a server has loaded, each behind its batches, by the names that clients write."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.checkpoint import MULTILINGUAL, has_multilingual
from secondpass.embedder import Embedder
from secondpass.engine.engine import EngineFacts, ReopeningEngine
from secondpass.scoring.open import AUTO, ModelOptions, open_scoring
from secondpass.scoring.scoring import Scoring
from secondpass.server.batching import Batch, BatchedEngine, Reopenable
from secondpass.server.settings import ModelSource, Settings, SettingsError
from secondpass.types import Advance, Info, Row, Run
from secondpass.wire.calls import Fault, ModelCard, Refusal

OnBatch = Callable[[str, Batch], None]
WARM_TEXTS = ("warm", "warm up " * 40, "warm up before the first call " * 60)
# Names by which clients ask for whatever is served.
ANY_MODEL = ("", "default", "default/not-specified", "auto")


@dataclass(frozen=True)
class Pooling:
    """An embedder as an engine: a row's scores are its vector."""

    embedder: Embedder

    @property
    def facts(self) -> EngineFacts:
        return self.embedder.facts

    def check(self, run: Run) -> None:
        """There is one way to run it."""

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        return self.embedder.encode_rows(rows)

    def reopen(self) -> None:
        self.embedder.reopen()


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """One loaded model: its scoring, or its embedder, over its batches."""

    source: ModelSource
    card: ModelCard
    batches: BatchedEngine
    model: Scoring | Embedder
    is_companion: bool = False  # opened beside "auto", for what that cannot read


def _open_reranker(source: ModelSource, settings: Settings) -> tuple[Scoring, Reopenable, Info]:
    scoring = open_scoring(
        ModelOptions(
            model=source.path,
            revision=source.revision,
            engine=source.engine,
            device=source.device,
            dtype=source.dtype,
            max_length=source.max_length,
            long_documents=source.long_documents,
            instruction=source.instruction,
            token_budget=source.token_budget,
            cutoff_layer=source.cutoff_layer,
            score_cache=source.score_cache,
            calibration=settings.calibration_of(source),
            local_files_only=settings.local_files_only,
        )
    )
    scoring = replace(scoring, other=None)  # served by the same name, see Registry.fitting
    scoring.score([("warm up", text) for text in WARM_TEXTS])
    assert isinstance(scoring.engine, ReopeningEngine)
    return scoring, scoring.engine, scoring.info()


def _open_embedder(source: ModelSource, settings: Settings) -> tuple[Embedder, Reopenable, Info]:
    embedder = Embedder(
        source.path,
        revision=source.revision,
        device=source.device,
        dtype=source.dtype,
        max_length=source.max_length,
        token_budget=source.token_budget,
        local_files_only=settings.local_files_only,
    )
    embedder.encode(WARM_TEXTS)
    return embedder, Pooling(embedder), embedder.info()


Opened = tuple[Scoring | Embedder, Reopenable, Info]
OPENERS: Mapping[str, Callable[[ModelSource, Settings], Opened]] = {
    "reranker": _open_reranker,
    "embedder": _open_embedder,
}


def host(source: ModelSource, settings: Settings, on_batch: OnBatch) -> Hosted:
    """Load a model and warm it up. Raises SecondpassError, or ValueError for an option that it does not have."""
    if source.kind not in OPENERS:
        raise SettingsError(f"models.{source.name}.kind is {source.kind!r}; give {' or '.join(OPENERS)}")
    model, engine, info = OPENERS[source.kind](source, settings)
    batches = BatchedEngine(
        engine,
        max_requests=settings.max_queue_requests,
        max_tokens=settings.max_queue_tokens,
        batch_tokens=settings.batch_tokens,
        on_batch=lambda batch: on_batch(source.name, batch),
    )
    aliases = tuple(alias for alias, name in settings.aliases.items() if name == source.name)
    is_calibrated = isinstance(model, Scoring) and model.calibration is not None
    card = replace(_card(source, info, aliases), is_calibrated=is_calibrated)
    return Hosted(source=source, card=card, model=model, batches=batches)


def _card(source: ModelSource, info: Info, aliases: tuple[str, ...]) -> ModelCard:
    return ModelCard(
        name=source.name,
        revision=info.revision,
        family=info.family,
        dtype=info.dtype,
        device=info.device,
        engine=info.engine,
        max_length=info.max_length,
        is_reranker=source.kind == "reranker",
        is_embedder=source.kind == "embedder",
        created=int(time.time()),
        aliases=aliases,
    )


@dataclass
class Registry:
    """What is loaded, in the order of loading. Safe to use from several threads."""

    settings: Settings
    on_batch: OnBatch
    _hosted: dict[str, Hosted] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, source: ModelSource) -> Hosted:
        """Load a model and serve it. Raises what `host` does, and Refusal for a name that is taken.

        Beside "auto" the multilingual model is served where it is installed, unless something has its name.
        """
        self._check_free(source.name)
        hosted = self._add(host(source, self.settings, self.on_batch))
        if self._wants_companion(source):
            other = host(replace(source, name=MULTILINGUAL, path=MULTILINGUAL), self.settings, self.on_batch)
            self._add(replace(other, is_companion=True))
        return hosted

    def fitting(self, hosted: Hosted, query: str, texts: Sequence[str]) -> Hosted:
        """What reads these texts: the model itself, or the one beside it where "auto" does not suit them."""
        other = self._hosted.get(MULTILINGUAL)
        if other is None or hosted.source.path != AUTO:
            return hosted
        if other.source.path != MULTILINGUAL or other.source.kind != "reranker":  # something else of this name
            return hosted
        assert isinstance(hosted.model, Scoring)
        return hosted if hosted.model.suits(query, texts) else other

    def _wants_companion(self, source: ModelSource) -> bool:
        is_plain = source.path == AUTO and source.kind == "reranker" and not self.settings.calibration_of(source)
        names = (*self._hosted, *(model.name for model in self.settings.models))
        return is_plain and MULTILINGUAL not in names and has_multilingual()

    def _add(self, hosted: Hosted) -> Hosted:
        source = hosted.source
        with self._lock:
            if source.name not in self._hosted:
                self._hosted = {**self._hosted, source.name: hosted}
                return hosted
        hosted.batches.close(grace_s=0)
        raise _taken(source.name)

    def unload(self, name: str) -> None:
        """Serve a model no more; what it has accepted is computed first. Raises Refusal for an unknown name."""
        with self._lock:
            if name not in self._hosted:
                raise _unknown(name, self._hosted)
            hosted = self._hosted[name]
            self._hosted = {other: each for other, each in self._hosted.items() if other != name}
        hosted.batches.close(grace_s=self.settings.grace_s, reason=f"the model {name!r} is not served any more")

    def close(self, grace_s: float) -> bool:
        """Compute what was accepted, for at most so long in all. False where an engine is still at something."""
        end = time.monotonic() + grace_s
        return all([hosted.batches.close(grace_s=max(end - time.monotonic(), 0)) for hosted in self.all()])

    def all(self) -> list[Hosted]:
        return list(self._hosted.values())

    def find(self, name: str | None, kind: str) -> Hosted:
        """The model that serves a call. Raises Refusal where none does."""
        hosted = self._hosted
        kinds = {name: each.source.kind for name, each in hosted.items()}
        companions = [name for name, each in hosted.items() if each.is_companion]
        return hosted[find_name(kinds, name or "", kind, self.settings, companions=companions)]

    def _check_free(self, name: str) -> None:
        if name in self._hosted:
            raise _taken(name)


def find_name(
    kinds: Mapping[str, str], name: str, kind: str, settings: Settings, *, companions: Sequence[str] = ()
) -> str:
    """Which of the served models, by name with their kinds, serves a call. Raises Refusal where none does.

    A name is looked up as it is, then among the aliases. No name, or one that stands for any, is the first of its
    kind that is no companion; so is any other where one alone is served, unless strict_models.
    """
    fitting = [each for each in kinds if kinds[each] == kind and each not in companions]
    found = next((each for each in (name, settings.aliases.get(name, "")) if each in kinds), None)
    if found is None and fitting:
        is_any = name in ANY_MODEL or (len(fitting) == 1 and not settings.strict_models)
        found = fitting[0] if is_any else None
    if found is not None and kinds[found] == kind:
        return found
    if found is not None or not fitting:
        what = f"the model {found!r} is no {kind}" if found else f"no {kind} is served"
        raise Refusal(Fault.unsupported, f"{what}; see GET /v1/models", parameter="model")
    raise _unknown(name, kinds)


def _taken(name: str) -> Refusal:
    return Refusal(Fault.invalid, f"a model named {name!r} is served already; unload it first", parameter="name")


def _unknown(name: str, hosted: Iterable[str]) -> Refusal:
    there = ", ".join(hosted) or "none"
    return Refusal(Fault.unknown_model, f"no model is named {name[:100]!r}; there are {there}", parameter="model")
