"""Encoders against transformers on fresh random checkpoints that it wrote: two sizes of each family."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from secondpass import Reranker
from secondpass.models.attention.deberta import log_buckets
from tests.checkpoints import SPECIAL, WORDS

VOCABULARY = list(dict.fromkeys((*SPECIAL, *WORDS.split())))
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


def test_deberta_without_terms_of_distance_equals_transformers(tmp_path: Path, reference: ModuleType) -> None:
    assert largest_difference(reference.random_checkpoint(tmp_path, "deberta-v2-content")) < 1e-4


ADDED = {"content": "snow", "special": False, "normalized": False}
NO_TYPES = {"model_input_names": ["input_ids", "attention_mask"]}


@pytest.mark.parametrize(
    "settings",
    [
        {"truncation_side": "left"},
        NO_TYPES,
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
        {"tokenizer_class": "BertTokenizer", "strip_accents": False},
        {"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False},
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False},
        {"added_tokens_decoder": {str(VOCABULARY.index("snow")): ADDED}},
        {"additional_special_tokens": ["snow"]},
    ],
)
def test_tokenizer_config_is_read_as_transformers_reads_it(
    tmp_path: Path, settings: dict[str, Any], reference: ModuleType
) -> None:
    import transformers

    checkpoint = reference.random_checkpoint(tmp_path, "bert-small")
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), "utf-8")
    checkpoint = replace(checkpoint, tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path))
    pairs = [*PAIRS, ("Which River", "Río River 天snow snow"), ("what is coldsnow", LONG * 12 + "the queen")]
    reranker = Reranker(tmp_path, engine="torch", dtype="float32", device="cpu", special_tokens="parse")
    for max_length in (31, 150):
        expected = checkpoint.score(pairs, max_length)
        assert reranker.score_pairs(pairs, max_length=max_length) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("num_buckets", [8, 32, 256])
def test_log_buckets_equal_transformers(num_buckets: int, reference: ModuleType) -> None:
    distances = torch.arange(-700, 701)
    expected = reference.bucket_positions(distances, num_buckets, 512)
    assert torch.equal(log_buckets(distances, num_buckets, 512), expected)
