"""The local pipeline, measured after each of its stages, so that one sees which of them loses the answer.

A set's documents are chunks of their own in a temporary index. Where the set says when documents were written and
questions asked ("timestamp"), questions see only what was there, and cognitive scoring is measured beside none,
beside its recency alone and beside the newest first. "scope" of a question and of documents is the memory that it is
asked of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.cognitive import Cognitive, seconds_of
from secondpass.data.files import records
from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.evaluation.datasets.load import load_dataset
from secondpass.evaluation.measures import Measure, parse
from secondpass.evaluation.significance import Difference, difference
from secondpass.retrieval.fusion import FUSIONS
from secondpass.retrieval.vectors import TextEmbedder
from secondpass.search.features import digest_of, entities_of
from secondpass.search.indexing import Indexing, IndexReport
from secondpass.search.pipeline import PairReader, Pipeline, Question
from secondpass.search.stores.sqlite import SqliteStore
from secondpass.search.stores.store import Change, Chunk, File, Filter, Retriever
from secondpass.types import Progress, Ranking

MEASURES = ("nDCG@10", "recall@20", "recall@50", "recall@100")
STAGES = ("bm25", "dense", "sparse", "colbert", "fused", "reranked", "cognitive", "recency only", "newest first")
# Each stage, and what it is compared with.
COMPARED = {"fused": "dense", "reranked": "fused"} | dict.fromkeys(STAGES[6:], "reranked")
Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TimedSet:
    """A set, and what it says of times (seconds since 1970) and scopes, by names; a name without is left out."""

    dataset: Dataset
    created: Mapping[str, float] = field(default_factory=dict)
    asked: Mapping[str, float] = field(default_factory=dict)
    scopes: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_timed(self) -> bool:
        return bool(self.created and self.asked)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """A set's rankings after each stage, by question: names with scores that fall."""

    dataset: Dataset
    rankings: Mapping[str, Mapping[str, Scores]]

    def figures(self, stage: str, measure: Measure) -> NDArray[np.float64]:
        """The measure (Q,) of each question."""
        found = self.rankings[stage]
        return np.array([measure(grades, found.get(name, {})) for name, grades in self.dataset.qrels.items()])

    def change(self, before: str, after: str, measure: Measure) -> Difference:
        return difference([self.figures(before, measure)], [self.figures(after, measure)])


def load_timed(
    source: str | Path, *, split: str | None = None, num_queries: int | None = None, seed: int = 0
) -> TimedSet:
    """A set with its times and scopes, where it is a folder whose records have them."""
    dataset = load_dataset(source, split=split)
    if num_queries is not None:
        dataset = dataset.sample(num_queries, seed)
    created, asked, scopes = dict[str, float](), dict[str, float](), dict[str, str]()
    for name, times in (("corpus", created), ("queries", asked)):
        for file in sorted(Path(source).glob(f"{name}.jsonl*")):
            for _, record in records(file):
                _note(record, times, scopes)
    return TimedSet(dataset=dataset, created=created, asked=asked, scopes=scopes)


def measure_pipeline(
    timed: TimedSet,
    *,
    encoder: TextEmbedder | None,
    reranker: PairReader | None,
    options: Question,
    cognitive: Cognitive,
    retrievers: Sequence[Retriever] = (),
    progress: Progress | None = None,
) -> Stages:
    """The rankings after each stage. options says depth, candidates and fusion; its text is not used."""
    with TemporaryDirectory(prefix="secondpass-") as folder:
        store = SqliteStore(Path(folder) / "set.sqlite")
        try:
            names = fill(store, timed, encoder, retrievers)
            kept = None if reranker is None else _Kept(reranker)
            pipeline = Pipeline(
                store=store, encoder=encoder, open_reranker=lambda query: (kept, ()), retrievers=retrievers
            )
            rankings: dict[str, dict[str, Scores]] = {}
            for done, (query, text) in enumerate(timed.dataset.queries.items()):
                asked = replace(options, text=text, only=_only(timed, query), top_n=options.candidates)
                for stage, found in _stages(pipeline, asked, timed.asked.get(query), cognitive).items():
                    rankings.setdefault(stage, {})[query] = _falling([names[id] for id in found])
                if progress is not None:
                    progress(done + 1, len(timed.dataset.queries))
        finally:
            store.close()
    return Stages(dataset=timed.dataset, rankings=rankings)


def table(stages: Stages, measures: Sequence[str] = MEASURES) -> str:
    """Stages and measures as a Markdown table, with how the first measure changes from stage to stage."""
    parsed = [parse(name) for name in measures]
    lines = [f"| {stages.dataset.name} | {' | '.join(measures)} | change | 95 % interval |"]
    lines.append("|---" * (len(measures) + 3) + "|")
    for stage in (stage for stage in STAGES if stage in stages.rankings):
        figures = " | ".join(f"{stages.figures(stage, measure).mean():.3f}" for measure in parsed)
        earlier = COMPARED.get(stage, "")
        said = " | "
        if earlier in stages.rankings:
            found = stages.change(earlier, stage, parsed[0])
            said = f"{found.change:+.3f} to {earlier}: {found.verdict} | {found.low:+.3f} to {found.high:+.3f}"
        lines.append(f"| {stage} | {figures} | {said} |")
    return "\n".join(lines)


def _stages(pipeline: Pipeline, asked: Question, now: float | None, cognitive: Cognitive) -> dict[str, list[int]]:
    """Ids after each stage, best first."""
    runs = pipeline.first_stages(asked)
    fused = FUSIONS[asked.fusion](runs)
    found = {name: [id for id, _ in run] for name, run in runs.items()}
    found["fused"] = [each.index for each in fused]
    if pipeline.open_reranker(asked.text)[0] is None:
        return found
    plain = pipeline.search(asked)
    found["reranked"] = [hit.index for hit in plain]
    if now is not None:
        clocked = replace(cognitive, now=now)
        recent = replace(clocked, frequency=0.0, confidence=0.0, entities=0.0, importance=0.0)
        for stage, settings in (("cognitive", clocked), ("recency only", recent)):
            found[stage] = [hit.index for hit in pipeline.search(replace(asked, cognitive=settings))]
        newest = sorted(plain, key=lambda hit: -(hit.document["created"] or 0.0))
        found["newest first"] = [hit.index for hit in newest]
    return found


@dataclass
class _Kept:
    """A reranker that keeps its last ranking, since the stages after it ask for the same one."""

    reranker: PairReader
    asked: tuple[str, tuple[str, ...]] = ("", ())
    ranking: Ranking | None = None

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        budget_ms: float | None = None,
        first_scores: Sequence[float] | None = None,
    ) -> Ranking:
        asked = (query, tuple(documents))
        if self.ranking is None or asked != self.asked:
            self.ranking = self.reranker.rank(query, documents, budget_ms=budget_ms, first_scores=first_scores)
            self.asked = asked
        return self.ranking

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return self.reranker.score_pairs(pairs)


def fill(
    store: SqliteStore, timed: TimedSet, encoder: TextEmbedder | None, retrievers: Sequence[Retriever] = ()
) -> dict[int, str]:
    """Put the documents into the store. Returns their names by id."""
    documents = timed.dataset.documents
    changes = [
        Change(file=File(path=name, root="", digest="", size=0, modified_ns=0), chunks=[_chunk(name, timed)])
        for name in documents
    ]
    for start in range(0, len(changes), 1000):
        store.write(changes[start : start + 1000])
    indexing = Indexing(store=store, encoder=encoder, retrievers=retrievers)
    indexing.begin()
    indexing.complete(IndexReport(chunks=len(changes)))
    ids = range(1, len(documents) + 1)
    return dict(zip(ids, documents, strict=True))


def _chunk(name: str, timed: TimedSet) -> Chunk:
    text = timed.dataset.documents[name]
    scope = timed.scopes.get(name)
    return Chunk(
        text=text,
        heading="",
        lines=(1, 1),
        span=(0, len(text)),
        digest=digest_of(name, text),  # a document of the same text is another one here
        similarity=0,  # so that copies are judged as they are in the set
        created=timed.created.get(name),
        entities=entities_of(text, {}),
        fields={} if scope is None else {"scope": scope},
    )


def _only(timed: TimedSet, query: str) -> Filter:
    scope = timed.scopes.get(query)
    return Filter(until=timed.asked.get(query), fields={} if scope is None else {"scope": scope})


def _falling(names: Sequence[str]) -> Scores:
    return {name: 1.0 / (rank + 1) for rank, name in enumerate(names)}


def _note(record: Mapping[str, Any], times: dict[str, float], scopes: dict[str, str]) -> None:
    name = str(record.get("_id"))
    if record.get("timestamp"):
        times[name] = seconds_of(str(record["timestamp"]), "timestamp")
    if record.get("scope"):
        scopes[name] = str(record["scope"])
