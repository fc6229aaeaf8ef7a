"""Calibration: the fit against an optimiser, what is held out, thresholds, and the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from secondpass import Reranker
from secondpass.calibration import Calibration
from secondpass.errors import DataError, SecondpassError
from secondpass.evaluation import fit_calibration
from secondpass.evaluation.calibrate import Bools, Floats, find_threshold, fit_platt, reliability
from tests.checkpoints import tiny_bert


def drawn(size: int, slope: float = 1.7, intercept: float = -2.0, seed: int = 0) -> tuple[Floats, Bools]:
    """Logits whose labels follow the curve."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, size)
    return scores, rng.random(size) < 1 / (1 + np.exp(-(slope * scores + intercept)))


def test_the_fit_is_the_optimum_that_scipy_finds() -> None:
    from scipy import optimize

    scores, labels = drawn(3000)
    positive, negative = labels.sum(), (~labels).sum()
    targets = np.where(labels, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(curve: Floats) -> float:
        x = curve[0] * scores + curve[1]
        return float((np.logaddexp(0, x) - targets * x).mean())

    reference = optimize.minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15})
    assert fit_platt(scores, labels) == pytest.approx(tuple(reference.x), rel=1e-5)
    assert fit_platt(scores, labels) == pytest.approx((1.7, -2.0), abs=0.2)


@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (1e3, 0.0), (1.0, 500.0)])
def test_the_fit_follows_the_scale_of_the_logits(scale: float, shift: float) -> None:
    scores, labels = drawn(500)
    slope, intercept = fit_platt(scores, labels)
    scaled = fit_platt(scores * scale + shift, labels)
    assert scaled == pytest.approx((slope / scale, intercept - slope * shift / scale), rel=1e-5)


def test_labels_that_the_scores_part_still_give_a_finite_fit() -> None:
    scores = np.arange(40.0)
    slope, intercept = fit_platt(scores, scores >= 20)
    assert np.isfinite([slope, intercept]).all() and slope > 0


def test_scores_that_say_the_contrary_are_refused() -> None:
    scores, labels = drawn(500)
    with pytest.raises(DataError, match="does not go with relevance"):
        fit_platt(-scores, labels)


def test_reliability_by_hand() -> None:
    found = reliability(np.array([0.05, 0.15, 0.15, 1.0]), np.array([False, False, True, True]))
    assert found.brier == pytest.approx((0.05**2 + 0.15**2 + 0.85**2) / 4, abs=1e-12)
    assert found.ece == pytest.approx((0.05 + 2 * abs(0.15 - 0.5)) / 4, abs=1e-12)
    assert found.log_loss == pytest.approx(-np.log([0.95, 0.85, 0.15, 1.0]).mean(), abs=1e-9)
    assert [one.pairs for one in found.bins] == [1, 2, *[0] * 7, 1]


def test_a_threshold_reaches_its_precision_with_the_most_pairs() -> None:
    scores = np.array([*np.linspace(10, 5, 30), *np.linspace(4, 0, 70)])
    labels = np.array([True] * 27 + [False] * 3 + [False] * 70)
    threshold = find_threshold(scores, labels, 0.9)
    assert threshold == scores[29]
    assert labels[scores >= threshold].mean() >= 0.9
    assert find_threshold(scores, labels, 0.95) == scores[27]
    assert find_threshold(np.array([1.0] * 50), np.array([True] * 25 + [False] * 25), 0.9) is None
    assert find_threshold(scores[:10], labels[:10], 0.5) is None  # too few pairs to say


def fitted(precision: float | None = 0.9) -> Calibration:
    scores, labels = drawn(2000)
    groups = [f"q{place // 20}" for place in range(2000)]
    now = 1 / (1 + np.exp(-scores))
    return fit_calibration(scores.tolist(), labels.tolist(), groups, precision=precision, uncalibrated=now.tolist())


def test_held_out_figures_show_what_calibration_brings() -> None:
    calibration = fitted()
    held = calibration.held_out
    assert held["ece"] < 0.03 < 0.1 < held["uncalibrated"]["ece"]
    assert held["brier"] < held["uncalibrated"]["brier"]
    assert sum(one["pairs"] for one in held["bins"]) == 2000
    assert held["threshold"]["precision"] == pytest.approx(0.9, abs=0.05)
    assert calibration.threshold is not None and calibration.fitted_on["queries"] == 100
    assert fitted(None).threshold is None and "threshold" not in fitted(None).held_out


@pytest.mark.parametrize(
    ("labels", "groups", "error", "message"),
    [
        ([True] * 30, [str(n) for n in range(30)], DataError, "30 relevant and 0 other pairs of 30 queries"),
        ([True, False] * 15, ["q"] * 30, DataError, "of 1 queries"),
        ([True, False] * 10, ["q"] * 30, ValueError, "30 scores, 20 labels and 30 groups"),
    ],
)
def test_too_little_data_is_refused(
    labels: list[bool], groups: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_calibration(np.linspace(0, 1, 30).tolist(), labels, groups)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    calibration = fitted()
    file = calibration.save(tmp_path)
    assert file == tmp_path / "calibration.json"
    loaded = Calibration.load(file)
    assert loaded.slope == calibration.slope and loaded.threshold == calibration.threshold
    assert json.loads(json.dumps(loaded.held_out)) == json.loads(json.dumps(calibration.held_out))
    assert calibration.save(tmp_path / "new" / "other.json").is_file()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"format": 2, "slope": 1, "intercept": 0}', '{"format": 1, "slope": 1}'),
        *('{"format": 1, "slope": -1, "intercept": 0}', '{"format": 1, "slope": "x", "intercept": 0}'),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(text)
    with pytest.raises(SecondpassError, match="is not a calibration"):
        Calibration.load(file)
    with pytest.raises(SecondpassError, match="no calibration can be read there"):
        Calibration.load(tmp_path / "other.json")


def test_extreme_logits_have_probabilities() -> None:
    calibration = Calibration(slope=2.0, intercept=1.0)
    assert [calibration.probability(score) for score in (-1e6, -0.5, 1e6)] == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="slope 0"):
        Calibration(slope=0.0, intercept=1.0)


def test_a_reranker_uses_it_and_its_scores_stay(tmp_path: Path) -> None:
    model = tiny_bert(tmp_path / "model")
    calibration = Calibration(slope=3.0, intercept=-1.0)
    calibration.save(model)
    texts = ["the river", "a bridge", "snow"]
    plain = Reranker(model).rank("which river", texts)
    for given in (calibration, model, model / "calibration.json"):
        ranking = Reranker(model, calibration=given).rank("which river", texts)
        assert [hit.score for hit in ranking] == [hit.score for hit in plain]
        assert [hit.probability for hit in ranking] == [calibration.probability(hit.score) for hit in plain]
    assert [hit.probability for hit in plain] != [calibration.probability(hit.score) for hit in plain]
    with pytest.raises(SecondpassError, match="no calibration can be read"):
        Reranker(model, calibration=tmp_path / "nothing.json")


def test_one_of_another_model_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_bert(tmp_path / "moved" / "mine")
    for fitted in ("mine", "elsewhere/mine"):
        Reranker(folder, calibration=Calibration(slope=3.0, intercept=-1.0, model={"model": fitted}))
    assert not caplog.messages
    Reranker(folder, calibration=Calibration(slope=3.0, intercept=-1.0, model={"model": "default"}))
    assert "the calibration was fitted to default; if" in caplog.text
