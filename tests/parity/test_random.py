"""Encoders against transformers on fresh random checkpoints that it wrote: two sizes of each family."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from secondpass import Reranker
from secondpass.models.attention.deberta import log_buckets

FAMILIES = ("bert", "xlm-roberta", "modernbert", "deberta-v2")
LONG = "the old city of stone and water has a bridge over the river where the ship is . " * 12
PAIRS = [
    ("which river is long", "the river is long"),
    ("which river is long", ""),
    ("what is snow", LONG),
    (LONG, "snow is cold"),
    (LONG, LONG),
    ("who is king", "the king of the old road and the queen , both warm"),
]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """tests/random_checkpoints.py: it imports transformers, which takes seconds, so not at collection."""
    pytest.importorskip("transformers")
    import tests.random_checkpoints

    return tests.random_checkpoints


def largest_difference(checkpoint: Any) -> float:
    """Between our scores of PAIRS and those of transformers, over two maximal lengths."""
    reranker = Reranker(checkpoint.folder, engine="torch", dtype="float32", device="cpu")
    differences = []
    for max_length in (32, 150):
        expected = checkpoint.score(PAIRS, max_length)
        scores = reranker.score_pairs(PAIRS, max_length=max_length, truncation="longest_first")
        assert max(expected) - min(expected) > 0.01
        differences += [abs(x - y) for x, y in zip(scores, expected, strict=True)]
    return max(differences)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_a_sharded_file_equal_transformers(tmp_path: Path, family: str, reference: ModuleType) -> None:
    checkpoint = reference.random_checkpoint(tmp_path, f"{family}-small", max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert largest_difference(checkpoint) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_a_bfloat16_file_equal_transformers(tmp_path: Path, family: str, reference: ModuleType) -> None:
    checkpoint = reference.random_checkpoint(tmp_path, f"{family}-larger", dtype=torch.bfloat16)
    assert largest_difference(checkpoint) < 1e-4


@pytest.mark.parametrize("num_buckets", [8, 32, 256])
def test_log_buckets_equal_transformers(num_buckets: int, reference: ModuleType) -> None:
    distances = torch.arange(-700, 701)
    expected = reference.bucket_positions(distances, num_buckets, 512)
    assert torch.equal(log_buckets(distances, num_buckets, 512), expected)
