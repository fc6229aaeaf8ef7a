"""A pair's score in any company, by engine and precision, with lengths as they come: the bounds of docs/scores.md."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from secondpass import Reranker
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export

BOUNDS = [
    ("openvino", "auto", 0.02),
    pytest.param("openvino", "float32", 1e-5, marks=pytest.mark.slow),
    pytest.param("openvino", "int8", 0.04, marks=pytest.mark.slow),
    pytest.param("torch", "float32", 1e-5, marks=pytest.mark.slow),
    pytest.param("torch", "bfloat16", 0.02, marks=pytest.mark.slow),
]
WORDS = "how the river of a long bridge keeps water and light in winter while people cross it at night .".split()
QUERIES = ["How long is the river?", "why do people cross a bridge at night in winter"]


@pytest.mark.promise("docs/scores.md", "`tests/test_company.py` holds that with lengths as they come")
@pytest.mark.parametrize(("engine", "dtype", "bound"), BOUNDS)
def test_a_score_stays_within_its_bound_in_any_company(engine: str, dtype: str, bound: float, tmp_path: Path) -> None:
    model = "default"
    if (engine, dtype) == ("openvino", "int8"):  # the embedded graph has float weights
        model = str(export(open_checkpoint(model), tmp_path / "int8", dtype="int8"))
    reranker = Reranker(model, engine=engine, device="cpu", dtype=dtype)
    draw = random.Random(5)
    texts = [" ".join(draw.choices(WORDS, k=draw.choice((1, 4, 12, 40, 120, 300)))) for _ in range(40)]
    pairs = [(query, text) for query in QUERIES for text in texts]
    together = dict(zip(pairs, reranker.score_pairs(pairs), strict=True))
    for size in (1, 3, 10):
        some = draw.sample(pairs, 20)
        for start in range(0, len(some), size):
            part = some[start : start + size]
            assert reranker.score_pairs(part) == pytest.approx([together[pair] for pair in part], abs=bound)
