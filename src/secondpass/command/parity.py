"""How an exported model compares with the float32 model on torch: scores, order, size, speed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from secondpass.command.pairs import Pair
from secondpass.reranker import Reranker

# Two passages count as ordered by the reference when its logits differ by more than float32 noise.
TIE = 1e-4
NUM_RUNS = 5  # by turns, after one that prepares memory and kernels; the fastest counts


@dataclass(frozen=True, kw_only=True)
class Report:
    """Differences are between logits and between probabilities.

    pairs are those compared, orders the pairs of passages of one query that the reference ranks, order_changes those
    of them that the export ranks the other way round; top_changes counts queries with another best passage.
    speed_ratio is the reference's time by the export's.
    """

    model: str
    engine: str
    dtype: str
    pairs: int
    max_logit_difference: float
    mean_logit_difference: float
    max_probability_difference: float
    mean_probability_difference: float
    orders: int
    order_changes: int
    queries: int
    top_changes: int
    bytes: int
    reference_bytes: int
    seconds: float
    reference_seconds: float
    speed_ratio: float


def compare(reference: Reranker, exported: Reranker, pairs: Sequence[Pair], *, sizes: tuple[int, int]) -> Report:
    """sizes: bytes of the export's and of the reference's weights."""
    expected, got = reference.score_pairs(pairs), exported.score_pairs(pairs)
    runs = [(_seconds(reference, pairs), _seconds(exported, pairs)) for _ in range(NUM_RUNS)]
    reference_seconds, seconds = (min(column) for column in zip(*runs, strict=True))
    info = exported.info()
    return Report(
        model=reference.info().model,
        engine=info.engine,
        dtype=info.dtype,
        pairs=len(pairs),
        **_differences("logit", expected, got),
        **_differences("probability", *(list(map(reference.probability, scores)) for scores in (expected, got))),
        **_orders([query for query, _ in pairs], expected, got),
        bytes=sizes[0],
        reference_bytes=sizes[1],
        seconds=seconds,
        reference_seconds=reference_seconds,
        speed_ratio=reference_seconds / seconds,
    )


def _differences(what: str, expected: Sequence[float], got: Sequence[float]) -> dict[str, Any]:
    values = [abs(a - b) for a, b in zip(got, expected, strict=True)]
    return {f"max_{what}_difference": max(values), f"mean_{what}_difference": fmean(values)}


def _orders(queries: Sequence[str], expected: Sequence[float], got: Sequence[float]) -> dict[str, Any]:
    places: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        places.setdefault(query, []).append(place)
    every = [two for group in places.values() for two in combinations(group, 2)]
    ordered = [(i, j) for i, j in every if abs(expected[i] - expected[j]) > TIE]
    best = [[max(group, key=scores.__getitem__) for group in places.values()] for scores in (expected, got)]
    return {
        "orders": len(ordered),
        "order_changes": sum((expected[i] > expected[j]) != (got[i] > got[j]) for i, j in ordered),
        "queries": len(places),
        "top_changes": sum(a != b for a, b in zip(*best, strict=True)),
    }


def _seconds(reranker: Reranker, pairs: Sequence[Pair]) -> float:
    start = time.perf_counter()
    reranker.score_pairs(pairs)
    return time.perf_counter() - start


def num_bytes(files: Sequence[Path]) -> int:
    """Of weights; those of an OpenVINO graph lie beside it."""
    graphs = {file.with_suffix(".bin") for file in files if file.suffix == ".xml"}
    return sum(file.stat().st_size for file in {*files, *graphs})
