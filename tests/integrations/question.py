"""A question with passages that any reranker orders alike, and what holds in every framework."""

from __future__ import annotations

from collections.abc import Sequence

QUERY = "How do I stop a tap from dripping?"
ANSWER = "Replace the worn washer inside the tap and the dripping stops."
PASSAGES = [
    "Paris is the capital of France.",
    "A kettle boils water in a few minutes.",
    ANSWER,
    "Taps come in brass, chrome and steel.",
    "The museum opens at nine on weekdays.",
]


def assert_best_first(texts: Sequence[str], scores: Sequence[float], count: int) -> None:
    """The answer leads, scores are probabilities in falling order, and no passage is doubled or made up."""
    assert len(texts) == len(scores) == count == len(set(texts))
    assert texts[0] == ANSWER
    assert set(texts) <= set(PASSAGES)
    assert list(scores) == sorted(scores, reverse=True)
    assert all(type(score) is float and 0 <= score <= 1 for score in scores)
