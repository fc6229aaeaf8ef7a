"""Recipes read from config.json, and what is said where none can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from secondpass import Reranker
from secondpass.errors import CheckpointError, UnknownModel
from secondpass.models import build_backbone, named
from secondpass.text.catalogue import KNOWN
from secondpass.text.families import FAMILIES, recipe_for
from tests.checkpoints import tiny_bert


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "modernbert", "new", "gte", "deberta-v2"])
@pytest.mark.parametrize("labels", [{"num_labels": 1}, {"id2label": {"0": "LABEL_0"}}])
def test_a_classifier_of_one_label_is_a_reranker(model_type: str, labels: dict[str, Any]) -> None:
    assert recipe_for({"model_type": model_type} | labels).head == "classifier"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"id2label": {"0": "contradiction", "1": "entailment", "2": "neutral"}}, "3 labels"),
        ({"num_labels": 2}, "2 labels"),
        ({}, '"num_labels": 1'),
        ({"num_labels": 1, "architectures": ["BertModel"]}, "BertModel, which has no head.*Embedder.*ColBERT"),
        ({"num_labels": 1, "model_type": "mamba"}, "no recipe for model_type 'mamba'; there are bert"),
        ({"model_type": "nomic_bert"}, "'nomic_bert'.*Open an embedding model with secondpass.Embedder"),
    ],
)
def test_what_is_no_reranker_is_refused_with_what_to_do(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UnknownModel, match=said):
        recipe_for({"model_type": "bert"} | config)


def silent(folder: Path, num_labels: int, *keys: str) -> Path:
    """A checkpoint whose config.json does not say these."""
    config = json.loads((tiny_bert(folder, num_labels=num_labels) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in keys}))
    return folder


def test_weights_tell_how_many_labels_there_are_where_the_config_is_silent(tmp_path: Path) -> None:
    plain = Reranker(tiny_bert(tmp_path / "plain"), dtype="float32", device="cpu").score("river", ["the long river"])
    told = silent(tmp_path / "one", 1, "id2label", "num_labels")
    assert Reranker(told, dtype="float32", device="cpu").score("river", ["the long river"]) == plain
    with pytest.raises(UnknownModel, match="2 labels"):
        Reranker(silent(tmp_path / "two", 2, "id2label", "num_labels"), device="cpu")


def test_a_class_tells_the_family_where_the_config_is_silent(tmp_path: Path) -> None:
    plain = Reranker(tiny_bert(tmp_path / "plain"), dtype="float32", device="cpu").score("river", ["the long river"])
    told = silent(tmp_path / "silent", 1, "model_type")
    assert Reranker(told, dtype="float32", device="cpu").score("river", ["the long river"]) == plain


def test_settings_of_sentence_transformers_leave_the_score_a_logit(tmp_path: Path) -> None:
    plain = Reranker(tiny_bert(tmp_path), dtype="float32", device="cpu").score("river", ["the long river"])
    config = json.loads((tmp_path / "config.json").read_text())
    for extra in (
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0.0"}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | extra))
        assert Reranker(tmp_path, dtype="float32", device="cpu").score("river", ["the long river"]) == plain


def test_a_named_length_is_the_default_and_not_the_limit(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    reranker = Reranker(tmp_path, dtype="float32", device="cpu")
    assert reranker.info().max_length == 24
    reranker.score("river", ["the long river"], max_length=100)


def test_every_known_reranker_is_of_a_known_family() -> None:
    families = {
        recipe.family for row in FAMILIES.values() for recipe in (row.recipe, row.layer_recipe) if recipe is not None
    }
    assert {known.family for known in KNOWN if known.loads_as == "Reranker"} <= families
    assert families >= {"gte", "modernbert", "deberta-v2"}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_names_a_backbone_and_its_settings(model_type: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json has no '.*', which model_type '{model_type}' needs"):
        build_backbone({"model_type": model_type})
    assert issubclass(named(FAMILIES[model_type].backbone), torch.nn.Module)


def test_a_decoder_without_heads_by_layer_needs_none() -> None:
    with pytest.raises(UnknownModel, match="no recipe for model_type 'minicpm'; there are bert"):
        recipe_for({"model_type": "minicpm"})
    with pytest.raises(
        UnknownModel, match="no recipe for model_type 'llama' with start_layer; there are cost_wise_gemma"
    ):
        recipe_for({"model_type": "llama", "start_layer": 8})
