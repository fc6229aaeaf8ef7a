"""ModernBERT: what its config says, in the words of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

import pytest

from secondpass.errors import UnknownModel
from secondpass.models.modernbert import LayerConfig, ModernBertConfig

CONFIG: dict[str, Any] = {
    "model_type": "modernbert",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "local_attention": 12,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "global_attn_every_n_layers": 3,
}
GLOBAL = LayerConfig(theta=160000.0, window=None)
LOCAL = LayerConfig(theta=10000.0, window=6)


def test_every_third_layer_is_global() -> None:
    assert ModernBertConfig.from_hf(CONFIG).layers == (GLOBAL, LOCAL, LOCAL, GLOBAL)


def test_the_config_of_transformers_5_says_the_same() -> None:
    old = ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers")
    new = {key: value for key, value in CONFIG.items() if key not in old} | {
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
    assert ModernBertConfig.from_hf(new) == ModernBertConfig.from_hf(CONFIG)


def test_a_null_local_theta_means_the_global_one() -> None:
    config = ModernBertConfig.from_hf(CONFIG | {"local_rope_theta": None})
    assert config.layers[1] == LayerConfig(theta=160000.0, window=6)


def test_absent_settings_are_those_of_transformers() -> None:
    bare = {key: value for key, value in CONFIG.items() if "rope" not in key and "global" not in key}
    config = ModernBertConfig.from_hf(bare)
    assert config.layers == (GLOBAL, LOCAL, LOCAL, GLOBAL)
    assert config.pooling == "first"


@pytest.mark.parametrize(
    "change",
    [
        {"classifier_pooling": "max"},
        {"layer_types": ["full_attention", "chunked_attention", "full_attention", "full_attention"]},
        {"layer_types": ["full_attention"]},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"classifier_activation": "mish"},
    ],
)
def test_what_is_not_known_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(UnknownModel, match=r"config\.json: "):
        ModernBertConfig.from_hf(CONFIG | change)
