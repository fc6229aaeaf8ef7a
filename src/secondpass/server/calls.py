"""What one call asks of a model: how it reads, how it runs, in what turn, and what becomes of its scores."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isnan

import numpy as np
from numpy.typing import NDArray

from secondpass.cognitive import PARTS
from secondpass.engine.engine import EngineFacts
from secondpass.scoring.open import changed
from secondpass.scoring.ranking import RankOptions
from secondpass.scoring.scored import Scored
from secondpass.scoring.scoring import Scoring
from secondpass.server.batching import BatchedCall, Expired
from secondpass.text.reader import Pair, Reader
from secondpass.text.recipe import Limits
from secondpass.types import Advance, Document, DocumentLike, Hit, Row, Run
from secondpass.wire.apis import MAX_LOGIT
from secondpass.wire.calls import Budgets, Fault, Item, Refusal, RerankCall, ScoreCall

CHARACTERS_PER_S = 250_000.0  # what a call with so much text may be overtaken, in seconds


class Slots:
    """So many calls turn texts into tokens at a time; of those that wait, the one with the least text is next."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[float, int]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()

    def enter(self, characters: int, deadline: float | None) -> Slot:
        """A slot, once it is this call's turn. Raises Expired where that is past the deadline."""
        with self._changed:
            mine = (time.monotonic() + characters / CHARACTERS_PER_S, next(self._numbers))
            heapq.heappush(self._waiting, mine)
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            has_turn = self._changed.wait_for(lambda: self._free > 0 and self._waiting[0] == mine, left)
            self._waiting.remove(mine)
            heapq.heapify(self._waiting)
            self._changed.notify_all()
            if not has_turn:
                raise Expired("the deadline passed before the texts were read")
            self._free -= 1
        return Slot(self)

    def leave(self) -> None:
        with self._changed:
            self._free += 1
            self._changed.notify_all()


@dataclass
class Slot:
    """A turn at the tokenizer, given up once."""

    slots: Slots
    is_held: bool = True

    def leave(self) -> None:
        if self.is_held:
            self.is_held = False
            self.slots.leave()


@dataclass
class CheckedEngine:
    """A call's engine that refuses rows which the call or the server does not allow, before they are computed.

    before_run is called when the first rows are there: others may read their texts meanwhile.
    """

    inner: BatchedCall
    budgets: Budgets
    max_tokens: int
    before_run: Callable[[], None] = field(default=lambda: None)
    tokens: int = 0

    @property
    def facts(self) -> EngineFacts:
        return self.inner.facts

    def check(self, run: Run) -> None:
        self.inner.check(run)

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        """As the engine's. Raises Refusal for too many tokens, and for cut rows where nothing may be cut."""
        self.before_run()
        self.tokens += sum(map(len, rows))
        if self.tokens > self.max_tokens:
            message = f"{self.tokens} tokens; this server takes {self.max_tokens} in one request"
            raise Refusal(Fault.too_large, message, parameter="documents")
        cut = sum(any(row.cut) for row in rows)
        if cut and not self.budgets.may_truncate:
            raise Refusal(
                Fault.too_large,
                f"{cut} of {len(rows)} inputs are longer than {self._length()} tokens and truncation is off; "
                "shorten them or allow truncation",
                parameter="input_tokens",
            )
        return self.inner.run(rows, run, progress)

    def _length(self) -> int:
        longest = self.inner.facts.max_length
        return longest if self.budgets.max_length is None else min(self.budgets.max_length, longest)


def scoring_of(scoring: Scoring, call: RerankCall | ScoreCall) -> tuple[Scoring, tuple[str, ...]]:
    """How the call reads and runs the model, and warnings. Raises Refusal for what the model does not do."""
    recipe = scoring.reader.recipe
    warnings: tuple[str, ...] = ()
    if call.instruction:
        try:
            recipe = recipe.instructed(call.instruction)
        except ValueError as error:
            if not isinstance(call, RerankCall) or not call.is_lenient:
                raise Refusal(Fault.unsupported, str(error), parameter="instruction") from error
            warnings = (f"the instruction was left out: {error}",)
    reader = _reader(replace(scoring.reader, recipe=recipe), call.budgets)
    effort = call.effort
    run = changed(scoring.run, effort.cutoff_layer, effort.compress_ratio, effort.compress_layers)
    if run != scoring.run:
        scoring.engine.check(run)
    limits = _limits(scoring.limits, reader, call.budgets)
    return replace(scoring, reader=reader, limits=limits, run=run), warnings


def _reader(reader: Reader, budgets: Budgets) -> Reader:
    return replace(
        reader,
        has_windows=reader.has_windows if budgets.in_windows is None else budgets.in_windows,
        max_document_length=budgets.max_document_tokens,
        keeps_end=budgets.keep_end,
        max_windows=budgets.max_windows,
    )


def _limits(limits: Limits, reader: Reader, budgets: Budgets) -> Limits:
    """The model's limits, lowered where the call asks for less: what is more than the model reads is no error."""
    if budgets.max_length is not None:
        limits = replace(limits, max_length=max(1, min(budgets.max_length, reader.longest)))
    if budgets.max_query_tokens is not None:
        known = limits.max_query_length
        cap = budgets.max_query_tokens if known is None else min(known, budgets.max_query_tokens)
        limits = replace(limits, max_query_length=cap)
    return limits


def rank_options(call: RerankCall) -> RankOptions:
    """Raises Refusal for values that no call of `rank` takes."""
    effort = call.effort
    try:
        return RankOptions(
            top_n=call.top_n,
            explain=True,
            budget_ms=effort.budget_ms,
            first_scores=effort.first_scores,
            early_exit=effort.early_exit,
            cognitive=call.cognitive,
        )
    except ValueError as error:
        raise Refusal(Fault.invalid, str(error)) from error


def documents_of(call: RerankCall) -> Sequence[DocumentLike]:
    """The call's documents, with what they say of themselves where cognitive scoring reads it."""
    if call.fields is None:
        return call.documents
    return [Document(text, fields) for text, fields in zip(call.documents, call.fields, strict=True)]


def item_of(hit: Hit) -> Item:
    if not hit.is_scored or isnan(hit.score):
        return Item(index=hit.index, logit=-MAX_LOGIT, probability=0.0, is_scored=False)
    parts = hit.parts or {}
    return Item(
        index=hit.index,
        logit=hit.score,
        probability=hit.probability,
        tokens=int(parts["tokens"]),
        is_cut=bool(parts["query_tokens_cut"] or parts["passage_tokens_cut"]),
        span=hit.span,
        parts={name: float(parts[name]) for name in PARTS} if PARTS[0] in parts else None,
    )


def items_of(pairs: Sequence[Pair], scored: Scored, scoring: Scoring) -> list[Item]:
    """One item for each pair, in the order of the pairs."""
    best, logits = scored.best(), scored.of(pairs)
    return [
        Item(
            index=index,
            logit=logit,
            probability=scoring.probability(logit),
            tokens=scored.reads[best[pair]].length,
            is_cut=any(scored.reads[best[pair]].cut),
            span=scored.reads[best[pair]].span,
        )
        for index, (pair, logit) in enumerate(zip(pairs, logits, strict=True))
    ]
