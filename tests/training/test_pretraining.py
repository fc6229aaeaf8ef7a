"""Pre-training learns as the reference does on its own batch; masks hide whole words, as many as they should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file
from torch import Tensor

from secondpass.text.tokenizer import Tokenizer
from secondpass.training import Trainer, TrainingSettings
from secondpass.training.auto_encoder import decoder_tensors
from secondpass.training.data import Texts
from secondpass.training.learner import Step
from secondpass.training.masks import HiddenText, Masker
from secondpass.training.model import open_trainable
from secondpass.training.pretraining import Pretraining, open_pretraining
from secondpass.training.processes import Processes
from secondpass.training.settings import PretrainingSettings
from tests.checkpoints import tiny_bert
from tests.goldens import SHARED
from tests.training.golden import TrainingGolden, check_gradients, close, golden_runs
from tests.training.toy import toy_examples

CPU = torch.device("cpu")


def items_of(batch: dict[str, Any]) -> list[HiddenText]:
    found = []
    for shown, mask, labels, ids, visible, asked in zip(
        batch["encoder_input_ids"],
        batch["encoder_attention_mask"],
        batch["encoder_labels"],
        batch["decoder_input_ids"],
        batch["decoder_attention_mask"],
        batch["decoder_labels"],
        strict=True,
    ):
        length = sum(mask)
        found.append(
            HiddenText(
                ids=ids[:length],
                shown=shown[:length],
                hidden=np.array(labels[:length]) != -100,
                visible=np.array([[c == "1" for c in row[:length]] for row in visible[:length]]),
                asked=np.array(asked[:length]) != -100,
                counted=np.array(asked[:length]) != -100,
            )
        )
    return found


def opened(golden: TrainingGolden, settings: PretrainingSettings, folder: Path) -> Pretraining:
    """The golden's checkpoint with a tokenizer, which it has not."""
    shutil.copytree(golden.checkpoint, folder, dirs_exist_ok=True)
    for file in (golden.folder / golden.facts["tokenizer"]).resolve().glob("*token*"):
        shutil.copy(file, folder)
    return open_pretraining(folder, TrainingSettings(pretraining=settings), CPU, torch.float32)


def named_gradients(objective: Pretraining) -> dict[str, Tensor]:
    own = {name: p.grad for name, p in objective.trainable.parameters.items() if p.grad is not None}
    found = objective.trainable.named(own)
    decoder = objective.trainable.model.decoder
    assert decoder is not None
    with torch.no_grad():
        values = {name: p.detach().clone() for name, p in decoder.named_parameters()}
        for name, parameter in decoder.named_parameters():
            parameter.copy_(own[f"decoder.{name}"])
        found |= {f"c_head.{name}": x.clone() for name, x in decoder_tensors(decoder).items()}
        for name, parameter in decoder.named_parameters():
            parameter.copy_(values[name])
    return found


def learnt(objective: Pretraining, items: list[HiddenText], budget: int = 10**6) -> float:
    for parameter in objective.trainable.parameters.values():
        parameter.grad = None
    step = Step(index=0, num_items=len(items), token_budget=budget, processes=Processes())
    return float(objective.learn(items, step)[0])


@pytest.mark.slow
@pytest.mark.parametrize(("golden", "run"), golden_runs("retromae-bert", "retromae-xlmr"))
def test_it_learns_as_the_reference(tmp_path: Path, golden: TrainingGolden, run: dict[str, Any]) -> None:
    settings = PretrainingSettings(
        has_bare_queries=run["settings"]["class"].startswith("pretrain.modeling.RetroMAE"),
        bag_weight=run["settings"].get("bow_loss_weight", 0.0),
    )
    objective = opened(golden, settings, tmp_path / "model")
    items = items_of(golden.batch(run))
    for budget in (10**6, 1):
        assert close(learnt(objective, items, budget), run["loss"])
        check_gradients(named_gradients(objective), run)
    walk = run["sgd"][1]
    for expected in walk["losses"]:
        found = learnt(objective, items)
        assert abs(found - expected) <= 1e-4 + 1e-5 * expected
        with torch.no_grad():
            for parameter in objective.trainable.parameters.values():
                if parameter.grad is not None:
                    parameter -= walk["rate"] * parameter.grad


def masker(folder: Path, **options: Any) -> Masker:
    settings = PretrainingSettings(**options)
    return Masker(Tokenizer.from_folder(tiny_bert(folder)), settings, max_length=64)


def test_whole_words_are_hidden_and_the_sentence_vector_is_seen(tmp_path: Path) -> None:
    made = masker(tmp_path)
    text = "water rivers ships houses lights bridging " * 4
    ids, words, _ = Tokenizer.from_folder(tmp_path).encode_with_words(text)
    assert len(set(words)) < len(ids)  # some words have pieces
    shares = []
    for seed in range(20):
        found = made.hidden(text, np.random.default_rng(seed))
        assert found.visible[1:, 0].all() and found.visible[:-1, -1].all()
        assert not found.visible.diagonal().any()
        assert not found.hidden[[0, -1]].any()
        for word in set(words):
            pieces = [index + 1 for index, number in enumerate(words) if number == word]
            assert len({bool(found.hidden[piece]) for piece in pieces}) == 1
            for row in range(len(found.ids)):
                assert len({bool(found.visible[row, piece]) for piece in pieces if piece != row}) <= 1
        shares.append(found.hidden.sum() / len(found.ids))
    assert 0.2 < np.mean(shares) <= 0.31
    assert made.hidden(text, np.random.default_rng(3)).shown == made.hidden(text, np.random.default_rng(3)).shown


def test_a_sentence_without_spaces_is_hidden_in_parts(tmp_path: Path) -> None:
    words = [["▁", -3.0], ["今", -3.0], ["天", -3.0], ["水", -3.0], ["很", -3.0], ["冷", -3.0], ["▁river", -3.0]]
    vocabulary = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<mask>", 0.0), *map(tuple, words)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=2))
    pre = tokenizers.pre_tokenizers
    made.pre_tokenizer = pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()])  # as XLM-R
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    masker = Masker(Tokenizer.from_folder(tmp_path), PretrainingSettings(), max_length=64)
    drawn = [masker.hidden("今天水很冷" * 4 + " river", np.random.default_rng(seed)) for seed in range(10)]
    counted = drawn[0].counted
    assert np.mean([found.hidden[counted].mean() for found in drawn]) == pytest.approx(0.3, abs=0.05)
    assert np.mean([found.visible[:, counted].mean() for found in drawn]) == pytest.approx(0.45, abs=0.05)
    assert not any(found.hidden[1] != found.hidden[2] for found in drawn)  # "▁" is a part of what follows it


def test_the_reference_hides_the_start_of_other_tokenizers(tmp_path: Path) -> None:
    folder = SHARED / "golden" / "bge-m3"
    if not folder.is_dir():
        pytest.skip("no reference figures here")
    tokenizer = Tokenizer.from_folder(folder)
    shares = []
    for is_reference in (False, True):
        made = Masker(tokenizer, PretrainingSettings(has_reference_masks=is_reference), max_length=64)
        found = made.hidden("a long river and a bridge of stone in the old city", np.random.default_rng(0))
        shares.append(float(found.visible[1:, 0].mean()))
    assert shares[0] == 1.0
    assert shares[1] < 0.8


def test_a_length_without_room_for_a_token_is_refused(tmp_path: Path) -> None:
    settings = TrainingSettings(pretraining=PretrainingSettings(), max_length=2, device="cpu")
    with pytest.raises(ValueError, match=r"max_length is 2; .* reads 3 to"):
        open_pretraining(tiny_bert(tmp_path), settings, CPU, torch.float32)


def test_the_reference_hides_no_more_than_512_tokens_at_once(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny_bert(tmp_path))
    hidden = []
    for is_reference in (False, True):
        settings = PretrainingSettings(encoder_share=0.9, num_patterns=2, has_reference_masks=is_reference)
        made = Masker(tokenizer, settings, max_length=1000)
        hidden.append(int(made.hidden("river stone " * 600, np.random.default_rng(0)).hidden.sum()))
    assert hidden == [900, 512]


@pytest.mark.parametrize("decoder_weight", [1.0, 0.0])
@pytest.mark.slow
def test_a_run_leaves_an_encoder_that_can_be_fine_tuned(tmp_path: Path, decoder_weight: float) -> None:
    transformers = pytest.importorskip("transformers")
    base = tiny_bert(tmp_path / "base")
    texts = Texts(texts=[text for one in toy_examples(12) for text in (*one.positives, *one.negatives)])
    settings = TrainingSettings(
        pretraining=PretrainingSettings(decoder_weight=decoder_weight),
        batch=16,
        epochs=6,
        learning_rate=3e-3,
        device="cpu",
        dtype="float32",
        log_every=1,
    )
    result = Trainer(base, texts, tmp_path / "out", settings=settings).train()
    assert result.is_finished
    lines = [json.loads(line) for line in (tmp_path / "out" / "training" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert (tmp_path / "out" / "decoder.safetensors").exists() == bool(decoder_weight)
    model, told = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    again = open_trainable(tmp_path / "out", device=CPU)
    name = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(model.state_dict()[name], load_file(tmp_path / "out" / "model.safetensors")[name])
    assert torch.equal(again.model.backbone.layers[1].down.weight.detach(), model.state_dict()[name])


@pytest.mark.parametrize("family", ["xlm-roberta", "camembert", "modernbert"])
def test_other_families_can_be_pre_trained(tmp_path: Path, family: str) -> None:
    golden = SHARED / "golden" / f"{family.replace('camembert', 'xlm-roberta')}-cross-encoder"
    if not golden.is_dir():
        pytest.skip("no reference figures here")
    folder = tmp_path / "base"
    shutil.copytree(golden, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": family}), "utf-8")
    texts = Texts(texts=["a long river and a bridge of stone in the old city"] * 4)
    settings = TrainingSettings(
        pretraining=PretrainingSettings(), batch=2, max_length=32, device="cpu", dtype="float32", learning_rate=1e-3
    )
    Trainer(folder, texts, tmp_path / "out", settings=settings).train()
    assert open_trainable(tmp_path / "out", device=CPU).fresh
