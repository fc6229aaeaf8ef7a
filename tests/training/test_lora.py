"""LoRA: what is written, merged or as an adapter, scores as it did in training, in PEFT too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secondpass import Reranker
from secondpass.training import DevSet, LoraSettings, Trainer, TrainingSettings, dev_queries
from tests.training.toy import toy_data, toy_examples

PAIRS = [("what is the river", "the river is long and cold"), ("where is a king", "snow"), ("snow", "a bridge " * 20)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "targets"),
    [("bert", "all"), ("bert", "attention"), ("xlm-roberta", "all"), ("modernbert", "all"), ("deberta-v2", "all")],
)
@pytest.mark.slow
def test_merged_and_adapter_score_alike(tmp_path: Path, family: str, targets: str) -> None:
    peft = pytest.importorskip("peft", exc_type=ImportError)
    transformers = pytest.importorskip("transformers")
    from tests.random_checkpoints import random_checkpoint

    base = tmp_path / "base"
    tokenizer = random_checkpoint(base, f"{family}-small").tokenizer
    lora = LoraSettings(rank=3, alpha=9, targets=targets, saves_adapter=True)
    settings = TrainingSettings(lora=lora, learning_rate=0.05, warmup=0, batch=4, device="cpu", dtype="float32")
    dev = DevSet(name="toy", queries=dev_queries(toy_examples(2)))
    Trainer(base, toy_data(8), tmp_path / "out", settings=settings, dev=dev).train()
    before, merged, adapter = (
        Reranker(folder, device="cpu", dtype="float32").score_pairs(PAIRS, truncation="longest_first")
        for folder in (base, tmp_path / "out", tmp_path / "out" / "adapter")
    )
    assert merged != pytest.approx(before, abs=1e-2)
    assert adapter == pytest.approx(merged, abs=1e-4)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "out" / "adapter").eval()
    queries, passages = map(list, zip(*PAIRS, strict=True))
    with torch.inference_mode():
        inputs = tokenizer(queries, passages, padding=True, return_tensors="pt")
        expected = model(**inputs).logits[:, 0].tolist()
    assert adapter == pytest.approx(expected, abs=1e-4)
