"""Weights of the head's figures, chosen with languages and kinds of source left out, and the probability's scale.

The conditional logit of the relevant passages leans on the cosine, which a few lists of headings need and questions
do not. So directions are drawn and judged by nDCG@10 itself.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from sets import Lists, read_lists

from secondpass.models.late_interaction import NUM_FIGURES

DEPTH, TOP = 50, 10
NUM_DRAWN, NUM_BEST = 400, 10  # directions that are drawn, and those whose mean is taken
MIX = (0.6, 0.4)  # of the z-scores of cosine and BM25 within a query's candidates
DISCOUNTS = 1 / np.log2(np.arange(TOP) + 2)
NUM_BINS = 15
USED = (0, 1, 3, 4)  # cosine, MaxSim, shared pieces and pairs: MaxSim weighted by rarity was no better than plain


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One set: figures (Q, DEPTH, F), which candidates there are and their grades (Q, DEPTH)."""

    lists: Lists
    is_dev: bool
    figures: np.ndarray
    is_there: np.ndarray
    grades: np.ndarray
    bm25: np.ndarray

    @property
    def language(self) -> str:
        return self.lists.kind.split()[0]

    @property
    def source(self) -> str:
        return self.lists.kind.split()[1]

    @cached_property
    def ideal(self) -> np.ndarray:
        best = [np.sort(grades)[::-1][:TOP] for grades in self.lists.ideal]
        return np.array([(grades * DISCOUNTS[: len(grades)]).sum() for grades in best])

    def ndcg(self, scores: np.ndarray) -> np.ndarray:
        """nDCG@10 with linear gains of each query, of scores (Q, DEPTH)."""
        order = np.argsort(-np.where(self.is_there, scores, -np.inf), 1, kind="stable")[:, :TOP]
        return (np.take_along_axis(self.grades, order, 1) * DISCOUNTS).sum(1) / self.ideal

    def z_scores(self, values: np.ndarray) -> np.ndarray:
        values = np.where(self.is_there, values, np.nan)
        return (values - np.nanmean(values, 1, keepdims=True)) / (np.nanstd(values, 1, keepdims=True) + 1e-6)


def read(folder: Path) -> list[Measured]:
    found = []
    for split in ("train", "dev"):
        for lists in read_lists(folder / split):
            values = np.load(folder / split / f"{lists.name.replace('/', '.')}.npy")[:, USED]
            counts = [len(row) for row in lists.candidates]
            is_there = np.arange(DEPTH) < np.array(counts)[:, None]
            arrays = {"figures": values, "grades": np.concatenate(lists.grades), "bm25": np.concatenate(lists.bm25)}
            padded = {name: np.zeros((*is_there.shape, *values.shape[1:])) for name, values in arrays.items()}
            for name, flat in arrays.items():
                padded[name][is_there] = flat
            found.append(Measured(lists=lists, is_dev=split == "dev", is_there=is_there, **padded))
    return found


def spread(sets: Sequence[Measured]) -> np.ndarray:
    """(F,) the standard deviation of each figure within a query's candidates."""
    means = [one.figures.sum(1, keepdims=True) / one.is_there.sum(1)[:, None, None] for one in sets]
    parts = [((one.figures - mean)[one.is_there] ** 2).mean(0) for one, mean in zip(sets, means, strict=True)]
    return np.sqrt(np.mean(parts, 0))


def directions(num_figures: int) -> np.ndarray:
    """(NUM_DRAWN, F) weights that are not negative and sum to 1, the same on every machine."""
    return np.random.default_rng(0).dirichlet(np.full(num_figures, 0.8), NUM_DRAWN)


def gains(sets: Sequence[Measured], drawn: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """nDCG@10 (sets, directions)."""
    return np.array([[one.ndcg(one.figures @ (weights / unit)).mean() for weights in drawn] for one in sets])


LEFT_OUT: dict[str, Callable[[Measured, Measured], bool]] = {
    "language": lambda one, other: one.language == other.language,
    "kind": lambda one, other: one.source == other.source,
    "either": lambda one, other: one.language == other.language or one.source == other.source,
}


def best(drawn: np.ndarray, found: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """The mean of the directions that are the best for the sets in `rows`."""
    return drawn[np.argsort(-found[list(rows)].mean(0), kind="stable")[:NUM_BEST]].mean(0)


def interval(differences: Sequence[np.ndarray]) -> list[float]:
    """Mean over sets of a per-query difference, and its 95% interval, from 2,000 resamples of each set's queries."""
    rng = np.random.default_rng(0)
    draws = [np.mean([x[rng.integers(len(x), size=len(x))].mean() for x in differences]) for _ in range(2000)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return [round(float(value), 4) for value in (np.mean([x.mean() for x in differences]), low, high)]


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    bins = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    parts = [bins == index for index in range(NUM_BINS)]
    return sum(abs(probabilities[part].mean() - labels[part].mean()) * part.mean() for part in parts if part.any())


def pooled(sets: Sequence[Measured], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([(one.figures @ weights)[one.is_there] for one in sets])
    return scores, np.concatenate([one.grades[one.is_there] > 0 for one in sets]).astype(float)


def logistic(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and midpoint of the probability, by Newton's method, at the rate of relevant candidates that there is."""
    x = np.stack([(scores - scores.mean()) / scores.std(), np.ones_like(scores)], 1)
    beta = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ beta))
        beta += np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2), x.T @ (labels - p))
    slope = float(beta[0] / scores.std())
    return slope, float(scores.mean() - beta[1] / slope)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lists", type=Path)
    parser.add_argument("out", type=Path, help="JSON: scales and bias for export.py, and the figures")
    arguments = parser.parse_args()
    sets = read(arguments.lists)
    train = [index for index, one in enumerate(sets) if not one.is_dev]
    unit = spread([sets[index] for index in train])
    drawn = directions(len(unit))
    found = gains(sets, drawn, unit)
    table: dict[str, dict[str, np.ndarray]] = {}
    for one in sets:
        mixed = MIX[0] * one.z_scores(one.figures[..., 0]) + MIX[1] * one.z_scores(one.bm25)
        row = {"BM25": one.ndcg(one.bm25), "e5": one.ndcg(one.figures[..., 0]), "mix": one.ndcg(mixed)}
        for rule, is_alike in LEFT_OUT.items():
            rows = [index for index in train if not is_alike(sets[index], one)]
            row[rule] = one.ndcg(one.figures @ (best(drawn, found, rows) / unit))
        row["ships"] = one.ndcg(one.figures @ (best(drawn, found, train) / unit))
        name = one.lists.name + ("*" if one.is_dev else "")
        table[name] = row
        print(f"{name:24}", {method: round(float(values.mean()), 4) for method, values in row.items()}, flush=True)
    for rule in (*LEFT_OUT, "ships"):
        told = {m: interval([row[rule] - row[m] for row in table.values()]) for m in ("BM25", "e5", "mix")}
        print(rule, "mean", round(float(np.mean([row[rule].mean() for row in table.values()])), 4), told)
    weights = best(drawn, found, train) / unit
    slope, midpoint = logistic(*pooled([sets[index] for index in train], weights))
    errors = {}
    for one in sets:
        scores, labels = pooled([one], weights)
        error = calibration_error(1 / (1 + np.exp(-slope * (scores - midpoint))), labels)
        errors[one.lists.name] = round(float(error), 4)
    print("calibration", slope, midpoint, errors)
    means = {name: {m: round(float(v.mean()), 4) for m, v in row.items()} for name, row in table.items()}
    scales = np.zeros(NUM_FIGURES + 2)
    scales[list(USED)] = weights * slope
    result = {"scales": scales.tolist(), "bias": -slope * midpoint, "ndcg": means, "errors": errors}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
