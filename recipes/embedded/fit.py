"""Weights of the head's figures, chosen with one kind of source left out at a time, and the probability's scale."""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sets import Lists, read_lists

RIDGE = 1e-2  # with less, the fit trusts MaxSim on long requests, where left-out ones lose by it
MIX = (0.6, 0.4)  # of the z-scores of cosine and BM25 within a query's candidates
MAX_ERROR = 0.05  # expected calibration error of every left-out kind
SLOPES, MIDPOINTS = np.arange(0.3, 1.5, 0.05).round(2), np.arange(14.0, 22.0, 0.25)
NUM_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Measured:
    lists: Lists
    is_dev: bool
    figures: list[np.ndarray]  # of each query (D, F)
    grades: list[np.ndarray]


def read(folder: Path) -> list[Measured]:
    found = []
    for split in ("train", "dev"):
        for lists in read_lists(folder / split):
            values = np.load(folder / split / f"{lists.name.replace('/', '.')}.npy")
            ends = np.cumsum([len(row) for row in lists.candidates])[:-1]
            grades = [np.array(row, dtype=float) for row in lists.grades]
            found.append(Measured(lists=lists, is_dev=split == "dev", figures=np.split(values, ends), grades=grades))
    return found


def fit(sets: Sequence[Measured]) -> np.ndarray:
    """The conditional logit of the relevant passages in their lists; every set counts the same."""
    kept = [
        (torch.tensor(x - x.mean(0), dtype=torch.float64), torch.tensor(grades > 0), 1 / len(one.figures) / len(sets))
        for one in sets
        for x, grades in zip(one.figures, one.grades, strict=True)
        if 0 < (grades > 0).sum() < len(grades)
    ]
    spread = torch.cat([x for x, _, _ in kept]).std(0) + 1e-6
    weights = torch.full((len(spread),), 0.3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        losses = [-share * (x / spread @ weights).log_softmax(0)[good].mean() for x, good, share in kept]
        loss = torch.stack(losses).sum() + RIDGE * (weights**2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (weights.detach() / spread).numpy()


def ndcg(scores: np.ndarray, grades: np.ndarray, ideal: Sequence[int]) -> float:
    """nDCG@10 with linear gains."""
    ranked, best = grades[np.argsort(-scores, kind="stable")][:10], np.sort(ideal)[::-1][:10]
    gains = [(x / np.log2(np.arange(len(x)) + 2)).sum() for x in (ranked, best)]
    return float(gains[0] / gains[1])


def z_scores(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 1e-6)


def measured(one: Measured, weights: np.ndarray) -> dict[str, np.ndarray]:
    """nDCG@10 of each query, by method."""
    rows: dict[str, list[float]] = {"BM25": [], "cosine": [], "mix": [], "ours": []}
    for x, grades, bm25, ideal in zip(one.figures, one.grades, one.lists.bm25, one.lists.ideal, strict=True):
        words = np.array(bm25)
        mixed = MIX[0] * z_scores(x[:, 0]) + MIX[1] * z_scores(words)
        for name, scores in (("BM25", words), ("cosine", x[:, 0]), ("mix", mixed), ("ours", x @ weights)):
            rows[name].append(ndcg(scores, grades, ideal))
    return {name: np.array(values) for name, values in rows.items()}


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    bins = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    parts = [bins == place for place in range(NUM_BINS)]
    return sum(abs(probabilities[part].mean() - labels[part].mean()) * part.mean() for part in parts if part.any())


def pooled(sets: Sequence[Measured], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([x @ weights for one in sets for x in one.figures])
    return scores, np.concatenate([grades > 0 for one in sets for grades in one.grades]).astype(float)


def calibrate(left_out: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, dict[str, float]]:
    """Slope and midpoint by which 0.8 is reached soonest while no left-out kind is off by more than MAX_ERROR.

    Where nothing is within it, as with few queries, those whose worst kind is off least.
    """
    found = []
    for slope, midpoint in itertools.product(SLOPES.tolist(), MIDPOINTS.tolist()):
        errors = {
            kind: calibration_error(1 / (1 + np.exp(-slope * (scores - midpoint))), labels)
            for kind, (scores, labels) in left_out.items()
        }
        found.append((max(MAX_ERROR, *errors.values()), midpoint + np.log(4) / slope, slope, midpoint, errors))
    _, _, slope, midpoint, errors = min(found, key=lambda one: one[:2])
    return slope, midpoint, errors


def interval(differences: Sequence[np.ndarray]) -> list[float]:
    """Mean over sets of a per-query difference, and its 95% interval, from 2,000 resamples of each set's queries."""
    rng = np.random.default_rng(0)
    draws = [np.mean([x[rng.integers(len(x), size=len(x))].mean() for x in differences]) for _ in range(2000)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return [round(float(value), 4) for value in (np.mean([x.mean() for x in differences]), low, high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lists", type=Path)
    parser.add_argument("out", type=Path, help="JSON: scales and bias for export.py, and the figures")
    arguments = parser.parse_args()
    sets = read(arguments.lists)
    rows, left_out = {}, {}
    for kind in sorted({one.lists.kind for one in sets}):
        weights = fit([one for one in sets if one.lists.kind != kind])
        mine = [one for one in sets if one.lists.kind == kind]
        rows |= {(kind, one.is_dev, one.lists.name): measured(one, weights) for one in mine}
        left_out[kind] = pooled(mine, weights)
    for (kind, is_dev, name), found in rows.items():
        print(kind, name + (" (dev)" if is_dev else ""), {m: round(float(v.mean()), 4) for m, v in found.items()})
    gains = {m: interval([one["ours"] - one[m] for one in rows.values()]) for m in ("BM25", "cosine", "mix")}
    slope, midpoint, errors = calibrate(left_out)
    weights = fit([one for one in sets if not one.is_dev]) * slope
    print("ours less", gains, "calibration", slope, midpoint, {kind: round(e, 3) for kind, e in errors.items()})
    result = {"scales": weights.tolist(), "bias": -slope * midpoint, "gains": gains, "calibration_error": errors}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
