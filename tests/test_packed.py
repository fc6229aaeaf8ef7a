"""Micro-batches and the layout of rows end to end."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secondpass.packed import pack, plan
from secondpass.types import Row

lengths = st.lists(st.integers(0, 50), max_size=60)


@st.composite
def random_rows(draw: st.DrawFn) -> list[Row]:
    rows = []
    for length in draw(st.lists(st.integers(1, 12), min_size=1, max_size=12)):
        start = draw(st.integers(0, length))
        ids = draw(st.lists(st.integers(0, 99), min_size=length, max_size=length))
        rows.append(Row(ids, (start, draw(st.integers(start, length)))))
    return rows


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, token_budget=st.integers(1, 80))
def test_plan_takes_every_index_once_within_the_budget(lengths: list[int], token_budget: int) -> None:
    batches = plan(lengths, token_budget=token_budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert sum(lengths[index] for index in batch) <= token_budget or len(batch) == 1


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, token_budget=st.integers(1, 80))
def test_plan_puts_long_rows_first_and_keeps_the_order_of_equal_ones(lengths: list[int], token_budget: int) -> None:
    order = [index for batch in plan(lengths, token_budget=token_budget) for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, token_budget=st.integers(1, 80))
def test_plan_starts_a_batch_only_where_the_last_is_full(lengths: list[int], token_budget: int) -> None:
    batches = plan(lengths, token_budget=token_budget)
    for batch, following in pairwise(batches):
        assert sum(lengths[index] for index in [*batch, following[0]]) > token_budget


def test_plan_by_hand() -> None:
    assert plan([3, 9, 3, 4, 20], token_budget=10) == [[4], [1], [3, 0, 2]]
    assert plan([], token_budget=10) == []


@pytest.mark.parametrize("token_budget", [0, -1])
def test_plan_rejects_a_budget_below_one(token_budget: int) -> None:
    with pytest.raises(ValueError, match="token_budget"):
        plan([1], token_budget=token_budget)


def test_pack_by_hand() -> None:
    packed = pack([Row([7, 8, 9], (2, 3)), Row([5], (1, 1)), Row([4, 6], (0, 2))])
    assert packed.ids.tolist() == [7, 8, 9, 5, 4, 6]
    assert packed.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert packed.types.tolist() == [0, 0, 1, 0, 1, 1]
    assert packed.rows.tolist() == [0, 0, 0, 1, 2, 2]
    assert packed.starts.tolist() == [0, 3, 4, 6]
    assert packed.lengths == (3, 1, 2)
    assert packed.passages == ((2, 3), (1, 1), (0, 2))
    assert packed.first().tolist() == [0, 3, 4]
    assert packed.last().tolist() == [2, 3, 5]


@settings(max_examples=30, deadline=None)
@given(rows=random_rows())
def test_pack_gives_the_rows_back(rows: list[Row]) -> None:
    packed = pack(rows)
    for index, row in enumerate(rows):
        own = slice(int(packed.starts[index]), int(packed.starts[index + 1]))
        assert packed.ids[own].tolist() == row.ids
        assert packed.positions[own].tolist() == list(range(len(row)))
        assert packed.types[own].tolist() == [int(place >= row.passage[0]) for place in range(len(row))]
        assert set(packed.rows[own].tolist()) == {index}
    assert packed.lengths == tuple(map(len, rows))
    assert packed.passages == tuple(row.passage for row in rows)
    assert int(packed.starts[-1]) == len(packed.ids) == len(packed.positions) == len(packed.types)
    assert all(
        t.dtype == torch.int64 for t in (packed.ids, packed.positions, packed.types, packed.rows, packed.starts)
    )


@settings(max_examples=30, deadline=None)
@given(rows=random_rows())
def test_groups_are_runs_of_rows_of_one_length(rows: list[Row]) -> None:
    groups = pack(rows).groups
    assert [length for count, length in groups for _ in range(count)] == [len(row) for row in rows]
    assert all(left[1] != right[1] for left, right in pairwise(groups))


@settings(max_examples=30, deadline=None)
@given(rows=random_rows(), token_budget=st.integers(1, 40))
def test_what_is_planned_and_packed_comes_back_in_input_order(rows: list[Row], token_budget: int) -> None:
    """Sums of ids by row, worked out per packed batch and put back, as an engine does with scores."""
    sums = torch.full((len(rows),), -1)
    for batch in plan([len(row) for row in rows], token_budget=token_budget):
        packed = pack([rows[index] for index in batch])
        sums[batch] = torch.zeros(len(batch), dtype=torch.int64).index_add(0, packed.rows, packed.ids)
    assert sums.tolist() == [sum(row.ids) for row in rows]


@pytest.mark.parametrize("rows", [[], [Row([], (0, 0))], [Row([1], (0, 1)), Row([], (0, 0))]])
def test_pack_rejects_no_rows_and_a_row_without_tokens(rows: list[Row]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack(rows)


def test_a_batch_stays_as_it_is_on_the_cpu() -> None:
    packed = pack([Row([1, 2], (1, 2))])
    assert packed.to(torch.device("cpu")) is packed


def test_a_row_without_types_has_type_0_everywhere() -> None:
    rows = [Row([1, 2, 3], (2, 3)), Row([1, 2, 3], (2, 3), is_typed=False)]
    assert pack(rows).types.tolist() == [0, 0, 1, 0, 0, 0]
