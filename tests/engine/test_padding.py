"""Padded batches hold every row once, within the budget, in few shapes and with little padding."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondpass.engine.openvino import CALL_TOKENS, ROWS, padded, plan_padded
from secondpass.packed import MIN_STEP, rung
from secondpass.types import Row


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 2048), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_every_row_is_in_one_batch_within_the_budget(lengths: list[int], budget: int, num_parts: int) -> None:
    batches = plan_padded(lengths, token_budget=budget, num_parts=num_parts)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = rung(max(lengths[index] for index in batch))
        assert len(batch) in ROWS
        assert len(batch) == 1 or longest * len(batch) <= budget
        assert sum(longest - rung(lengths[index]) for index in batch) <= CALL_TOKENS * (len(batch) - 1)


@pytest.mark.parametrize("count", [2, 10, 50])
def test_equal_rows_are_shared_out(count: int) -> None:
    assert len(plan_padded([40] * count, token_budget=100_000, num_parts=2)) >= 2


def test_longest_first() -> None:
    assert plan_padded([5, 300, 299, 4, 301, 302], token_budget=2048) == [[5, 4, 1, 2], [0], [3]]


def test_lengths_are_few_and_a_row_is_padded_by_little() -> None:
    for length in range(1, 8193):
        assert length <= rung(length) < max(length + MIN_STEP, length * 1.125 + 1)
    assert len({rung(length) for length in range(1, 513)}) <= 24
    assert len({rung(length) for length in range(1, 8193)}) <= 56


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        plan_padded([3], token_budget=0)


def test_padding_is_masked() -> None:
    rows = [Row([7, 8, 9], passage=(1, 2)), Row([5], passage=(1, 1))]
    arrays = padded(rows, ("input_ids", "attention_mask", "token_type_ids"), pad_id=1, longest=4)
    assert arrays["input_ids"].tolist() == [[7, 8, 9, 1], [5, 1, 1, 1]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert arrays["token_type_ids"].tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert list(padded(rows, ("attention_mask",), pad_id=1, longest=4)) == ["attention_mask"]


def test_no_row_is_padded_beyond_the_longest_that_the_model_reads() -> None:
    arrays = padded([Row([7] * 500, passage=(1, 500))], ("input_ids",), pad_id=1, longest=510)
    assert arrays["input_ids"].shape == (1, 510)
