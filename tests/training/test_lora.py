"""LoRA: what is written, merged or as an adapter, scores as it did in training, in PEFT too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secondpass import Reranker
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.errors import MissingExtra, TrainingError
from secondpass.models.layers import Linear
from secondpass.training import DevSet, LoraSettings, Trainer, TrainingSettings, dev_queries
from secondpass.training.lora import FourBit, LowRank, check_four_bits
from tests.checkpoints import tiny_bert
from tests.training.toy import toy_data, toy_examples

PAIRS = [("what is the river", "the river is long and cold"), ("where is a king", "snow"), ("snow", "a bridge " * 20)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "targets"),
    [
        *(("bert", "all"), ("bert", "attention"), ("xlm-roberta", "all"), ("electra", "attention")),
        *(("distilbert", "all"), ("mpnet", "all"), ("modernbert", "all"), ("deberta-v2", "all")),
    ],
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


def test_an_adapter_names_its_base_for_any_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bert(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    settings = TrainingSettings(lora=LoraSettings(saves_adapter=True), device="cpu", dtype="float32")
    Trainer("base", toy_data(2), "out", settings=settings).train()
    monkeypatch.chdir("/")
    base = open_checkpoint(tmp_path / "out" / "adapter").base
    assert base is not None and base.folder == tmp_path / "base"


def test_a_base_in_four_bits_needs_its_library_and_a_gpu() -> None:
    with pytest.raises((MissingExtra, TrainingError), match=r"bitsandbytes|CUDA"):
        check_four_bits(torch.device("cpu"))


@pytest.mark.filterwarnings("ignore")
def test_updates_learn_beside_a_base_in_four_bits_and_are_merged_into_it() -> None:
    """The library computes on a CPU too, which training does not ask of it."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(1)
    linear = Linear(128, 192)
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    before = linear.weight.detach().clone()
    update = LowRank(linear, [slice(0, 64), slice(128, 192)], rank=4, scale=2.0, generator=torch.Generator())
    torch.nn.init.normal_(update.b)
    update.base = FourBit(linear, torch.device("cpu"))
    whole = update.base.whole()
    assert linear.weight.numel() == 0 and update.base._packed.numel() == before.numel() / 2
    assert 0.02 < float((whole.float() - before).abs().mean()) < 0.1  # NF4 of a normal draw
    x = torch.randn(5, 128, requires_grad=True)
    found = update(x, None, None)
    merged = update.merged().float()
    assert torch.allclose(found, x @ merged.T + linear.bias, atol=0.5, rtol=0.02)  # merged is rounded to bfloat16
    found.sum().backward()
    assert torch.allclose(x.grad, merged.sum(0).expand(5, -1), atol=1.0, rtol=0.02)
    assert update.a.grad.abs().sum() > 0 and update.b.grad.abs().sum() > 0 and linear.weight.grad is None
