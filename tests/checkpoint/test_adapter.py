"""LoRA adapters against PEFT: loaded onto their base, merged, saved, and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from secondpass import Reranker
from secondpass.checkpoint.adapter import save_merged
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.engine.torch import TorchEngine
from secondpass.errors import CheckpointError
from secondpass.types import Row, Run
from tests.checkpoints import tiny_bert
from tests.models.test_decoder import random_model, save, some_rows, yes_logits

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "rslora": {"r": 4, "lora_alpha": 16, "use_rslora": True, "target_modules": ["o_proj", "gate_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"up_proj": 32},
    },
    "whole": {"r": 2, "lora_alpha": 4, "target_modules": ["k_proj"], "modules_to_save": ["lm_head"]},
    "embedding": {"r": 2, "lora_alpha": 4, "target_modules": ["embed_tokens", "k_proj"]},
}


def peft_adapter(folder: Path, name: str) -> tuple[Path, Any]:
    """An adapter of random weights beside its base, and PEFT's own model of both."""
    peft = pytest.importorskip("peft", exc_type=ImportError)
    base = random_model("llama")
    base.config._name_or_path = base.name_or_path = str(save(base, folder / "base"))
    torch.manual_seed(1)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **OPTIONS[name]))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                weight.normal_(0, 0.3)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter", model.eval()


def scores(folder: Path, rows: Sequence[Row]) -> Any:
    return TorchEngine(open_checkpoint(folder), device="cpu", dtype="float32").run(rows, Run())[:, 0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIONS)
def test_scores_equal_peft_merged_or_not(name: str, tmp_path: Path) -> None:
    adapter, model = peft_adapter(tmp_path, name)
    rows = some_rows()
    expected = yes_logits(model, rows)
    assert scores(adapter, rows) == pytest.approx(expected, abs=2e-4)
    merged = save_merged(open_checkpoint(adapter), tmp_path / "merged")
    shutil.rmtree(tmp_path / "base")
    assert scores(merged, rows) == pytest.approx(expected, abs=2e-4)
    assert not (merged / "adapter_config.json").exists()
    with pytest.raises(FileExistsError, match="is not empty"):
        save_merged(replace(open_checkpoint(merged), adapter=adapter), merged)


def write_adapter(folder: Path, base: str | None, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": base} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
FACTORS = {KEY.format("A"): torch.ones(2, 32), KEY.format("B"): torch.ones(32, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        (FACTORS, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
        (FACTORS, {"use_dora": True}, "use_dora cannot be merged"),
        (FACTORS, {"alora_invocation_tokens": [5]}, "alora_invocation_tokens cannot be merged"),
        (FACTORS, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        (FACTORS, {"init_lora_weights": "olora"}, "changes the base's own weights"),
        ({KEY.format("A"): torch.ones(2, 32)}, {}, "only A of its two factors"),
        (FACTORS | {KEY.format("B"): torch.ones(30, 2)}, {}, r"as \(30, 32\), it is \(32, 32\)"),
        ({k.replace("layers.0", "layers.9"): v for k, v in FACTORS.items()}, {}, "which the base does not have"),
        (FACTORS, {"base_model_name_or_path": None}, "names no base_model_name_or_path"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    tensors: dict[str, torch.Tensor], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = save(random_model("llama"), tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", str(base), tensors, **settings)
    with pytest.raises(CheckpointError, match=message):
        Reranker(adapter, device="cpu")


WORDS = {
    "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 40),
    "base_model.model.model.embed_tokens.lora_embedding_B": torch.ones(32, 2),
}


def test_words_that_are_read_as_the_head_too_are_not_changed(tmp_path: Path) -> None:
    """PEFT leaves the head of a tied model as it was: the scores would be others, without a word."""
    tied, untied = (save(random_model(name), tmp_path / name) for name in ("llama-tied", "llama"))
    adapter = write_adapter(tmp_path / "a", str(tied), WORDS)
    with pytest.raises(CheckpointError, match=r"changes model\.embed_tokens\.weight, which the base reads as its lm"):
        Reranker(adapter, device="cpu")
    with pytest.raises(CheckpointError, match="untie"):
        save_merged(open_checkpoint(adapter), tmp_path / "merged")
    Reranker(write_adapter(tmp_path / "b", str(untied), WORDS), device="cpu")
    whole = {"base_model.model.model.embed_tokens.weight": torch.ones(40, 32)}
    Reranker(write_adapter(tmp_path / "c", str(tied), whole, ensure_weight_tying=True), device="cpu")


def test_a_merged_model_keeps_the_precision_of_its_base(tmp_path: Path) -> None:
    base = save(random_model("llama").to(torch.bfloat16), tmp_path / "base", max_shard_size="20KB")
    adapter = write_adapter(tmp_path / "adapter", str(base), FACTORS)
    merged = load_file(save_merged(open_checkpoint(adapter), tmp_path / "merged") / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    assert len(merged) == len(random_model("llama").state_dict())


def test_a_whole_model_is_no_adapter(tmp_path: Path) -> None:
    base = save(random_model("llama"), tmp_path)
    with pytest.raises(ValueError, match="has no adapter"):
        save_merged(open_checkpoint(base), tmp_path / "merged")


def test_an_encoder_takes_an_adapter_too(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    key = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_{}.weight"
    factors = {key.format("A"): torch.ones(2, 16), key.format("B"): torch.ones(16, 2)}
    adapter = write_adapter(tmp_path / "adapter", str(base), factors)
    merged = save_merged(open_checkpoint(adapter), tmp_path / "merged")
    figures = [
        Reranker(folder, dtype="float32", device="cpu").score("the river", ["a long river", "a bridge"])
        for folder in (base, adapter, merged)
    ]
    assert figures[1] == pytest.approx(figures[2], abs=1e-6)
    assert figures[1] != pytest.approx(figures[0], abs=1e-3)


def test_an_adapter_that_names_itself_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", str(tmp_path / "adapter"), FACTORS)
    with pytest.raises(CheckpointError, match="is an adapter too"):
        open_checkpoint(adapter)


def test_a_base_that_is_not_there_is_said_to_be_the_adapters(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", "/models/of-another/machine", FACTORS)
    with pytest.raises(CheckpointError, match=r"adapter: adapter_config\.json: base_model_name_or_path: '/models/of"):
        open_checkpoint(adapter)


def test_adapters_in_a_ring_are_refused(tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "a", str(tmp_path / "b"), FACTORS)
    write_adapter(tmp_path / "b", str(first), FACTORS)
    with pytest.raises(CheckpointError, match="b is an adapter too; merge that one first"):
        open_checkpoint(first)


@pytest.mark.parametrize(("revision", "message"), [(5, "revision is 5"), ("v1", "has no revisions")])
def test_a_revision_that_the_base_cannot_have(tmp_path: Path, revision: object, message: str) -> None:
    adapter = write_adapter(tmp_path / "adapter", str(tiny_bert(tmp_path / "base")), FACTORS, revision=revision)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(adapter)


def test_the_identity_of_an_adapter_has_its_bases_in_it(tmp_path: Path) -> None:
    opened = open_checkpoint(write_adapter(tmp_path / "adapter", str(tiny_bert(tmp_path / "base")), FACTORS))
    assert opened.base is not None
    pinned = [replace(opened, revision="a" * 40, base=replace(opened.base, revision=it * 40)) for it in "bc"]
    assert pinned[0].identity() != pinned[1].identity()
    before = opened.identity()
    save_file({"other": torch.ones(3)}, tmp_path / "base" / "model.safetensors")
    assert opened.identity() != before


def test_an_adapter_is_read_to_its_own_length(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    key = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_{}.weight"
    factors = {key.format("A"): torch.ones(2, 16), key.format("B"): torch.ones(16, 2)}
    adapter = write_adapter(tmp_path / "adapter", str(base), factors)
    assert Reranker(adapter, device="cpu").info().max_length == 128
    (adapter / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
    assert Reranker(adapter, device="cpu").info().max_length == 48
    merged = save_merged(open_checkpoint(adapter), tmp_path / "merged")
    assert Reranker(merged, device="cpu").info().max_length == 48
