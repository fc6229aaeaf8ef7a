"""The cache of token ids: the same ids, fewer calls, bounded."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from secondpass.text.tokenizer import MAX_BYTES, MAX_TEXT, TokenCache, _size

ONE = _size("a", array("I", [97]))  # bytes of a text of one letter


class Encoder:
    """Letters as their code points; counts what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        self.asked += texts
        return [[ord(letter) for letter in text] for text in texts]


@given(st.lists(st.lists(st.text(max_size=5), max_size=8), max_size=8), st.integers(0, 3000))
def test_ids_are_those_of_the_encoder(batches: list[list[str]], max_bytes: int) -> None:
    cache, encoder = TokenCache(max_bytes), Encoder()
    for texts in batches:
        assert cache.get(texts, encoder) == [[ord(letter) for letter in text] for text in texts]
        assert cache.num_bytes <= max_bytes


def test_long_words_of_few_tokens_are_bounded_by_their_letters() -> None:
    cache = TokenCache()
    for n in range(1000):
        cache.get([f"{n} " + "x" * 90_000], lambda texts: [[1]] * len(texts))
    held = sum(len(text) for text in cache._ids)
    assert 0 < held <= cache.num_bytes <= cache.max_bytes == MAX_BYTES


def test_a_text_is_encoded_once() -> None:
    cache, encoder = TokenCache(), Encoder()
    cache.get(["a", "b", "a"], encoder)
    cache.get(["b", "c", ""], encoder)
    assert encoder.asked == ["a", "b", "c", ""]


def test_the_texts_used_last_stay() -> None:
    cache, encoder = TokenCache(max_bytes=2 * ONE), Encoder()
    cache.get(["a", "b"], encoder)
    cache.get(["a"], encoder)
    cache.get(["c"], encoder)  # pushes b out
    encoder.asked.clear()
    cache.get(["a", "c", "b"], encoder)
    assert encoder.asked == ["b"]


def test_a_very_long_text_is_not_kept() -> None:
    cache, encoder = TokenCache(), Encoder()
    assert len(cache.get(["x" * (MAX_TEXT + 1)], encoder)[0]) == MAX_TEXT + 1
    assert len(cache) == 0


def test_what_is_returned_is_the_callers_own() -> None:
    cache, encoder = TokenCache(), Encoder()
    cache.get(["ab"], encoder)[0].clear()
    assert cache.get(["ab"], encoder) == [[97, 98]]


def test_threads() -> None:
    cache, encoder = TokenCache(max_bytes=20 * ONE), Encoder()
    batches = [[chr(97 + (n + k) % 26) * (k % 4) for k in range(20)] for n in range(100)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda texts: cache.get(texts, encoder), batches))
    assert results == [[[ord(letter) for letter in text] for text in texts] for texts in batches]
    assert cache.num_bytes <= 20 * ONE
