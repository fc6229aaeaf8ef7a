"""GTE: rotary scaling, and the layout that transformers 5 writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from secondpass import Reranker
from secondpass.errors import UnknownModel
from secondpass.models.gte import GteConfig
from tests.goldens import Golden

GOLDEN = Golden("gte-new-cross-encoder")
CONFIG: dict[str, Any] = {
    "model_type": "new",
    "vocab_size": 20,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "rope_theta": 20000,
    "rope_scaling": {"type": "ntk", "factor": 8.0},
}
# The remote code's names -> those of transformers 5
NAMES = {
    r"^new\.": "gte.",
    r"encoder\.layer\.": "layers.",
    r"\.attention\.": ".self_attn.",
    r"\.attn_ln\.": ".post_attention_layernorm.",
    r"\.mlp_ln\.": ".post_mlp_layernorm.",
}


def test_ntk_scales_theta_and_the_frequencies() -> None:
    config = GteConfig.from_hf(CONFIG)
    assert config.theta == 160000
    assert config.slowdown == pytest.approx(8 ** (2 / 12))


def test_without_scaling_theta_is_as_named() -> None:
    config = GteConfig.from_hf(CONFIG | {"rope_scaling": None})
    assert (config.theta, config.slowdown) == (20000, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "ntk", "factor": 8.0, "mixed_b": 0.6}},
        {"position_embedding_type": "absolute"},
        {"layer_norm_type": "rms_norm"},
        {"logn_attention_scale": True},
    ],
)
def test_what_is_not_computed_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(UnknownModel, match=r"config\.json: .*(rope scaling|is supported)"):
        GteConfig.from_hf(CONFIG | change)


@pytest.mark.skipif(not GOLDEN.folder.is_dir(), reason="no reference figures here")
def test_the_layout_of_transformers_5_scores_the_same(tmp_path: Path) -> None:
    shutil.copy(GOLDEN.folder / "tokenizer.json", tmp_path)
    config = json.loads((GOLDEN.folder / "config.json").read_text())
    del config["rope_scaling"], config["rope_theta"]
    rope = {"rope_type": "linear", "factor": 8 ** (2 / 12), "rope_theta": 160000.0}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gte", "rope_parameters": rope}))
    weights = load_file(GOLDEN.folder / "model.safetensors")
    save_file(dict(part for name in weights for part in renamed(name, weights[name])), tmp_path / "model.safetensors")
    reranker = Reranker(tmp_path, engine="torch", dtype="float32", device="cpu", special_tokens="parse")
    scores = reranker.score_pairs(GOLDEN.pairs, max_length=128)
    run = next(run for run in GOLDEN.runs if run["options"]["max_length"] == 128)
    assert scores == pytest.approx(run["single"], abs=1e-4)


def renamed(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    for pattern, target in NAMES.items():
        name = re.sub(pattern, target, name)
    for joined, parts in {"qkv_proj": "q_proj k_proj v_proj", "up_gate_proj": "up_proj gate_proj"}.items():
        if f".{joined}." in name:
            targets = [name.replace(joined, part) for part in parts.split()]
            return [(t, x.clone()) for t, x in zip(targets, tensor.chunk(len(targets)), strict=True)]
    return [(name, tensor)]
