"""A question whose right answer among the passages is known, and what the embedded model says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from secondpass import Reranker

QUERY = "Why is the sky blue during the day?"
PASSAGES = (
    "Bread dough rises because yeast turns sugar into carbon dioxide.",
    "The sky over Utah was clear when the aircraft landed.",
    "Air molecules scatter short blue waves of sunlight more than long red ones, so the daytime sky looks blue.",
    "Blue paint was expensive in the Middle Ages, as it was made of lapis lazuli.",
    "The committee met on Tuesday to discuss the budget.",
)
RIGHT = 2  # the passage that answers the question
KEY = "a-key-of-the-tests"
FAKE_MODEL = "rerank-v3.5"  # a name that clients send and no local model has: one model serves all names


@dataclass(frozen=True)
class Truth:
    """Indices best first, and scores by index."""

    order: list[int]
    logits: dict[int, float]
    probabilities: dict[int, float]

    def check(self, indices: Sequence[int], scores: Sequence[float], *, top_n: int = len(PASSAGES)) -> None:
        """The ranking is the right one, with probabilities."""
        self._check(indices, scores, self.probabilities, top_n)

    def check_logits(self, indices: Sequence[int], scores: Sequence[float], *, top_n: int = len(PASSAGES)) -> None:
        """The ranking is the right one, with logits."""
        self._check(indices, scores, self.logits, top_n)

    def check_texts(self, texts: Sequence[str], scores: Sequence[float], *, top_n: int = len(PASSAGES)) -> None:
        """The texts, for clients that give no indices, are those of the right ranking, with probabilities."""
        self.check([PASSAGES.index(text) for text in texts], scores, top_n=top_n)

    def _check(self, indices: Sequence[int], scores: Sequence[Any], truth: dict[int, float], top_n: int) -> None:
        assert list(indices) == self.order[:top_n]
        assert indices[0] == RIGHT
        assert [float(score) for score in scores] == pytest.approx([truth[index] for index in indices], abs=2e-3)


def truth() -> Truth:
    hits = list(Reranker().rank(QUERY, PASSAGES))
    return Truth(
        [hit.index for hit in hits],
        {hit.index: hit.score for hit in hits},
        {hit.index: hit.probability for hit in hits},
    )
