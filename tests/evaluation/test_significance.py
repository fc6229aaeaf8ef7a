"""The test and the interval against exact enumeration and against scipy's, and the verdict."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from secondpass.evaluation.significance import RESAMPLES, difference


def test_p_is_that_of_all_sign_changes() -> None:
    change = np.array([0.5, 0.25, 0.0, -0.125, 0.3, 0.4, 0.2, 0.1, -0.05, 0.35])
    means = [np.mean(np.array(signs) * change) for signs in product((1, -1), repeat=len(change))]
    exact = np.mean(np.abs(means) >= abs(change.mean()) - 1e-12)
    found = difference([np.zeros(10)], [change])
    assert found.p == pytest.approx(exact, abs=4 * np.sqrt(exact / RESAMPLES))
    assert (found.helped, found.hurt, found.equal) == (7, 2, 1)
    assert found.change == pytest.approx(change.mean(), abs=1e-12)


@pytest.mark.slow
def test_the_interval_is_that_of_scipy() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    before = rng.random(80)
    after = np.clip(before + rng.normal(0.05, 0.2, 80), 0, 1)
    found = difference([before], [after])
    reference = stats.bootstrap((after - before,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    assert found.low == pytest.approx(reference.confidence_interval.low, abs=0.003)
    assert found.high == pytest.approx(reference.confidence_interval.high, abs=0.003)


def test_sets_count_alike_whatever_their_size() -> None:
    small, large = np.full(5, 0.5), np.full(500, -0.1)
    found = difference([np.zeros(5), np.zeros(500)], [small, large])
    assert found.change == pytest.approx(0.2, abs=1e-12)
    assert (found.helped, found.hurt) == (5, 500)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ([0.1] * 30, "helps"),
        ([-0.1] * 30, "hurts"),
        ([0.1, -0.1] * 15, "cannot be told"),
        ([0.0] * 30, "cannot be told"),
        ([1.0], "cannot be told"),
        ([0.5, 0.4, 0.3], "cannot be told"),
    ],
)
def test_verdicts(change: list[float], verdict: str) -> None:
    assert difference([np.zeros(len(change))], [np.array(change)]).verdict == verdict


@pytest.mark.slow
def test_chance_alone_is_rarely_called_a_difference() -> None:
    """Both at the level of the test: about 5% of 100 comparisons of equals."""
    rng = np.random.default_rng(0)
    called = [difference([rng.random(40)], [rng.random(40)], seed).verdict for seed in range(100)]
    assert 1 <= sum(verdict != "cannot be told" for verdict in called) <= 12


def test_the_same_seed_gives_the_same_figures() -> None:
    rng = np.random.default_rng(0)
    pair = [rng.random(30)], [rng.random(30)]
    assert difference(*pair, seed=1) == difference(*pair, seed=1) != difference(*pair, seed=2)
