"""BERT and RoBERTa: what their configs say, and how positions are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secondpass.errors import CheckpointError, UnknownModel
from secondpass.models import build_backbone
from secondpass.models.bert import Bert, BertConfig
from secondpass.packed import Keep, pack
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
    assert BertConfig.from_hf(CONFIG | {"model_type": "xlm-roberta", "pad_token_id": None}).max_length == 62
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
    assert bert.token_type is not None
    torch.nn.init.normal_(bert.token_type.weight)
    batch = pack([Row(ids=[0, 5, 2], passage=(1, 2))])
    assert torch.equal(bert._types(batch, bert.token_type), bert.token_type.weight)


def jina_layer(x: Tensor, named: dict[str, Tensor], activation: Callable[[Tensor], Tensor]) -> Tensor:
    """A layer of JinaBERT by its definition, x (L, 24), three heads; Günther et al. 2023, Press et al. 2022."""
    q, k, v = (
        F.linear(x, *part).view(-1, 3, 8).transpose(0, 1)
        for part in zip(*(named[f"qkv.{kind}"].chunk(3) for kind in ("weight", "bias")), strict=True)
    )
    place = torch.arange(len(x))
    slopes = torch.tensor([2.0**-4, 2.0**-8, 2.0**-2])  # of two heads, and the first of four
    logits = q @ k.mT / 8**0.5 - slopes[:, None, None] * (place[:, None] - place[None]).abs()
    mixed = (logits.softmax(-1) @ v).transpose(0, 1).flatten(1)
    out = F.linear(mixed, named["out.weight"], named["out.bias"])
    x = F.layer_norm(x + out, (24,), named["attention_norm.weight"], named["attention_norm.bias"], 1e-12)
    gated, plain = F.linear(x, named["up.weight"]).chunk(2, dim=-1)
    down = F.linear(activation(gated) * plain, named["down.weight"], named["down.bias"])
    return F.layer_norm(x + down, (24,), named["mlp_norm.weight"], named["mlp_norm.bias"], 1e-12)


@pytest.mark.parametrize(("kind", "activation"), [("geglu", F.gelu), ("reglu", F.relu)])
@pytest.mark.parametrize("keep", ["all", "first"])
def test_jina_bert_is_its_definition(kind: str, activation: Callable[[Tensor], Tensor], keep: Keep) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2}
    jina = {"model_type": "bert", "position_embedding_type": "alibi", "feed_forward_type": kind}
    bert = Bert(BertConfig.from_hf(CONFIG | sizes | jina))
    for parameter in bert.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    rows = [Row(ids=[0, 7, 2, 5, 9, 2], passage=(3, 5)), Row(ids=[0, 4, 2, 2], passage=(3, 3))]
    expected = []
    for row in rows:
        assert bert.token_type is not None
        words = bert.word.weight[list(row.ids)]
        types = bert.token_type.weight[[int(place >= row.passage[0]) for place in range(len(row.ids))]]
        x = F.layer_norm(words + types, (24,), bert.norm.weight, bert.norm.bias, 1e-12)
        for layer in bert.layers:
            x = jina_layer(x, dict(layer.named_parameters()), activation)
        expected.append(x if keep == "all" else x[:1])
    assert torch.allclose(bert(pack(rows), keep), torch.cat(expected), atol=1e-5)


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
