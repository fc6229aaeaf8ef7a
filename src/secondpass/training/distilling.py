"""A large reranker's order taught to a small one on texts that nobody labelled: queries made of them, and judged.

Queries are headings, first sentences and key phrases of the passages, or given ones. The passage that a query was
made of is read without it, so that the teacher has something to judge.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from secondpass.data.sections import sentences
from secondpass.retrieval.bm25 import BM25
from secondpass.retrieval.words import words
from secondpass.training.data import Example, folded
from secondpass.training.mining import scores_of
from secondpass.types import Scorer

MIN_TEXT = 40  # characters that a passage has left without the query that was made of it
QUERY_WORDS = (3, 25)  # of a first sentence
PHRASE = 4  # words of a key phrase
TOP = 5
GAIN_LIMIT = 30.0  # logits beyond it have the same probability in double precision


@dataclass(frozen=True, slots=True)
class MadeQuery:
    """A query, and the passage that it was made of with the text that this has without it; None for a given one."""

    text: str
    origin: int | None = None
    rest: str = ""


@dataclass(frozen=True, kw_only=True)
class QueryRule:
    """Which judged queries are learnt from.

    min_spread: the teacher's scores of a query lie at least so far apart. max_origin_rank: a made query is dropped
    where the teacher puts its own passage behind this rank, from 0: then it asks for something else.
    """

    min_spread: float = 1.0
    max_origin_rank: int = 4


def made_queries(texts: Sequence[str], headings: Sequence[str]) -> list[MadeQuery]:
    """Queries from passages: of each its heading, its first sentence, and the words that tell it from the others."""
    rarity = _rarity(texts)
    found: list[MadeQuery] = []
    seen: set[str] = set()
    for index, (text, heading) in enumerate(zip(texts, headings, strict=True)):
        for query in _of_passage(text, heading, index, rarity):
            if folded(query.text) not in seen:
                seen.add(folded(query.text))
                found.append(query)
    return found


def _of_passage(text: str, heading: str, index: int, rarity: dict[str, float]) -> Iterator[MadeQuery]:
    body = text[len(heading) :].strip() if heading and text.startswith(heading) else text
    last = heading.rsplit(">", 1)[-1].strip(" #\n")
    if last and len(body) >= MIN_TEXT:
        yield MadeQuery(last, index, body)
    spans = sentences(body, 0, len(body))
    if len(spans) > 1:
        first, rest = body[slice(*spans[0])].strip(), body[spans[1][0] :].strip()
        if len(rest) >= MIN_TEXT and QUERY_WORDS[0] <= len(words(first)) <= QUERY_WORDS[1]:
            yield MadeQuery(first, index, rest)
    telling = sorted(dict.fromkeys(words(body)), key=lambda word: -rarity.get(word, 0.0))[:PHRASE]
    if len(telling) == PHRASE and len(body) >= 2 * MIN_TEXT:
        in_order = sorted(telling, key=words(body).index)
        yield MadeQuery(" ".join(in_order), index, body)


def _rarity(texts: Sequence[str]) -> dict[str, float]:
    """How much a word tells, by how few texts have it; words of one text alone, often misspelt, tell little."""
    counts = Counter(word for text in texts for word in set(words(text)))
    return {word: math.log(len(texts) / count) if count > 1 else 0.0 for word, count in counts.items()}


def candidates(queries: Sequence[MadeQuery], texts: Sequence[str], *, depth: int) -> list[Example]:
    """What BM25 finds for each query; the passage that it was made of comes first, without it."""
    index = BM25(texts)
    found = []
    for query in queries:
        positions = [position for position, _ in index.search(query.text, depth) if position != query.origin]
        if query.origin is not None:
            listed = [query.rest, *(texts[position] for position in positions[: depth - 1])]
        else:
            listed = [texts[position] for position in positions]
        listed = list({folded(text): text for text in reversed(listed)}.values())[::-1]
        if len(listed) > 1:
            source = "given" if query.origin is None else "made"
            found.append(
                Example(query=query.text, positives=(listed[0],), negatives=tuple(listed[1:]), source=source)
            )
    return found


def judged(examples: Sequence[Example], teacher: Scorer, *, start: int = 0) -> Iterator[Example]:
    """The examples from `start` on with the teacher's scores, in the order that they have."""
    for example in examples[start:]:
        scores = scores_of(teacher, example.query, [*example.positives, *example.negatives])
        yield replace(example, positive_scores=(scores[0],), negative_scores=tuple(scores[1:]))


def learnable(examples: Sequence[Example], is_made: Sequence[bool], rule: QueryRule) -> list[Example]:
    """Those that the rule keeps, with the teacher's best passage as the positive."""
    found = []
    for example, made in zip(examples, is_made, strict=True):
        scores = [*(example.positive_scores or ()), *(example.negative_scores or ())]
        if max(scores) - min(scores) < rule.min_spread:
            continue
        if made and sum(score > scores[0] for score in scores) > rule.max_origin_rank:
            continue
        texts = [*example.positives, *example.negatives]
        order = sorted(range(len(texts)), key=lambda position: -scores[position])
        found.append(
            replace(
                example,
                positives=(texts[order[0]],),
                negatives=tuple(texts[position] for position in order[1:]),
                positive_scores=(scores[order[0]],),
                negative_scores=tuple(scores[position] for position in order[1:]),
            )
        )
    return found


def parted(examples: Sequence[Example], *, share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(to learn from, held out), drawn by seed; one of each at least. Raises ValueError for fewer than two."""
    if len(examples) < 2:
        missing = "give more texts or queries, or a lower min_spread"
        raise ValueError(f"{len(examples)} queries are left, 2 are needed; {missing}")
    order = np.random.default_rng([seed, len(examples)]).permutation(len(examples)).tolist()
    count = min(max(round(share * len(examples)), 1), len(examples) - 1)
    return [examples[position] for position in sorted(order[count:])], [
        examples[position] for position in sorted(order[:count])
    ]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near a student's orders are to the teacher's, means over queries: nDCG@10 with the teacher's probabilities
    as gains, and the share of the teacher's first five that are among the student's.
    """

    ndcg: float
    first_five: float


def agreement(examples: Sequence[Example], student: Scorer) -> Agreement:
    """Of examples with the teacher's scores."""
    ndcgs, shares = [], []
    for example in examples:
        taught = np.array([*(example.positive_scores or ()), *(example.negative_scores or ())])
        found = np.array(scores_of(student, example.query, [*example.positives, *example.negatives]))
        gains = 1 / (1 + np.exp(-taught.clip(-GAIN_LIMIT, GAIN_LIMIT)))
        ideal = (-taught).argsort(kind="stable")
        order = np.lexsort((np.arange(len(found)), taught, -found))  # of equal scores the teacher's last comes first
        discounts = 1 / np.log2(np.arange(2, min(len(gains), 10) + 2))
        best = float((gains[ideal][:10] * discounts).sum())
        ndcgs.append(float((gains[order][:10] * discounts).sum()) / best if best else 1.0)
        top = min(TOP, len(gains))
        shares.append(len(set(ideal[:top].tolist()) & set(order[:top].tolist())) / top)
    return Agreement(ndcg=float(np.mean(ndcgs)), first_five=float(np.mean(shares)))
