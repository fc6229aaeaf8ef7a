"""Encoders against transformers on fresh random checkpoints that it wrote: two sizes of each family."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from secondpass import Embedder, Reranker
from secondpass.models.attention.deberta import log_buckets
from tests.checkpoints import SPECIAL, WORDS

VOCABULARY = list(dict.fromkeys((*SPECIAL, *WORDS.split())))
FAMILIES = (
    *("bert", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet"),
    *("modernbert", "deberta-v2"),
)
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


# What the checkpoint of jina-reranker-v2 calls the parts of an XLM-RoBERTa
JINA_NAMES = {
    "embeddings.LayerNorm": "emb_ln",
    "encoder.layer.": "encoder.layers.",
    "attention.output.dense": "mixer.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "norm2",
}


def test_jina_reranker_v2_is_read_by_its_names(tmp_path: Path, reference: ModuleType) -> None:
    checkpoint = reference.random_checkpoint(tmp_path, "xlm-roberta-small")
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        for kind in ("weight", "bias"):
            own = f"roberta.encoder.layer.{layer}"
            parts = [tensors.pop(f"{own}.attention.self.{part}.{kind}") for part in ("query", "key", "value")]
            tensors[f"{own}.mixer.Wqkv.{kind}"] = torch.cat(parts)
    for theirs, jinas in JINA_NAMES.items():
        tensors = {name.replace(theirs, jinas): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text("utf-8"))
    del config["model_type"]  # it names its class alone
    file.write_text(json.dumps(config | {"use_flash_attn": True, "emb_pooler": None}), "utf-8")
    assert largest_difference(checkpoint) < 1e-4


@pytest.mark.parametrize("family", ["bert", "electra", "distilbert", "mpnet"])
def test_vectors_of_a_plain_encoder_equal_transformers(tmp_path: Path, family: str, reference: ModuleType) -> None:
    checkpoint = reference.random_checkpoint(tmp_path, f"{family}-larger")
    (tmp_path / "model.safetensors").unlink()
    encoder = checkpoint.model.base_model
    encoder.save_pretrained(tmp_path)
    texts = ["which river is long", "snow", LONG]
    inputs = checkpoint.tokenizer(texts, padding=True, truncation=True, max_length=150, return_tensors="pt")
    with torch.inference_mode():
        states = encoder(**inputs).last_hidden_state
    weights = inputs["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=1)
    embedder = Embedder(tmp_path, pooling="mean", is_normalized=True, dtype="float32", device="cpu", max_length=150)
    assert embedder.encode(texts) == pytest.approx(expected.numpy(), abs=1e-5)


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
