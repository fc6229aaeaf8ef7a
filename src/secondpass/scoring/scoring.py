"""Scoring: pairs in, logits out, and documents in, a ranking out. The one way from texts to scores.

A long list is scored a portion at a time, so that it needs no more memory than a short one; while the engine runs a
portion, the next one is tokenised.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from secondpass.calibration import Calibration, sigmoid
from secondpass.cognitive import Cognitive
from secondpass.engine.engine import Engine, PassageEngine, ReopeningEngine
from secondpass.errors import EngineError
from secondpass.scoring.deadline import STEP, Deadline, Pace, score_within, work_of
from secondpass.scoring.ranking import RankOptions, ranked, unscored_hit
from secondpass.scoring.scored import Scored
from secondpass.text.documents import as_documents, clean_query, is_blank, text_of
from secondpass.text.languages import suits, unread, warning_of
from secondpass.text.reader import Pair, Reader, Reading
from secondpass.text.recipe import Limits
from secondpass.types import (
    Advance,
    Document,
    DocumentLike,
    EarlyExit,
    Hit,
    Info,
    Progress,
    Ranking,
    Run,
)

logger = logging.getLogger("secondpass")

# Fewer pairs are tokenised in one go: a thread would cost more than it hides.
MIN_AHEAD = 256
# Tokens in a portion: many times what a CPU runs at once, so that sorting by length still pays.
PORTION = 65536


class Other:
    """A model for the texts that another one cannot read: opened when it is first needed, once. Safe for threads."""

    def __init__(self, name: str, opens: Callable[[], Scoring]) -> None:
        self.name = name
        self._opens = opens
        self._lock = threading.Lock()
        self._is_closed = False
        self.opened: Scoring | None = None

    def scoring(self) -> Scoring:
        """Raises what opening a model raises; the next call tries again. Raises EngineError after `close`."""
        with self._lock:
            if self._is_closed:
                raise EngineError("the model was closed; open it again")
            if self.opened is None:
                self.opened = self._opens()
            return self.opened

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self.opened is not None:
                self.opened.close()


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A model that scores: how it reads, and what runs it. A call may change any of it by `dataclasses.replace`.

    pace is what is known of the engine's speed, and said the scripts that were warned of, by all calls. model and
    revision are the checkpoint's. other is what reads the texts of a query where this model cannot.
    """

    reader: Reader
    engine: Engine
    limits: Limits
    run: Run = field(default_factory=Run)
    calibration: Calibration | None = None
    pace: Pace = field(default_factory=Pace)
    model: str = ""
    scripts: tuple[str, ...] | None = None  # that the model reads; None: not known
    languages: tuple[str, ...] | None = None  # that it reads best
    revision: str | None = None
    other: Other | None = None
    said: set[str] = field(default_factory=set)

    def fitting(self, query: str, texts: Sequence[str]) -> Scoring:
        """What reads these texts: this model, or where there is another one and this does not suit them, that."""
        if self.other is not None:
            return self if self.suits(query, texts) else self.other.scoring()
        found = unread(query, texts, self.scripts)
        if found is not None and found.script not in self.said:
            self.said.add(found.script)
            logger.warning("%s", warning_of(found, self.model))
        return self

    def suits(self, query: str, texts: Sequence[str]) -> bool:
        """Whether these texts are in scripts that the model reads, and in languages that it reads best."""
        return suits(query, texts, self.scripts, self.languages)

    def warning(self, query: str, texts: Sequence[str] = ()) -> str | None:
        """What a person should know before reading the scores of these texts by what fits them."""
        found = None if self.other is not None else unread(query, texts, self.scripts)
        return None if found is None else warning_of(found, self.model)

    def score(
        self,
        pairs: Iterable[Pair],
        *,
        limits: Limits | None = None,
        run: Run | None = None,
        progress: Progress | None = None,
    ) -> Scored:
        """The different pairs, each scored once. progress hears of rows done, and of rows in all."""
        run = self.run if run is None else run
        pairs = list(dict.fromkeys(pairs))
        tokens = None if run.early_exit is not None else max(PORTION, 2 * self.engine.facts.token_budget)
        portions = self.reader.portions(pairs, self.limits if limits is None else limits, tokens=tokens)
        scored, num_read = Scored(), 0
        waited = time.perf_counter()
        for readings in ahead(portions) if len(pairs) > MIN_AHEAD else portions:
            scored.tokenize_seconds += time.perf_counter() - waited
            num_read += len({reading.pair for reading in readings})  # all windows of a pair are in one portion
            done = len(scored.reads)
            count = _counter(progress, done, done + len(readings) + len(pairs) - num_read)
            self._compute(scored, readings, run, count)
            waited = time.perf_counter()
        return scored

    def rank(self, query: str, documents: Iterable[DocumentLike], options: RankOptions) -> Ranking:
        """The documents, best first; equal scores keep their input order, documents without a word are last."""
        started = time.perf_counter()
        asked = _asked(query, documents, options)
        return self.fitting(asked.query, asked.texts)._rank(asked, options, started)

    def _rank(self, asked: Asked, options: RankOptions, started: float) -> Ranking:
        if options.budget_ms is None:
            scored = self.score(asked.pairs(), run=self._run_of(options), progress=options.progress)
            return self._ranking(asked, scored, options, started)
        first = options.first_order(len(asked.texts))
        deadline = Deadline.after(started, options.budget_ms, len(first), self.pace)
        scored = self._score_within(asked.pairs(first), deadline, options.progress)
        return self._ranking(asked, scored, options, started, first)

    def rank_many(
        self, queries: Sequence[str], documents: Sequence[Iterable[DocumentLike]], options: RankOptions
    ) -> list[Ranking]:
        """A ranking for each query and its list of documents; all are scored together."""
        started = time.perf_counter()
        options.refuse("rank_many", budget_ms="has no deadline", early_exit="compares documents of one query alone")
        asked = [
            _asked_of(index, query, own, options)
            for index, (query, own) in enumerate(zip(queries, documents, strict=True))
        ]
        reads = [self.fitting(each.query, each.texts) for each in asked]
        rankings: dict[int, Iterator[Ranking]] = {}
        done, left = 0, sum(len(each.pairs()) for each in asked)
        for scoring in {id(one): one for one in reads}.values():
            own = [each for each, one in zip(asked, reads, strict=True) if one is scoring]
            left -= sum(len(each.pairs()) for each in own)
            part = replace(options, progress=part_of(options.progress, done, left))
            done += sum(len(each.pairs()) for each in own)
            rankings[id(scoring)] = iter(scoring._rank_many(own, part, started))
        return [next(rankings[id(scoring)]) for scoring in reads]

    def _rank_many(self, asked: Sequence[Asked], options: RankOptions, started: float) -> list[Ranking]:
        pairs = [pair for each in asked for pair in each.pairs()]
        parts = self.score(pairs, progress=options.progress).by_query()
        return [self._ranking(each, parts.get(each.query, Scored()), options, started) for each in asked]

    def split(self, pairs: Sequence[Pair]) -> list[tuple[Scoring, list[Pair]]]:
        """The pairs by the model that reads them; the texts of a query have one."""
        if self.scripts is None or not pairs:
            return [(self, list(pairs))]
        texts: dict[str, list[str]] = {}
        for query, text in pairs:
            texts.setdefault(query, []).append(text)
        reads = {query: self.fitting(query, own) for query, own in texts.items()}
        return [
            (scoring, [pair for pair in pairs if reads[pair[0]] is scoring])
            for scoring in {id(one): one for one in reads.values()}.values()
        ]

    def warm_up(self) -> None:
        """Run batches of several sizes, so that the next call is not the first and a deadline knows the pace.

        The other model is opened for it too.
        """
        if self.other is not None:
            self.other.scoring().warm_up()
        for count in (1, 2, 4, 8, 16, 1, 4):
            readings = self.reader.read([(f"{index} " * 8, "warm " * 64) for index in range(count)], self.limits)
            for _ in range(3):
                self._compute(Scored(), readings, self.run)

    @property
    def passage_engine(self) -> PassageEngine | None:
        """The engine, where it reads passages apart and keeps them."""
        engine = self.engine.current if isinstance(self.engine, ReopeningEngine) else self.engine
        return engine if isinstance(engine, PassageEngine) and engine.facts.keeps_passages else None

    def states(self, passages: Sequence[str]) -> list[bytes]:
        """The states of passages; none where they are blank, or the other model reads them."""
        engine = self.passage_engine
        if engine is None:
            raise ValueError(f"{self.model} reads query and passage together; there are no states to keep")
        pairs = [("", text) for text in dict.fromkeys(passages) if not is_blank(text) and not self._is_others(text)]
        readings = self.reader.read(pairs, self.limits)
        found = dict[str, bytes]()
        for reading, states in zip(readings, engine.states([reading.row for reading in readings]), strict=True):
            found.setdefault(reading.pair[1], states)
        return [found.get(text, b"") for text in passages]

    def _is_others(self, text: str) -> bool:
        return self.other is not None and not self.suits("", [text])

    def probability(self, score: float) -> float:
        """A raw logit as a probability in 0..1, by the given calibration, else by the family's activation."""
        return sigmoid(self.logit(score))

    def logit(self, score: float) -> float:
        """A raw logit as that of the probability."""
        recipe = self.reader.recipe
        own = (score - recipe.midpoint) / recipe.temperature
        return own if self.calibration is None else self.calibration.logit(score)

    def info(self) -> Info:
        """What it runs on, and why."""
        info = self.engine.facts.info(
            model=self.model,
            revision=self.revision,
            family=self.reader.recipe.family,
            max_length=self.limits.max_length,
            truncation=self.limits.truncation,
        )
        if self.other is None:
            return info
        return replace(info, reason=f"{info.reason}; {self.other.name!r} reads texts in other scripts and languages")

    def close(self) -> None:
        """Give the memory back, the other model's too; calls after that raise EngineError."""
        assert isinstance(self.engine, ReopeningEngine)
        self.engine.close()
        if self.other is not None:
            self.other.close()

    def _compute(self, scored: Scored, readings: Sequence[Reading], run: Run, count: Advance | None = None) -> float:
        """Score the readings and add them to what is scored; the seconds that the engine computed."""
        took, num_computed = 0.0, 0

        def done(more: int, seconds: float) -> None:
            nonlocal took, num_computed
            took += seconds
            num_computed += more if seconds else 0
            if count is not None:
                count(more, seconds)

        scores = self.engine.run([reading.row for reading in readings], run, done)
        scored.add(readings, scores.T.tolist())
        scored.compute_seconds += took
        if run == self.run and num_computed:
            self.pace.learn(work_of(readings), took, num_computed / len(readings))
        return took

    def _score_within(self, pairs: Sequence[Pair], deadline: Deadline, progress: Progress | None) -> Scored:
        """As many of the pairs, from the first on, as can be scored before the deadline."""
        scored = Scored()
        portions = self.reader.portions(pairs, self.limits, tokens=1, step=STEP)
        started = time.perf_counter()

        def score(readings: list[Reading]) -> float:
            seconds = self._compute(scored, readings, self.run)
            if progress is not None:
                progress(len(scored.reads), max(len(pairs), len(scored.reads)))
            return seconds

        score_within(portions, deadline, score)
        scored.tokenize_seconds = time.perf_counter() - started - scored.compute_seconds
        return scored

    def _run_of(self, options: RankOptions) -> Run:
        """How the model is run for a call. Raises ValueError for what early exit cannot be combined with."""
        if options.early_exit is None:
            return self.run
        if self.reader.has_windows:
            raise ValueError("early_exit reads a document once; open the model with long_documents='truncate'")
        given = options.early_exit
        asked = given if isinstance(given, EarlyExit) else EarlyExit(given)
        return replace(self.run, early_exit=replace(asked, top_n=asked.top_n or options.top_n))

    def _ranking(
        self,
        asked: Asked,
        scored: Scored,
        options: RankOptions,
        started: float,
        first: Sequence[int] | None = None,
    ) -> Ranking:
        """The ranking of what is scored; what is not follows in the order `first`, the blank at the end."""
        pairs = [(asked.query, text) for text in asked.texts]
        best = scored.best()
        indices = sorted(
            range(len(pairs)) if first is None else first,
            key=lambda i: (is_blank(asked.texts[i]), scored.sort_key(pairs[i], best)),
        )
        if Cognitive.of(options.cognitive) is None:
            indices = indices[: options.top_n]
        hits = [self._hit(asked, i, scored, best.get(pairs[i]), options) for i in indices]
        unscored = sum(pair not in best for pair in pairs)
        warning = self.warning(asked.query, asked.texts)
        return Ranking(
            asked.query,
            ranked(asked.query, hits, options, lambda hit: self.logit(hit.score)),
            scored.usage(time.perf_counter() - started, unscored),
            warnings=() if warning is None else (warning,),
            info=self.info(),
        )

    def _hit(self, asked: Asked, index: int, scored: Scored, best: int | None, options: RankOptions) -> Hit:
        document = asked.documents[index]
        read_text = None if options.rank_fields is None else asked.texts[index]
        if best is None:
            return unscored_hit(index, document, read_text)
        read, (score, *layer) = scored.reads[best], (each[best] for each in scored.outputs)
        parts = {"layer": int(layer[0])} if layer else {}
        if options.explain:
            parts |= {"tokens": read.length, "query_tokens_cut": read.cut[0], "passage_tokens_cut": read.cut[1]}
        return Hit(
            index=index,
            document=document,
            score=score,
            probability=self.probability(score),
            rank=0,
            span=read.span,
            parts=parts or None,
            read_text=read_text,
        )


@dataclass(frozen=True)
class Asked:
    """A query, its documents, and what is read of each."""

    query: str
    documents: list[Document]
    texts: list[str]

    def pairs(self, order: Sequence[int] | None = None) -> list[Pair]:
        """What is scored, in that order: texts with something to read in them."""
        indices = range(len(self.texts)) if order is None else order
        return [(self.query, self.texts[i]) for i in indices if not is_blank(self.texts[i])]


def _asked(query: str, documents: Iterable[DocumentLike], options: RankOptions) -> Asked:
    candidates = as_documents(documents, options.rank_fields)
    texts = [text_of(document, options.rank_fields, index) for index, document in enumerate(candidates)]
    options.first_order(len(texts))
    return Asked(clean_query(query), candidates, texts)


def _asked_of(index: int, query: str, documents: Iterable[DocumentLike], options: RankOptions) -> Asked:
    """What is asked by one query of several. What is wrong with it is said with its number."""
    try:
        return _asked(query, documents, options)
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):
            raise  # of what gives the documents, as of a file that is read; others are not made of a message alone
        raise type(error)(f"of queries[{index}], {error}") from error


def part_of(progress: Progress | None, before: int, after: int) -> Progress | None:
    """progress for one of several runs, with the rows of the others."""
    if progress is None:
        return None
    return lambda done, total: progress(before + done, before + total + after)


def _counter(progress: Progress | None, done: int, total: int) -> Advance | None:
    if progress is None:
        return None

    def count(more: int, seconds: float) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return count


def ahead(portions: Iterator[list[Reading]]) -> Iterator[list[Reading]]:
    """The portions; while one is used, the next is made in a thread, where one can be started."""
    with ThreadPoolExecutor(1, "secondpass-reader") as pool:
        try:
            coming = pool.submit(next, portions, None)
        except RuntimeError:  # the system has no more threads, or no memory for one
            logger.warning("no thread can be started to read ahead; going on without")
        else:
            while (portion := coming.result()) is not None:
                coming = pool.submit(next, portions, None)
                yield portion
    yield from portions
