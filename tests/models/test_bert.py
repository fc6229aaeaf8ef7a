"""BERT and RoBERTa: what their configs say, and how positions are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secondpass.errors import CheckpointError, UnknownModel
from secondpass.models import build_backbone
from secondpass.models.bert import Bert, BertConfig
from secondpass.packed import pack
from secondpass.types import Row

CONFIG: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}


def test_a_roberta_table_has_two_rows_that_no_token_uses() -> None:
    assert BertConfig.from_hf(CONFIG | {"model_type": "xlm-roberta"}).max_length == 62
    assert BertConfig.from_hf(CONFIG | {"model_type": "bert"}).max_length == 64


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("bert", [0, 1, 2, 3, 4, 0, 1]),
        # a literal <pad> keeps position 1 and does not advance the count, in its own row only
        ("xlm-roberta", [2, 1, 3, 1, 4, 2, 3]),
    ],
)
def test_positions_start_anew_in_each_row(model_type: str, expected: list[int]) -> None:
    bert = Bert(BertConfig.from_hf(CONFIG | {"model_type": model_type}))
    batch = pack([Row(ids=[0, 1, 5, 1, 2], passage=(2, 4)), Row(ids=[0, 2], passage=(1, 1))])
    assert bert.positions(batch).tolist() == expected


def test_a_single_token_type_is_added_to_every_token() -> None:
    bert = Bert(BertConfig.from_hf(CONFIG | {"model_type": "xlm-roberta", "type_vocab_size": 1}))
    torch.nn.init.normal_(bert.token_type.weight)
    batch = pack([Row(ids=[0, 5, 2], passage=(1, 2))])
    assert torch.equal(bert._types(batch), bert.token_type.weight)


def test_a_config_that_lacks_a_key_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json has no 'hidden_size', which model_type 'bert' needs"):
        build_backbone({"model_type": "bert", "vocab_size": 9, "max_position_embeddings": 8})


@pytest.mark.parametrize(("key", "value"), [("position_embedding_type", "relative_key"), ("is_decoder", True)])
def test_what_is_not_computed_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UnknownModel, match=f"{key} is {value!r}; for BERT only"):
        build_backbone(CONFIG | {"model_type": "bert", key: value})


def test_an_unknown_model_type_lists_those_there_are() -> None:
    with pytest.raises(UnknownModel, match="no backbone for model_type 'mamba'; there are bert"):
        build_backbone({"model_type": "mamba"})
