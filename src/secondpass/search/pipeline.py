"""A question to a ranking: first stages, fused, reranked, weighed, and made diverse where that is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol, SupportsIndex, runtime_checkable

import numpy as np

from secondpass.calibration import sigmoid
from secondpass.cognitive import Cognitive, Signals, Weighed, by_subject, order, seconds_of, signals_of, weigh
from secondpass.colbert.maxsim import unit
from secondpass.retrieval.fusion import FUSIONS, Fused, scaled
from secondpass.retrieval.vectors import ScriptReader, TextEmbedder
from secondpass.retrieval.words import terms
from secondpass.scoring.ranking import check_budget
from secondpass.search.features import NEAR_BITS, distance
from secondpass.search.stores.store import Filter, Retriever, Store, Stored
from secondpass.text.documents import clean_query
from secondpass.types import Document, Hit, Ranking, Scorer, Usage

MMR_BALANCE = 0.7  # of relevance against likeness to what stands above; Carbonell and Goldstein 1998
DIVERSITIES = ("mmr", "file")
# Logit that the last candidate by the first stages loses against the first, where an embedded model reranks: the
# words and meaning that these models read are weighed there by all texts that there are. docs/search.md has figures.
BEHIND = 1.0


class PairReader(Protocol):
    """What reads the question and each candidate together, as `Reranker` does."""

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        budget_ms: float | None = None,
        first_scores: Sequence[float] | None = None,
    ) -> Ranking: ...

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]: ...


@runtime_checkable
class StateReader(PairReader, Protocol):
    """A PairReader that reads passages apart, whose states of them can be kept, as `Reranker` with its own model."""

    @property
    def states_mark(self) -> str | None: ...

    def states(self, passages: Sequence[str]) -> list[bytes]: ...

    def keep_states(self, states: Iterable[bytes]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked for, and how.

    depth: how many chunks each first stage finds; candidates: how many of those are reranked, top_n at the least.
    budget_ms is for everything together; what is then unscored keeps the first stages' order, last. diversity: "mmr",
    or "file" for one chunk of each file. fusion: "convex" or "rrf".
    """

    text: str
    top_n: int = 5
    depth: int = 100
    candidates: int = 30
    only: Filter = field(default_factory=Filter)
    cognitive: Cognitive | None = None
    diversity: str | None = None
    fusion: str = "convex"
    is_reranked: bool = True
    budget_ms: float | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        clean_query(self.text)  # raises for what is no text
        for name, value in (("top_n", self.top_n), ("depth", self.depth), ("candidates", self.candidates)):
            if not isinstance(value, SupportsIndex) or int(value) < 1:
                raise ValueError(f"{name} is {value!r}; give a whole number, 1 or more")
        check_budget(self.budget_ms)
        if self.diversity is not None and self.diversity not in DIVERSITIES:
            raise ValueError(f"diversity is {self.diversity!r}; give {' or '.join(map(repr, DIVERSITIES))}")
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion is {self.fusion!r}; give {' or '.join(map(repr, FUSIONS))}")


@dataclass(frozen=True, kw_only=True)
class PooledChunk:
    """A chunk on its way: what found it, its scores so far, and the copies of it that were left out."""

    stored: Stored
    fused: Fused
    copies: tuple[Stored, ...] = ()
    score: float = math.nan
    probability: float = math.nan
    is_scored: bool = False
    behind: float | None = None
    weighed: Weighed | None = None


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The stages over one store.

    retrievers are first stages beside words and the encoder's vectors. rescorer, where there is one, scores the
    first `depth` of the fused anew, before the best are reranked.
    open_reranker is called with a question that is to be reranked. It gives what reads it, or None and a warning.
    """

    store: Store
    encoder: TextEmbedder | None
    open_reranker: Callable[[str], tuple[PairReader | None, tuple[str, ...]]]
    rescorer: Scorer | None = None
    retrievers: Sequence[Retriever] = ()

    def search(self, question: Question) -> Ranking:
        """The best chunks. No words and no embedder, or nothing alike, give an empty ranking."""
        started = time.perf_counter()
        runs = self.first_stages(question)
        fused = FUSIONS[question.fusion](runs)
        if self.rescorer is not None:
            fused = self._rescored(self.rescorer, question, fused)
        count = max(question.candidates, question.top_n)
        pool = self.candidates(question, fused, count)
        read = Ranking(question.text, (), Usage(rows=0, tokens=0, truncated=0, seconds=0.0))
        reranker, warnings = self.open_reranker(question.text) if question.is_reranked and pool else (None, ())
        if "dense" not in runs and (warning := self.unread(question.text)) is not None:
            warnings = (f"{warning}; words alone found the candidates", *warnings)
        if reranker is not None:
            self._give_states(reranker, pool)
            left = None
            if question.budget_ms is not None:
                left = max(1.0, question.budget_ms - 1000 * (time.perf_counter() - started))
            pool, read = _reranked(reranker, question.text, pool, left)
            if isinstance(reranker, StateReader) and reranker.states_mark is not None:
                pool = _with_first_stages(pool)
        pool = _weighed(pool, question, self.store)
        chosen = _diverse(pool, question)[: question.top_n]
        hits = tuple(_hit(each, rank, question) for rank, each in enumerate(chosen, start=1))
        usage = replace(read.usage, seconds=time.perf_counter() - started)
        return Ranking(question.text, hits, usage, warnings=warnings + read.warnings, info=read.info)

    def first_stages(self, question: Question) -> dict[str, list[tuple[int, float]]]:
        """What each first stage finds, best first. They run side by side.

        Vectors of what the embedder cannot read would bury what the words found: such a question has words alone.
        """
        with ThreadPoolExecutor(1, "secondpass-words") as threads:
            words = threads.submit(self.store.search_text, terms(question.text), question.depth, question.only)
            dense = None
            if self.encoder is not None and question.text.strip() and self.unread(question.text) is None:
                vector = unit(self.encoder.encode([question.text], kind="query"))[0]
                dense = self.store.search_vectors(vector, question.depth, question.only)
            more = {
                each.stage: self.store.readings(each.stage).search(each, question.text, question.depth, question.only)
                for each in (self.retrievers if question.text.strip() else ())
            }
            return {"bm25": words.result()} | ({} if dense is None else {"dense": dense}) | more

    def unread(self, query: str) -> str | None:
        """The warning for a question that the embedder cannot read; None where it can, or nobody knows."""
        return self.encoder.unread(query) if isinstance(self.encoder, ScriptReader) else None

    def candidates(self, question: Question, fused: Sequence[Fused], count: int) -> list[PooledChunk]:
        """The first of the fused with their texts; near-duplicates of a better one are kept with it as copies.

        With cognitive scoring the newest of near-duplicates stands for all.
        """
        by_id = {each.index: each for each in fused}
        asked, prefers_newest = set(terms(question.text)), question.cognitive is not None
        said = cache(lambda passage: asked.intersection(terms(passage)))
        found: list[PooledChunk] = []
        for stored in self.store.fetch([each.index for each in fused[: 2 * count]]):
            at = _same(stored, found, said)
            if at is not None and prefers_newest and _is_newer(stored, found[at].stored):
                copies = (*found[at].copies, found[at].stored)
                found[at] = PooledChunk(stored=stored, fused=by_id[stored.id], copies=copies)
            elif at is not None:
                found[at] = replace(found[at], copies=(*found[at].copies, stored))
            elif len(found) < count:
                found.append(PooledChunk(stored=stored, fused=by_id[stored.id]))
        return found

    def _give_states(self, reranker: PairReader, pool: Sequence[PooledChunk]) -> None:
        """Have the reranker know what is kept of the candidates, so that it need not read them."""
        states = self.store.states
        if states is None or not states.is_kept or not isinstance(reranker, StateReader):
            return
        if (mark := reranker.states_mark) is not None:
            reranker.keep_states(states.read(mark, [each.stored.chunk.digest for each in pool]))

    def _rescored(self, rescorer: Scorer, question: Question, fused: Sequence[Fused]) -> list[Fused]:
        """The first `depth` of the fused in the order of their new scores."""
        first = {each.index: each for each in fused[: question.depth]}
        stored = self.store.fetch(list(first))
        if not stored:
            return []
        scores = rescorer.score(question.text, [each.chunk.passage for each in stored])
        run = sorted(zip((each.id for each in stored), scores, strict=True), key=lambda found: -found[1])
        return [
            replace(first[id], score=score, stages={**first[id].stages, "rescored": (rank, score)})
            for rank, (id, score) in enumerate(run, 1)
        ]


def winning_sentences(reranker: PairReader, query: str, texts: Sequence[str]) -> list[tuple[int, int]]:
    """Of each text the range of characters of the sentence that the reranker likes best; all of a text of one.

    The sentences of all are scored together: a first search makes kernels for few lengths then.
    """
    from secondpass.search.chunking import sentences

    spans = [found if len(found := sentences(text)) > 1 else [(0, len(text))] for text in texts]
    asked = [(at, span) for at, found in enumerate(spans) if len(found) > 1 for span in found]
    scores = reranker.score_pairs([(query, texts[at][start:stop]) for at, (start, stop) in asked])
    best = dict(zip(asked, scores, strict=True))
    return [max(found, key=lambda span: best.get((at, span), 0.0)) for at, found in enumerate(spans)]


def document_of(stored: Stored, copies: Sequence[Stored] = ()) -> Document:
    """A chunk as a document: its text, and as fields where it stands and what is known of it."""
    chunk = stored.chunk
    known: dict[str, object] = {
        "id": stored.id,
        "path": stored.path,
        "heading": chunk.heading,
        "line": chunk.lines[0],
        "last_line": chunk.lines[1],
        "characters": chunk.span,
        "created": chunk.created,
        "superseded_by": stored.superseded_by,
    }
    if copies:
        known["copies"] = [f"{each.path}:{each.chunk.lines[0]}" for each in copies]
    return Document(chunk.text, {**chunk.fields, **known})


def signals_in(stored: Stored) -> Signals:
    """What is known of a chunk beside its text."""
    own = {name: value for name, value in stored.chunk.fields.items() if name in _SIGNALS}
    try:
        signals = signals_of(own)
    except ValueError:
        signals = Signals()  # front matter of somebody else, in other words than ours
    return replace(
        signals,
        created=stored.chunk.created,
        accessed=stored.accessed,
        entities=frozenset(stored.chunk.entities) or None,
        is_superseded=stored.superseded_by is not None,
    )


def figures_of(store: Store, ranking: Ranking, now: float) -> list[dict[str, float | int | str]]:
    """Of each scored hit the id, its relevance and every cognitive term, as they are at a moment."""
    stored = {each.id: each for each in store.fetch([hit.index for hit in ranking if hit.is_scored])}
    hits = [hit for hit in ranking if hit.index in stored]
    signals = [signals_in(stored[hit.index]) for hit in hits]
    logits = [float((hit.parts or {}).get("relevance", _logit(hit.probability))) for hit in hits]
    weighed = weigh(Cognitive(), logits, signals, query=ranking.query, now=now)
    return [{"id": hit.index, **each.parts} for hit, each in zip(hits, weighed, strict=True)]


_SIGNALS = ("confidence", "supports", "contradictions", "importance", "subject")


def _is_newer(stored: Stored, other: Stored) -> bool:
    return (stored.chunk.created or -math.inf) > (other.chunk.created or -math.inf)


def _same(stored: Stored, found: Sequence[PooledChunk], said: Callable[[str], set[str]]) -> int | None:
    """The index of a candidate that says nearly the same.

    said: which words of the question a passage has; where these differ, as in bills of two months, it is no copy.
    """
    if not found or not stored.chunk.similarity:
        return None
    ours = np.array([stored.chunk.similarity], np.uint64)
    theirs = np.array([each.stored.chunk.similarity for each in found], np.uint64)
    near = map(int, np.flatnonzero(distance(ours, theirs) <= NEAR_BITS))
    for at in near:
        chunk, other = stored.chunk, found[at].stored.chunk
        if chunk.text == other.text or said(chunk.passage) == said(other.passage):
            return at
    return None


def _reranked(
    reranker: PairReader, query: str, pool: Sequence[PooledChunk], budget_ms: float | None
) -> tuple[list[PooledChunk], Ranking]:
    ranking = reranker.rank(
        query,
        [each.stored.chunk.passage for each in pool],
        budget_ms=budget_ms,
        first_scores=None if budget_ms is None else [each.fused.score for each in pool],
    )
    ordered = [
        replace(pool[hit.index], score=hit.score, probability=hit.probability, is_scored=hit.is_scored)
        for hit in ranking
    ]
    return ordered, ranking


def _with_first_stages(pool: Sequence[PooledChunk]) -> list[PooledChunk]:
    """The scored candidates in the order of logits of which the first stages took their part; the unscored follow."""
    scored = [each for each in pool if each.is_scored]
    behind = [BEHIND * (1 - share) for share in scaled([each.fused.score for each in scored])]
    lowered = [
        replace(each, behind=lost, probability=sigmoid(_logit(each.probability) - lost))
        for each, lost in zip(scored, behind, strict=True)
    ]
    return sorted(lowered, key=lambda each: -each.probability) + [each for each in pool if not each.is_scored]


def _weighed(pool: list[PooledChunk], question: Question, store: Store) -> list[PooledChunk]:
    """The scored candidates with cognitive evidence, in its order; the unscored follow."""
    settings = question.cognitive
    if settings is None:
        return pool
    scored, others = ([each for each in pool if each.is_scored is is_scored] for is_scored in (True, False))
    if settings.has_subjects:
        others = _newest_first(others, _signals(others, question))
    if not scored:
        return others
    now = time.time() if settings.now is None else seconds_of(settings.now, "now")
    signals = _signals(scored, question)
    names = sorted({name for each in signals for name in each.entities or ()})
    if not settings.fans:
        settings = replace(settings, fans=store.fans(names))
    logits = [_logit(each.probability) for each in scored]
    weighed = weigh(settings, logits, signals, query=question.text, now=now)
    ordered = [
        replace(scored[at], weighed=weighed[at], probability=sigmoid(weighed[at].logit)) for at in order(weighed)
    ]
    return ordered + others


def _signals(pool: Sequence[PooledChunk], question: Question) -> list[Signals]:
    """What is known of candidates; what held at the moment that is asked about counts, whatever came later."""
    found = [signals_in(each.stored) for each in pool]
    return found if question.only.held_at is None else [replace(each, is_superseded=False) for each in found]


def _newest_first(unscored: Sequence[PooledChunk], signals: Sequence[Signals]) -> list[PooledChunk]:
    """Of candidates with one subject the newest is put before the first of them; the others keep their order."""
    places = {max(those, key=lambda at: signals[at].created or 0.0): those[0] - 0.5 for those in by_subject(signals)}
    return [unscored[at] for at in sorted(range(len(unscored)), key=lambda at: places.get(at, at))]


def _logit(probability: float) -> float:
    bounded = min(max(probability, 1e-9), 1 - 1e-9)
    return math.log(bounded / (1 - bounded))


def _diverse(pool: list[PooledChunk], question: Question) -> list[PooledChunk]:
    if question.diversity == "file":
        first = {each.stored.path: each for each in reversed(pool)}
        return [each for each in pool if first[each.stored.path] is each]
    return _mmr(pool, question.top_n) if question.diversity == "mmr" else pool


def _mmr(pool: Sequence[PooledChunk], count: int) -> list[PooledChunk]:
    """Each next one is relevant and unlike those above, by the share of words in common."""
    words = [set(terms(each.stored.chunk.text)) for each in pool]
    worth = [_relevance(each) for each in pool]
    left, chosen = list(range(len(pool))), list[int]()
    while left and len(chosen) < count:
        best = max(left, key=lambda at: MMR_BALANCE * worth[at] - (1 - MMR_BALANCE) * _likeness(words, at, chosen))
        left.remove(best)
        chosen.append(best)
    return [pool[at] for at in chosen]


def _relevance(candidate: PooledChunk) -> float:
    return candidate.probability if candidate.is_scored else candidate.fused.score


def _likeness(words: Sequence[set[str]], at: int, chosen: Sequence[int]) -> float:
    shares = [len(words[at] & words[other]) / (len(words[at] | words[other]) or 1) for other in chosen]
    return max(shares, default=0.0)


def _hit(candidate: PooledChunk, rank: int, question: Question) -> Hit:
    parts: dict[str, float | int | str] = {}
    if question.explain:
        parts |= _stages(candidate.fused)
        parts |= {"logit": candidate.score} if candidate.is_scored else {}
        parts |= {} if candidate.behind is None else {"first_stages": -candidate.behind}
    if candidate.weighed is not None:
        parts |= candidate.weighed.parts
    if not candidate.is_scored and not question.is_reranked:
        candidate = replace(candidate, score=candidate.fused.score, probability=candidate.fused.score)
    return Hit(
        index=candidate.stored.id,
        document=document_of(candidate.stored, candidate.copies),
        score=candidate.score,
        probability=candidate.probability,
        rank=rank,
        parts=parts or None,
        is_scored=candidate.is_scored,
    )


def _stages(fused: Fused) -> Mapping[str, float | int | str]:
    found: dict[str, float | int | str] = {}
    for name, (rank, score) in fused.stages.items():
        found |= {f"{name}_rank": rank, f"{name}_score": score}
    return found | {"fused": fused.score}
