"""Who leaves early is never one of the first n; those who go on are all that is computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondpass.engine import early_exit as exits
from secondpass.engine.early_exit import Race
from secondpass.types import Row


@st.composite
def changing_scores(draw: st.DrawFn) -> tuple[int, list[float], np.ndarray]:
    """n, the bounds of some layers, and scores (layers + 1, N) whose last row is within them of every other."""
    count = draw(st.integers(1, 12))
    bounds = draw(st.lists(st.floats(0, 4), min_size=1, max_size=4))
    last = np.array(draw(st.lists(st.integers(-20, 20), min_size=count, max_size=count))) / 4
    moves = draw(st.lists(st.lists(st.floats(-1, 1), min_size=count, max_size=count), min_size=len(bounds)))
    layers = [last + bound * np.array(move) for bound, move in zip(bounds, moves, strict=False)]
    return draw(st.integers(1, 6)), bounds, np.array([*layers, last])


def race_through(race: Race, bounds: list[float], scores: np.ndarray, *, can_settle: bool) -> list[tuple[int, float]]:
    """What `EarlyExits` does, without a model: the layer and the score with which each row left."""
    left: dict[int, tuple[int, float]] = {}
    running = np.arange(scores.shape[1])
    for layer, bound in enumerate(bounds):
        stays = race.staying(scores[layer, running], bound)
        if can_settle and race.is_settled(scores[layer, running[stays]], bound):
            stays[:] = False
        left |= {int(row): (layer, float(scores[layer, row])) for row in running[~stays]}
        running = running[stays]
    race.finish(scores[-1, running])
    left |= {int(row): (len(bounds), float(scores[-1, row])) for row in running}
    return [left[row] for row in range(scores.shape[1])]


@settings(deadline=None, max_examples=60)
@given(changing_scores())
def test_the_first_n_and_their_order_are_those_of_the_last_layer(made: tuple[int, list[float], np.ndarray]) -> None:
    n, bounds, scores = made
    left = race_through(Race(n=n), bounds, scores, can_settle=True)
    order = sorted(range(len(left)), key=lambda row: left[row], reverse=True)[:n]
    found = scores[-1, order]
    best = np.sort(scores[-1])[::-1][:n]
    assert found == pytest.approx(best, abs=1e-9)  # of rows that end equal, either may be first


@settings(deadline=None, max_examples=60)
@given(changing_scores(), st.integers(1, 11))
def test_nor_does_it_matter_that_rows_come_in_waves(made: tuple[int, list[float], np.ndarray], cut: int) -> None:
    n, bounds, scores = made
    race = Race(n=n)
    parts = [part for part in (scores[:, :cut], scores[:, cut:]) if part.shape[1]]
    left = [one for part in parts for one in race_through(race, bounds, part, can_settle=False)]
    order = sorted(range(len(left)), key=lambda row: left[row], reverse=True)[:n]
    assert scores[-1, order] == pytest.approx(np.sort(scores[-1])[::-1][:n], abs=1e-9)


def test_who_can_be_among_the_first() -> None:
    scores = np.array([5.0, 4.0, 3.0, 0.0, 1.99])
    assert Race(n=2).staying(scores, 1.0).tolist() == [True, True, True, False, False]
    assert Race(n=2).staying(scores, 0.5).tolist() == [True, True, True, False, False]
    assert Race(n=2).staying(scores, 0.49).tolist() == [True, True, False, False, False]
    assert Race(n=2, finished=np.array([7.0, 9.0])).staying(scores, 2.0).tolist() == [True, *[False] * 4]
    assert Race(n=2).staying(scores, np.inf).all()
    assert Race(n=5).staying(scores, 0.0).all()


def test_an_order_is_settled_when_no_neighbours_can_change_places() -> None:
    assert Race(n=2).is_settled(np.array([1.0, 3.0]), 0.9)
    assert not Race(n=2).is_settled(np.array([1.0, 3.0]), 1.0)
    assert not Race(n=2).is_settled(np.array([1.0, 3.0, 9.0]), 0.1)
    assert not Race(n=2).is_settled(np.array([1.0, 1.0]), 0.0)
    assert Race(n=2).is_settled(np.array([1.0]), np.inf)


def test_waves_keep_the_order_and_a_long_row_is_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "MAX_HELD", 10)
    rows = [Row([1] * length, (0, length)) for length in (4, 6, 1, 30, 2)]
    assert exits._waves(rows) == [[0, 1], [2], [3], [4]]
    assert exits._waves([]) == []
