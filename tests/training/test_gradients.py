"""The packed forward pass can be trained: its gradients are those of transformers, whatever the batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from secondpass.training import LoraSettings, TrainingSettings
from secondpass.training.collators import Group
from secondpass.training.cross_encoding import CrossEncoding
from secondpass.training.learner import Learner
from secondpass.training.lora import add_lora
from secondpass.training.model import WORDS, open_trainable
from secondpass.training.processes import Processes
from tests.checkpoints import tiny_bert
from tests.goldens import SHARED
from tests.training.toy import toy_examples

CPU = torch.device("cpu")
PASSAGES = ("the river is long and cold .", "a bridge", "the old city of stone and water has a road " * 3, "snow")
GROUPS = [
    Group(query="which river is long", passages=PASSAGES),
    Group(query="what is snow", passages=(PASSAGES[3], *PASSAGES[:2])),
    Group(query="who is the king of the old road and where", passages=PASSAGES[1:]),
]


def learner_of(folder: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> Learner:
    trainable = open_trainable(folder, device=CPU, dtype=dtype)
    settings = TrainingSettings(max_length=100, device="cpu", **options)
    return Learner(CrossEncoding(trainable, settings), settings, Processes())


def objective_of(learner: Learner) -> CrossEncoding:
    assert isinstance(learner.objective, CrossEncoding)
    return learner.objective


def gradients(learner: Learner, groups: list[Group]) -> dict[str, torch.Tensor]:
    """Of the groups' mean loss, without moving the weights: a rate of 0, and a norm that cuts nothing."""
    learner.step(groups, rate=0.0)
    return {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["bert", "xlm-roberta", "electra", "distilbert", "mpnet", "modernbert", "deberta-v2"]
)
def test_gradients_equal_those_of_transformers(tmp_path: Path, family: str) -> None:
    pytest.importorskip("transformers")
    from tests.random_checkpoints import random_checkpoint

    reference = random_checkpoint(tmp_path, f"{family}-small")
    learner = learner_of(tmp_path, truncation="longest_first", max_gradient_norm=1e9)
    found = gradients(learner, GROUPS)
    reference.model.train(False).zero_grad()
    losses = []
    for group in GROUPS:
        queries = [group.query] * len(group.passages)
        inputs = reference.tokenizer(
            queries,
            list(group.passages),
            padding=True,
            truncation="longest_first",
            max_length=100,
            return_tensors="pt",
        )
        losses.append(F.cross_entropy(reference.model(**inputs).logits.T, torch.tensor([0])))
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
    expected = {name: p.grad for name, p in reference.model.named_parameters() if p.grad is not None}
    named = learner.objective.trainable.naming.named(found)
    assert set(expected) <= set(named)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert torch.allclose(named[name], gradient, atol=2e-4 * max(scale, 1e-2)), name


def test_packed_losses_equal_those_of_rows_by_themselves(tmp_path: Path) -> None:
    learner = learner_of(tiny_bert(tmp_path))
    objective = objective_of(learner)
    rows = [objective.rows(group) for group in GROUPS]
    packed = objective.losses(GROUPS, rows).tolist()
    for loss, part in zip(packed, rows, strict=True):
        logits = torch.cat([objective.logits([row])[:, 0].detach() for row in part])
        assert loss == pytest.approx(float(F.cross_entropy(logits[None], torch.tensor([0]))), abs=1e-5)


def test_a_gte_gradient_is_the_slope_of_the_loss() -> None:
    folder = SHARED / "golden" / "gte-new-cross-encoder"
    if not folder.is_dir():
        pytest.skip("no reference figures here")
    learner = learner_of(folder, max_gradient_norm=1e9)
    objective = objective_of(learner)
    rows = [objective.rows(group) for group in GROUPS]
    found = gradients(learner, GROUPS)
    assert set(found) == set(learner.parameters)
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    means = []
    for side in (1e-3, -2e-3):  # first forward, then as far back
        with torch.no_grad():
            for name, parameter in learner.parameters.items():
                parameter += side / norm * found[name]
            means.append(float(objective.losses(GROUPS, rows).mean()))
    assert (means[0] - means[1]) / 2e-3 == pytest.approx(float(norm), rel=0.02)


def test_the_token_budget_does_not_change_the_gradient(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path)
    whole = gradients(learner_of(folder, token_budget=10_000), GROUPS)
    cut = gradients(learner_of(folder, token_budget=1), GROUPS)
    assert set(whole) == set(cut)
    assert all(torch.allclose(whole[name], cut[name], atol=1e-6) for name in whole)


def test_recomputed_blocks_have_the_same_gradient(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path)
    plain = gradients(learner_of(folder), GROUPS)
    trainable = open_trainable(folder, device=CPU, has_gradient_checkpointing=True)
    settings = TrainingSettings(max_length=100, device="cpu")
    learner = Learner(CrossEncoding(trainable, settings), settings, Processes())
    again = gradients(learner, GROUPS)
    assert all(torch.allclose(plain[name], again[name], atol=1e-6) for name in plain)


def test_bfloat16_moves_in_the_same_direction(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path)
    exact = gradients(learner_of(folder), GROUPS)
    learner = learner_of(folder, dtype=torch.bfloat16)
    rounded = gradients(learner, GROUPS)
    assert all(parameter.dtype == torch.float32 for parameter in learner.parameters.values())
    left, right = (torch.cat([part[name].flatten() for name in exact]) for part in (exact, rounded))
    assert float(F.cosine_similarity(left, right, dim=0)) > 0.98


def test_frozen_words_stay(tmp_path: Path) -> None:
    trainable = open_trainable(tiny_bert(tmp_path), device=CPU, has_frozen_words=True)
    assert WORDS not in trainable.parameters
    settings = TrainingSettings(device="cpu")
    learner = Learner(CrossEncoding(trainable, settings), settings, Processes())
    assert set(gradients(learner, GROUPS)) == set(trainable.parameters)


def test_low_rank_updates_start_without_effect_and_learn(tmp_path: Path) -> None:
    trainable = open_trainable(tiny_bert(tmp_path), device=CPU)
    settings = TrainingSettings(device="cpu", learning_rate=0.1)
    objective = CrossEncoding(trainable, settings)
    example = toy_examples(1)[0]
    rows = objective.rows(Group(query=example.query, passages=example.positives + example.negatives))
    before = objective.logits(rows).detach()
    add_lora(trainable, LoraSettings(rank=2), seed=1)
    assert torch.equal(objective.logits(rows), before)
    assert {name.split(".")[0] for name in trainable.parameters} == {"backbone", "head"}
    assert all("fused" in name for name in trainable.parameters if name.startswith("backbone"))
    learner = Learner(objective, settings, Processes())
    for _ in range(2):
        learner.step(GROUPS, rate=0.1)
    assert not torch.allclose(objective.logits(rows), before, atol=1e-3)
