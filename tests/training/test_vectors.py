"""Embedders and late interaction learn as the reference implementations do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from secondpass import ColBERT, Embedder
from secondpass.errors import UnknownModel
from secondpass.training import Data, Example, Trainer
from secondpass.training.bi_encoding import BiEncoding, TextRows
from secondpass.training.embedding import open_embedding
from secondpass.training.late_interaction import open_late_interaction
from secondpass.training.learner import Step
from secondpass.training.processes import Processes
from secondpass.training.settings import EmbedderSettings, LateInteractionSettings, LoraSettings, TrainingSettings
from secondpass.training.vector_losses import ColbertLoss, EmbedderLoss, TextVectors, VectorBatch, token_scores
from secondpass.types import Row
from tests.checkpoints import tiny_bert
from tests.goldens import SHARED
from tests.training.golden import TrainingGolden, check_gradients, close, golden_runs
from tests.training.spread import gradients, launched

CPU = torch.device("cpu")
HEADS = {"weights": "sparse_linear", "tokens": "colbert_linear"}


def row(ids: list[int], length: int | None = None) -> Row:
    return Row(ids=ids, passage=(len(ids), len(ids)))


def walk(objective: BiEncoding, run: dict[str, Any], arguments: tuple[Any, ...]) -> None:
    """Loss and gradients, then three steps at the small rate: with one pass, and with a pass for each text."""
    for budget in (10**6, 1):
        check_loss(objective, run, arguments, budget)
    rate = run["sgd"][1]["rate"]
    allowed = max(1e-4, 10 * run["float64_differs_by"][f"losses at rate {rate:g}"])
    for expected in run["sgd"][1]["losses"]:
        for parameter in objective.trainable.parameters.values():
            parameter.grad = None
        found = learnt(objective, arguments, 10**6)
        assert abs(found - expected) <= allowed + 1e-5 * abs(expected)
        with torch.no_grad():
            for parameter in objective.trainable.parameters.values():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad


def learnt(objective: BiEncoding, arguments: tuple[Any, ...], budget: int) -> float:
    step = Step(index=0, num_items=len(arguments[2]), token_budget=budget, processes=Processes())
    return float(objective.learn_rows(*arguments, step)[0])


def check_loss(objective: BiEncoding, run: dict[str, Any], arguments: tuple[Any, ...], budget: int) -> None:
    for parameter in objective.trainable.parameters.values():
        parameter.grad = None
    assert close(learnt(objective, arguments, budget), run["loss"])
    check_gradients(named_gradients(objective), run)


def named_gradients(objective: BiEncoding) -> dict[str, Tensor]:
    trainable = objective.trainable
    own = {name: p.grad for name, p in trainable.parameters.items() if p.grad is not None}
    found = trainable.named(own)
    for name, gradient in own.items():
        if name.startswith("head.") and name not in trainable.naming.blocks:
            _, output, kind = name.split(".")
            found[f"{HEADS[output]}.{kind}"] = gradient
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("golden", "run"), golden_runs("m3-unified"))
def test_the_three_parts_of_bge_m3_learn_as_the_reference(golden: TrainingGolden, run: dict[str, Any]) -> None:
    batch, told = golden.batch(run), run["settings"]
    members = told["kd_loss_type"] == "m3_kd_loss"
    losses = {"cross_entropy": 1.0} | ({"soft_cross_entropy": 1.0} if told["teacher_scores"] else {})
    embedder = EmbedderSettings(
        parts=("dense", "sparse", "colbert"),
        temperature=told["temperature"],
        self_distillation_from=0 if told["self_distillation"] else None,
        has_each_member=members,
        has_zero_padding=told["batch"] == "padded",
        has_answers_as_negatives=True,
        pooling="cls",
    )
    objective = open_embedding(
        golden.checkpoint, TrainingSettings(losses=losses, embedder=embedder), CPU, torch.float32
    )
    queries, passages = (
        TextRows(rows=[row(ids) for ids in texts], counts=[[True] * len(ids) for ids in texts])
        for texts in (batch["queries"], batch["passages"])
    )
    sizes = [batch["group_size"]] * len(batch["queries"])
    teacher = batch["teacher_scores"] if told["teacher_scores"] else None
    walk(objective, run, (queries, passages, sizes, teacher))


def test_padding_does_not_change_a_loss_unless_asked() -> None:
    golden = TrainingGolden("m3-unified")
    if not golden.folder.is_dir():
        pytest.skip("no reference figures here")
    run = golden.facts["runs"][0]
    batch = golden.batch(run)
    settings = TrainingSettings(embedder=EmbedderSettings(parts=("dense", "sparse", "colbert"), pooling="cls"))
    objective = open_embedding(golden.checkpoint, settings, CPU, torch.float32)
    found = []
    for extra in ([], [batch["passages"][0][:2] * 40]):
        passages = batch["passages"] + extra
        texts = [
            TextRows(rows=[row(ids) for ids in part], counts=[[True] * len(ids) for ids in part])
            for part in (batch["queries"], passages)
        ]
        own = objective._vectors(texts[0] + texts[1], *outputs(objective, texts[0] + texts[1]))
        count = len(batch["queries"])
        from secondpass.training.bi_encoding import _cut

        scores = objective.loss.together(_cut(own, slice(0, count)), _cut(own, slice(count, None)))
        found.append(scores[:, : len(batch["passages"])].detach())
    assert torch.allclose(found[0], found[1], atol=1e-5)


def outputs(objective: BiEncoding, texts: TextRows) -> tuple[dict[str, Tensor], Tensor]:
    from secondpass.training.bi_encoding import outputs_ids

    return objective._joined(texts, objective._batches(texts, 10**6)), outputs_ids(texts, CPU)


@pytest.mark.slow
@pytest.mark.parametrize(("golden", "run"), golden_runs("colbert-v2", "colbert-pylate"))
def test_late_interaction_learns_as_the_reference(golden: TrainingGolden, run: dict[str, Any]) -> None:
    batch, told = golden.batch(run), run["settings"]
    if golden.name == "colbert-v2":
        losses = {"kl": 1.0} if told["teacher"] else {"cross_entropy": 1.0}
        in_batch = "others" if told["use_ib_negatives"] else "none"
        colbert = LateInteractionSettings(
            in_batch=in_batch, teacher_scale=told["distillation_alpha"], has_answers_as_negatives=True
        )
    else:
        is_contrastive = "contrastive" in run["name"]
        losses = {"cross_entropy": 1.0} if is_contrastive else {"kl": 1.0}
        colbert = LateInteractionSettings(
            in_batch="all" if is_contrastive else "none",
            temperature=2.0 if "temperature 2" in run["name"] else 1.0,
            has_scaled_scores="scaled to 0..1" in run["name"],
            has_zero_padding=True,
            has_answers_as_negatives=True,
        )
    settings = TrainingSettings(losses=losses, colbert=colbert)
    objective = open_late_interaction(golden.checkpoint, settings, CPU, torch.float32)
    queries = TextRows(
        rows=[row(ids) for ids in batch["queries"]],
        counts=[[True] * len(ids) for ids in batch["queries"]],
        visible=list(batch["query_attention"]),
    )
    real = [ids[: len(ids) - list(reversed([i != 0 for i in ids])).index(True)] for ids in batch["passages"]]
    counts = [
        [c == "1" for c in text[: len(ids)]]
        for text, ids in zip(batch["passage_vectors_that_count"], real, strict=True)
    ]
    passages = TextRows(rows=[row(ids) for ids in real], counts=counts)
    teacher = batch["teacher_scores"] if settings.needs_teacher else None
    walk(objective, run, (queries, passages, [batch["nway"]] * len(batch["queries"]), teacher))


@pytest.mark.slow
@pytest.mark.parametrize("num_queries", [3, 1])  # one: the second process has none, as in the last step of an epoch
def test_two_processes_have_the_gradient_of_one(tmp_path: Path, num_queries: int) -> None:
    pytest.importorskip("accelerate")
    bert = "bert-cross-encoder"
    models = {"embedder": "bge-m3", "colbert": "colbertv2", "pretraining": bert, "reranker": bert}
    bases = {kind: str(SHARED / "golden" / name) for kind, name in models.items()}
    if not all(Path(base).is_dir() for base in bases.values()):
        pytest.skip("no reference figures here")
    asked = [f"{kind}={base}" for kind, base in bases.items()]
    launched(2, "tests.training.spread", str(tmp_path), str(num_queries), *asked)
    for kind, base in bases.items():
        one, two = gradients(base, kind, num_queries, Processes()), load_file(tmp_path / kind)
        assert set(one) == set(two)
        most = max(float(gradient.norm()) for gradient in one.values())
        for key in one:
            assert float((one[key] - two[key]).norm()) <= 1e-5 * most, (kind, key)


def dense_batch(sizes: list[int], teacher: list[float] | None = None) -> VectorBatch:
    """Random vectors of queries and of groups of so many passages; of the ids every third is shared."""
    draw = torch.Generator().manual_seed(3)
    sides = []
    for count in (len(sizes), sum(sizes)):
        ids = torch.randint(3, (count, 5), generator=draw)
        outputs = {
            "pooled": torch.randn(count, 6, generator=draw),
            "tokens": torch.randn(count, 5, 6, generator=draw),
            "weights": torch.rand(count, 5, generator=draw),
        }
        sides.append(TextVectors(ids=ids, counts=torch.ones(count, 5, dtype=torch.bool), outputs=outputs))
    return VectorBatch(
        queries=sides[0],
        passages=sides[1],
        group=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        teacher=None if teacher is None else torch.tensor(teacher),
    )


@pytest.mark.parametrize("in_batch", ["all", "none"])
def test_each_member_of_a_group_is_taught_against_the_candidates_that_there_are(in_batch: str) -> None:
    sizes, teacher = [1, 3, 2], [0.3, 2.0, -1.0, 0.5, 4.0, 4.0]
    batch = dense_batch(sizes, teacher)
    settings = EmbedderSettings(temperature=0.4, in_batch=in_batch, has_each_member=True)
    found = EmbedderLoss(settings, {"cross_entropy": 1.0}, temperature=1.0)(batch, 0)
    q, p = (torch.nn.functional.normalize(side.outputs["pooled"], dim=1) for side in (batch.queries, batch.passages))
    expected, start = [], 0
    for index, size in enumerate(sizes):
        own = list(range(start, start + size))
        others = [n for n in range(sum(sizes)) if n not in own] if in_batch == "all" else []
        shares = torch.tensor(teacher[start : start + size]).softmax(0)
        scores = q[index] @ p.T / 0.4
        terms = [shares[k] * (scores[own[k:] + others].logsumexp(0) - scores[own[k]]) for k in range(size)]
        expected.append(float(torch.stack(terms).sum()))
        start += size
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("in_batch", ["all", "others"])
def test_what_is_known_to_answer_a_query_is_no_negative_of_it_in_the_batch(in_batch: str) -> None:
    batch = dense_batch([2, 2, 2])
    ids = torch.tensor([[1, -1], [2, -1], [1, -1], [3, 1], [4, -1], [5, -1]])
    batch = replace(
        batch,
        queries=replace(batch.queries, ids=torch.tensor([[7], [8], [7]])),
        passages=replace(batch.passages, ids=ids),
    )
    settings = LateInteractionSettings(in_batch=in_batch)
    terms = ColbertLoss(settings, {"cross_entropy": 1.0}, temperature=1.0).terms(batch)
    found = terms["cross_entropy" if in_batch == "all" else "in-batch"]
    scores = token_scores(batch.queries, batch.passages, fill=None)
    # Left out are a copy of the positive (2 of query 0, 0 of query 1) and the positive of the same query (4 and 0).
    for index, kept in enumerate([[0, 1, 3, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]):
        seen = [column for column in kept if in_batch == "all" or column != 2 * index + 1]
        expected = scores[index, seen].logsumexp(0) - scores[index, 2 * index]
        assert float(found[index]) == pytest.approx(float(expected), abs=1e-5)
    embedder = EmbedderSettings(temperature=1.0)
    alike = EmbedderLoss(embedder, {"cross_entropy": 1.0}, temperature=1.0)(batch, 0)
    reference = EmbedderLoss(
        replace(embedder, has_answers_as_negatives=True), {"cross_entropy": 1.0}, temperature=1.0
    )
    assert (alike < reference(batch, 0)).tolist() == [True, True, True]


@pytest.mark.parametrize("part", ["dense", "sparse", "colbert"])
def test_one_part_alone_has_the_plain_loss(part: str) -> None:
    batch = dense_batch([2, 1, 2])
    settings = EmbedderSettings(parts=(part,), temperature=0.5)
    loss = EmbedderLoss(settings, {"cross_entropy": 1.0}, temperature=1.0)
    scores = loss.scores(batch)[part]
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 2, 3]), reduction="none")
    assert loss(batch, 0).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_frozen_encoder_leaves_the_heads_gradients_as_they_are() -> None:
    golden = TrainingGolden("m3-unified")
    if not golden.folder.is_dir():
        pytest.skip("no reference figures here")
    run = golden.facts["runs"][1]  # with self-distillation
    batch = golden.batch(run)
    texts = [
        TextRows(rows=[row(ids) for ids in part], counts=[[True] * len(ids) for ids in part])
        for part in (batch["queries"], batch["passages"])
    ]
    found = []
    for has_frozen_encoder, budget in ((False, 10**6), (True, 10**6), (True, 1)):
        embedder = EmbedderSettings(
            parts=("dense", "sparse", "colbert"),
            self_distillation_from=0,
            has_frozen_encoder=has_frozen_encoder,
            pooling="cls",
        )
        objective = open_embedding(golden.checkpoint, TrainingSettings(embedder=embedder), CPU, torch.float32)
        learnt(objective, (*texts, [batch["group_size"]] * len(batch["queries"]), None), budget)
        found.append(named_gradients(objective))
    whole, *frozen = found
    heads = {name for name in whole if "linear" in name}
    assert len(heads) == 4 and heads < set(whole)
    for gradients_ in frozen:
        assert set(gradients_) == heads
        assert all(torch.allclose(gradients_[name], whole[name], rtol=1e-4, atol=1e-5) for name in heads)


def test_a_frozen_encoder_needs_something_else_to_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves nothing of dense vectors to train"):
        EmbedderSettings(has_frozen_encoder=True)
    embedder = EmbedderSettings(parts=("dense", "sparse"), has_frozen_encoder=True, pooling="cls")
    with pytest.raises(ValueError, match="has_frozen_encoder is set, and LoRA"):
        settings = TrainingSettings(embedder=embedder, lora=LoraSettings())
        open_embedding(tiny_bert(tmp_path), settings, CPU, torch.float32)


def test_heads_in_files_of_their_own_get_no_updates(tmp_path: Path) -> None:
    settings = TrainingSettings(
        embedder=EmbedderSettings(parts=("dense", "sparse")), lora=LoraSettings(head="low_rank")
    )
    with pytest.raises(ValueError, match=r"head is 'low_rank'; .* has none that is a tensor of its own"):
        open_embedding(tiny_bert(tmp_path), settings, CPU, torch.float32)


def test_token_vectors_of_bge_m3_may_be_narrower_than_the_states(tmp_path: Path) -> None:
    """FlagEmbedding's colbert_dim: a head of 16 rows scores as one of the full width whose other rows are 0."""
    base = SHARED / "golden" / "bge-m3"
    if not base.is_dir():
        pytest.skip("no reference figures here")
    _, query, passages = examples_of(base)
    head = torch.load(base / "colbert_linear.pt", weights_only=True)
    scores, learnt_scores = [], []
    for name in ("narrow", "filled"):
        shutil.copytree(base, tmp_path / name)
        rows = {key: x[:16].clone() for key, x in head.items()}
        if name == "filled":
            rows = {key: torch.cat([x, torch.zeros_like(head[key][16:])]) for key, x in rows.items()}
        torch.save(rows, tmp_path / name / "colbert_linear.pt")
        scores.append(Embedder(tmp_path / name, dtype="float32").score(query, passages, mode="colbert"))
        settings = TrainingSettings(embedder=EmbedderSettings(parts=("colbert",)))
        learnt_scores.append(open_embedding(tmp_path / name, settings, CPU, torch.float32).score(query, passages))
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert learnt_scores[0] == pytest.approx(learnt_scores[1], abs=1e-5)


def examples_of(base: Path) -> tuple[list[Example], str, list[str]]:
    pairs = json.loads((base / "pairs.json").read_text())
    query, passages = pairs[0]["query"], [pair["passage"][:200] for pair in pairs[:4]]
    other = Example(query=passages[3][:40], positives=(passages[3],), negatives=tuple(passages[:2]))
    return (
        [Example(query=query, positives=(passages[0],), negatives=tuple(passages[1:3])), other] * 3,
        query,
        passages,
    )


def trained(base: Path, out: Path, **options: Any) -> tuple[Trainer, str, list[str]]:
    examples, query, passages = examples_of(base)
    usual = {"learning_rate": 1e-3, "batch": 4, "warmup": 0.0, "device": "cpu", "dtype": "float32", "max_length": 48}
    trainer = Trainer(base, Data(examples=examples), out, settings=TrainingSettings(**{**usual, **options}))
    trainer.train()
    return trainer, query, passages


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_trained_bge_m3_scores_alike_in_embedder(tmp_path: Path, lora: LoraSettings | None) -> None:
    base = SHARED / "golden" / "bge-m3"
    if not base.is_dir():
        pytest.skip("no reference figures here")
    parts = EmbedderSettings(parts=("dense", "sparse", "colbert"), temperature=0.1)
    trainer, query, passages = trained(base, tmp_path / "out", embedder=parts, lora=lora)
    embedder = Embedder(tmp_path / "out", dtype="float32", weights=(1.0, 0.3, 1.0))
    found = [2.3 * score for score in embedder.score(query, passages, mode="colbert+sparse+dense")]
    assert found == pytest.approx(trainer.objective.score(query, passages), abs=1e-4)
    before = Embedder(base, dtype="float32", max_length=48).score(query, passages, mode="dense")
    assert embedder.score(query, passages, mode="dense") != pytest.approx(before, abs=1e-3)


def test_a_plain_encoder_becomes_an_embedder_with_the_vectors_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    base = SHARED / "golden" / "bert-cross-encoder"
    if not base.is_dir():
        pytest.skip("no reference figures here")
    settings = EmbedderSettings(dimensions=(8, 16), pooling="mean")
    trainer, query, passages = trained(base, tmp_path / "out", embedder=settings)
    embedder = Embedder(tmp_path / "out", dtype="float32")
    assert embedder.score(query, passages) == pytest.approx(trainer.objective.score(query, passages), abs=1e-4)
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(passages, padding=True, truncation=True, max_length=48, return_tensors="pt")
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert torch.allclose(torch.from_numpy(embedder.encode(passages)), pooled, atol=1e-4)


@pytest.mark.parametrize("name", ["colbertv2", "bert-embedder-cls"])
def test_trained_late_interaction_scores_alike_in_colbert(tmp_path: Path, name: str) -> None:
    base = SHARED / "golden" / name
    if not base.is_dir():
        pytest.skip("no reference figures here")
    examples, query, passages = examples_of(SHARED / "golden" / "colbertv2")
    colbert = LateInteractionSettings(token_width=12, query_length=20)
    settings = TrainingSettings(
        colbert=colbert, learning_rate=1e-3, batch=4, device="cpu", dtype="float32", max_length=40, epochs=2
    )
    trainer = Trainer(base, Data(examples=examples), tmp_path / "out", settings=settings)
    trainer.train()
    found = ColBERT(tmp_path / "out", dtype="float32").score(query, passages)
    assert found == pytest.approx(trainer.objective.score(query, passages), abs=1e-3)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert "linear.weight" in saved and all(name.startswith(("bert.", "linear.")) for name in saved)


def test_a_length_that_late_interaction_cannot_read_is_refused(tmp_path: Path) -> None:
    settings = TrainingSettings(colbert=LateInteractionSettings(), max_length=129)
    with pytest.raises(ValueError, match=r"doc_maxlen is 129; .* reads 4 to 128 tokens"):
        open_late_interaction(tiny_bert(tmp_path), settings, CPU, torch.float32)


@pytest.mark.parametrize("asked", ["max", "mean+cls"])
def test_a_pooling_that_cannot_be_saved_is_refused(tmp_path: Path, asked: str) -> None:
    folder = tiny_bert(tmp_path / "model")
    (folder / "1_Pooling").mkdir()
    config = json.dumps({"pooling_mode": asked.split("+")})
    (folder / "1_Pooling" / "config.json").write_text(config, "utf-8")
    modules = [{"type": f"x.{kind}", "path": path} for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"))]
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    with pytest.raises(UnknownModel, match="training has one of cls, mean, last alone"):
        open_embedding(folder, TrainingSettings(embedder=EmbedderSettings()), CPU, torch.float32)
