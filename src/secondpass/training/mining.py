"""Hard negatives: passages that a search finds for a query, less those that may well answer it.

The search is BM25, an embedder, or anything with `scores`; a reranker may judge what it found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secondpass.errors import DataError
from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.retrieval.bm25 import best
from secondpass.training.data import Data, Example, folded, read_example
from secondpass.types import Progress, Scorer


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A query with the indices of its relevant passages; source says where it comes from.

    prompt is the query's own instruction, which the mined example keeps.
    """

    query: str
    positives: tuple[int, ...]
    prompt: str | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Passages, and queries with judgements on some of them."""

    name: str
    passages: Sequence[str]
    queries: Sequence[Judged]


def collection_of(dataset: Dataset) -> Collection:
    """The queries of a set, with every document that has a grade above 0 as a positive."""
    positions = {name: position for position, name in enumerate(dataset.documents)}
    queries = []
    for name, query in dataset.queries.items():
        relevant = [document for document, grade in dataset.qrels[name].items() if grade > 0]
        positives = tuple(positions[document] for document in relevant if document in positions)
        if positives:
            queries.append(Judged(query=query, positives=positives, source=f"{dataset.name} {name}"))
    return Collection(name=dataset.name, passages=list(dataset.documents.values()), queries=queries)


def collection_of_examples(data: Data, name: str) -> Collection:
    """The passages of examples, in which each example's positives are relevant to its query."""
    texts = dict.fromkeys(text for one in data.examples for text in (*one.positives, *one.negatives))
    positions = {text: position for position, text in enumerate(texts)}
    queries = [
        Judged(
            query=one.query,
            positives=tuple(positions[text] for text in one.positives),
            prompt=one.prompt,
            source=one.source,
        )
        for one in data.examples
    ]
    return Collection(name=name, passages=list(texts), queries=queries)


class Search(Protocol):
    """Scores of all passages of a collection, as `retrieval.BM25` and `retrieval.VectorIndex` have them."""

    def scores(self, query: str) -> NDArray[np.float32]:
        """The score of every passage (N,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """What is taken of the passages that a search finds, best first.

    num_negatives: per query. first, depth: of the ranks found, those from `first` (0 is the best) to below `depth`.
    margin: a negative scores at least so much below the positive. ratio: a negative scores at most this share of the
    positive, where that is above 0 (Moreira et al. 2024 take 0.95 of cosines). The positive that counts is the
    lowest. Both are about the judge's scores where there is one, else the search's. is_spread: take the negatives
    evenly from all that remain, not the first of them.
    """

    num_negatives: int = 15
    first: int = 0
    depth: int = 100
    margin: float | None = None
    ratio: float | None = None
    is_spread: bool = False

    def __post_init__(self) -> None:
        if self.num_negatives < 1 or not 0 <= self.first < self.depth:
            raise ValueError(
                f"num_negatives is {self.num_negatives}, first {self.first}, depth {self.depth}; give 1 or more, "
                "and a range of ranks that is not empty"
            )
        if self.margin is not None and not math.isfinite(self.margin):
            raise ValueError(f"margin is {self.margin}; give a number, as 1")
        if self.ratio is not None and not self.ratio > 0:
            raise ValueError(f"ratio is {self.ratio}; give more than 0, as 0.95")


def mine(
    collection: Collection,
    search: Search,
    settings: MiningSettings,
    *,
    judge: Scorer | None = None,
    start: int = 0,
) -> Iterator[Example]:
    """An example for every query of the collection from index `start` on; one may be without negatives.

    With a judge, its scores are kept as a teacher's.
    """
    sameness = _numbered([folded(text) for text in collection.passages])
    answers: dict[str, set[int]] = {}  # of all queries of the same text: one may be asked twice
    for judged in collection.queries:
        answers.setdefault(folded(judged.query), set()).update(sameness[index] for index in judged.positives)
    for judged in collection.queries[start:]:
        known = set(answers[folded(judged.query)])
        candidates = _candidates(search.scores(judged.query), judged, sameness, seen=known, settings=settings)
        yield _mined(collection, judged, candidates, settings, judge)


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """Places of passages and their scores, and the scores of the query's positives."""

    positions: list[int]
    scores: list[float]
    positives: list[float]


def _candidates(
    scores: NDArray[np.float32], judged: Judged, sameness: Sequence[int], *, seen: set[int], settings: MiningSettings
) -> _Candidates:
    """What is found in the range of ranks, without texts that are `seen` already: answers, and what comes twice."""
    positions: list[int] = []
    for position, score in best(scores, settings.depth)[settings.first :]:
        if score > 0 and sameness[position] not in seen:
            seen.add(sameness[position])
            positions.append(position)
    return _Candidates(
        positions=positions,
        scores=[float(scores[position]) for position in positions],
        positives=[float(scores[position]) for position in judged.positives],
    )


def _mined(
    collection: Collection, judged: Judged, found: _Candidates, settings: MiningSettings, judge: Scorer | None
) -> Example:
    texts = [collection.passages[position] for position in found.positions]
    positives = [collection.passages[position] for position in judged.positives]
    if judge is not None:
        judged_scores = scores_of(judge, judged.query, [*positives, *texts])
        own, others = judged_scores[: len(positives)], judged_scores[len(positives) :]
        found = replace(found, positives=own, scores=others)
    most = _most(min(found.positives), settings)
    fit = [position for position, score in enumerate(found.scores) if score <= most]
    kept = _spread(fit, settings.num_negatives) if settings.is_spread else fit[: settings.num_negatives]
    return Example(
        query=judged.query,
        positives=tuple(positives),
        negatives=tuple(texts[position] for position in kept),
        positive_scores=None if judge is None else tuple(found.positives),
        negative_scores=None if judge is None else tuple(found.scores[position] for position in kept),
        prompt=judged.prompt,
        source=judged.source,
    )


def _most(positive: float, settings: MiningSettings) -> float:
    """The highest score that a negative may have."""
    limits = [float("inf")]
    if settings.margin is not None:
        limits.append(positive - settings.margin)
    if settings.ratio is not None and positive > 0:
        limits.append(positive * settings.ratio)
    return min(limits)


def _spread(values: Sequence[int], count: int) -> list[int]:
    if len(values) <= count:
        return list(values)
    return [values[int(position)] for position in np.linspace(0, len(values) - 1, count).round()]


def _numbered(texts: Sequence[str]) -> list[int]:
    """The same number for the same text."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(text, len(numbers)) for text in texts]


def scores_of(scorer: Scorer, query: str, texts: Sequence[str]) -> list[float]:
    """A finite score of each text. Raises DataError where the scorer, which may be anybody's, gives others."""
    scores = [float(score) for score in scorer.score(query, texts)]
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise DataError(f"the scores of {query!r} are {scores[:5]}; {len(texts)} finite numbers are needed")
    return scores


def taught(examples: Sequence[Example], teacher: Scorer, *, start: int = 0) -> Iterator[Example]:
    """The examples from index `start` on with the teacher's scores, in place of any that they had."""
    for example in examples[start:]:
        scores = scores_of(teacher, example.query, [*example.positives, *example.negatives])
        num = len(example.positives)
        yield replace(example, positive_scores=tuple(scores[:num]), negative_scores=tuple(scores[num:]))


def continued(
    file: Path,
    key: str,
    num_examples: int,
    make: Callable[[int], Iterator[Example]],
    *,
    progress: Progress | None = None,
) -> list[Example]:
    """All examples: those in `file` from an interrupted run of the same `key`, and make(their count) for the rest.

    Every finished example is appended to the file, which the caller removes when the result is safe. Raises DataError
    where it cannot be written.
    """
    try:
        done = _read(file, key)
        if not done:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"key": key}) + "\n", "utf-8")
        with file.open("a", encoding="utf-8") as stream:
            for example in make(len(done)):
                done.append(example)
                stream.write(example.as_json() + "\n")
                stream.flush()
                if progress is not None:
                    progress(len(done), num_examples)
    except OSError as error:
        raise DataError(f"{file}: cannot be written ({error}); what is done is kept") from error
    return done


def _read(file: Path, key: str) -> list[Example]:
    """The whole lines of a file of the same key; what is half written is cut off."""
    if not file.is_file():
        return []
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    lines = whole.decode(errors="replace").split("\n")[:-1]
    if not lines or lines[0] != json.dumps({"key": key}):
        return []
    if len(whole) < len(text):
        with file.open("rb+") as stream:
            stream.truncate(len(whole))
    try:
        return [
            read_example(json.loads(line), f"{file}:{number}", needs_negatives=False)
            for number, line in enumerate(lines[1:], 2)
        ]
    except ValueError as error:
        raise DataError(f"{file}: cannot be read ({error}); remove it to begin anew") from error
