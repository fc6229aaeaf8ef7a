"""Rows of the pair template: cut as the `tokenizers` library and FlagEmbedding cut, id for id."""

from __future__ import annotations

from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from secondpass.text.recipe import TRUNCATIONS, Limits, Recipe
from secondpass.text.tokenizer import Tokenizer
from secondpass.types import Row
from tests.checkpoints import SPECIAL, WORDS, word_piece

PAIR = Recipe(family="bert")
CLS, SEP = SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")

texts = st.lists(st.sampled_from(["river", "bridge", "waters", "a", ".", "[SEP]", "\n", "unknown"]), max_size=14)
sentences = texts.map(" ".join)
counts = st.integers(0, 60)


def fresh(*, doubled: bool = False) -> tokenizers.Tokenizer:
    """BERT's template, or that of RoBERTa with two separators in the middle."""
    inner = word_piece(list(dict.fromkeys((*SPECIAL, *WORDS.split()))))
    if doubled:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] [SEP] $B [SEP]",
            special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
        )
    return inner


@cache
def tokenizer_of(doubled: bool = False) -> Tokenizer:
    return Tokenizer(fresh(doubled=doubled), parses_special=True)


@cache
def truncating(max_length: int, doubled: bool) -> tokenizers.Tokenizer:
    inner = fresh(doubled=doubled)
    inner.enable_truncation(max_length, strategy="longest_first")
    return inner


def row_of(query: str, passage: str, *, doubled: bool = False, **limits: int | str) -> Row:
    return PAIR.rows(tokenizer_of(doubled), query, [passage], Limits(**limits))[0]  # type: ignore[arg-type]


class Counting(Tokenizer):
    """Notes the single texts that it encodes."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        super().__init__(inner)
        self.encoded: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        return super().encode(text)


@pytest.mark.parametrize("doubled", [False, True])
@settings(max_examples=100, deadline=None)
@given(query=sentences, passage=sentences, room=st.integers(0, 24))
def test_longest_first_equals_the_tokenizers_library(doubled: bool, query: str, passage: str, room: int) -> None:
    length = room + (4 if doubled else 3)
    expected = truncating(length, doubled).encode(query, passage)
    row = row_of(query, passage, doubled=doubled, max_length=length)
    assert row.ids == expected.ids


@pytest.mark.parametrize("room", [0, 1, 2, 3, 4, 5, 8])
def test_longest_first_equals_the_tokenizers_library_for_all_small_lengths(room: int) -> None:
    for query in range(8):
        for passage in range(8):
            expected = truncating(room + 3, False).encode("river " * query, "bridge " * passage).ids
            assert row_of("river " * query, "bridge " * passage, max_length=room + 3).ids == expected


def test_longest_first_cuts_the_query_to_its_own_limit_first() -> None:
    row = row_of("river " * 9, "bridge " * 9, max_length=13, max_query_length=2)
    assert row.cut == (7, 1)
    assert len(row) == 13


def test_longest_first_leaves_the_special_tokens_where_nothing_else_fits() -> None:
    assert row_of("river", "bridge", max_length=1).ids == [CLS, SEP, SEP]


@settings(max_examples=100, deadline=None)
@given(
    query=st.integers(0, 60),
    passage=st.integers(0, 60),
    max_length=st.integers(1, 60),
    cap=st.none() | st.integers(0, 60),
)
def test_only_second_never_cuts_the_query_for_the_passage(
    query: int, passage: int, max_length: int, cap: int | None
) -> None:
    limits = Limits(max_length=max_length, max_query_length=cap, truncation="only_second")
    kept = TRUNCATIONS["only_second"](query, passage, 4, limits)
    assert kept[0] == min(query, max_length * 3 // 4 if cap is None else cap)
    assert kept[1] == passage or (kept[1] < passage and sum(kept) + 4 == max(max_length, kept[0] + 4))


@pytest.mark.parametrize(
    ("lengths", "max_length", "cap", "kept"),
    [
        # by FlagEmbedding's lines: query to cap or max_length * 3 // 4, then prepare_for_model("only_second")
        ((10, 100), 20, None, (10, 6)),
        ((50, 100), 40, None, (30, 6)),
        ((50, 3), 40, None, (30, 3)),
        ((50, 100), 41, None, (30, 7)),
        ((50, 100), 40, 8, (8, 28)),
        ((5, 5), 40, None, (5, 5)),
        ((0, 100), 40, None, (0, 36)),
    ],
)
def test_only_second_is_the_rule_of_flag_embedding(
    lengths: tuple[int, int], max_length: int, cap: int | None, kept: tuple[int, int]
) -> None:
    limits = Limits(max_length=max_length, max_query_length=cap, truncation="only_second")
    assert TRUNCATIONS["only_second"](*lengths, 4, limits) == kept


@pytest.mark.parametrize("truncation", sorted(TRUNCATIONS))
@settings(max_examples=60, deadline=None)
@given(query=sentences, passages=st.lists(sentences, max_size=4), max_length=st.integers(3, 30))
def test_rows_say_where_the_passage_is_and_what_was_cut(
    truncation: str, query: str, passages: list[str], max_length: int
) -> None:
    tokenizer = tokenizer_of()
    query_ids = tokenizer.encode(query)
    rows = PAIR.rows(tokenizer, query, passages, Limits(max_length=max_length, truncation=truncation))
    assert len(rows) == len(passages)
    for passage, row in zip(passages, rows, strict=True):
        start, stop = row.passage
        passage_ids = tokenizer.encode(passage)
        assert [CLS, *query_ids[: len(query_ids) - row.cut[0]], SEP] == row.ids[:start]
        assert row.ids[start:stop] == passage_ids[: len(passage_ids) - row.cut[1]]
        assert row.ids[stop:] == [SEP]
        assert len(row) <= max_length or (truncation == "only_second" and stop == start)


@settings(max_examples=60, deadline=None)
@given(query=sentences, max_length=st.integers(3, 40), truncation=st.sampled_from(sorted(TRUNCATIONS)))
def test_a_passage_as_long_as_the_room_is_whole_and_one_longer_is_cut(
    query: str, max_length: int, truncation: str
) -> None:
    tokenizer, limits = tokenizer_of(), Limits(max_length=max_length, truncation=truncation)
    room = PAIR.frame(tokenizer, query, limits).room(tokenizer)
    fits, longer = PAIR.rows(tokenizer, query, ["river " * room, "river " * (room + 1)], limits)
    assert fits.cut[1] == 0
    assert longer.cut[1] == 1


def test_an_empty_passage_is_still_a_pair() -> None:
    row = row_of("river", "", max_length=10)
    assert row.ids == fresh().encode("river", "").ids
    assert row.passage == (3, 3)
    assert row_of("", "", max_length=10).ids == [CLS, SEP, SEP]


def test_no_passages_make_no_rows() -> None:
    assert PAIR.rows(tokenizer_of(), "river", [], Limits(max_length=10)) == []


def test_special_tokens_spelled_in_a_text_become_their_ids() -> None:
    row = row_of("river [SEP] water", "bridge [CLS]", max_length=20)
    assert row.ids == fresh().encode("river [SEP] water", "bridge [CLS]").ids
    assert row.ids.count(SEP) == 3
    assert row.passage == (5, 7)


def test_special_tokens_spelled_in_a_text_are_just_letters() -> None:
    tokenizer = Tokenizer(fresh())
    row = PAIR.rows(tokenizer, "river [SEP] water", ["bridge [CLS]"], Limits(max_length=40))[0]
    assert row.ids.count(SEP) == 2
    assert row.ids.count(CLS) == 1
    assert row.ids[1 : row.passage[0] - 1] == tokenizer.encode("river [SEP] water")
    assert tokenizer.encode_prompt("river [SEP] water") == [
        *tokenizer.encode("river"),
        SEP,
        *tokenizer.encode("water"),
    ]


@pytest.mark.parametrize("text", ["  river\t water\n", "\u00a0river\u3000water\u2028", " \n "])
def test_white_space_reads_as_in_the_tokenizers_library(text: str) -> None:
    assert row_of(text, text, max_length=20).ids == fresh().encode(text, text).ids


def test_the_query_is_encoded_once_for_all_passages() -> None:
    tokenizer = Counting(fresh())
    PAIR.rows(tokenizer, "river", ["bridge"] * 50, Limits(max_length=10))
    assert tokenizer.encoded == ["river"]
