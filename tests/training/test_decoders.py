"""Decoder rerankers learn as the reference implementations do: losses, gradients and small walks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from secondpass import EarlyExit, Reranker
from secondpass.checkpoint.adapter import save_merged
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.engine.torch import TorchEngine
from secondpass.errors import TrainingError
from secondpass.training import Data, Example, Trainer
from secondpass.training.collators import Group
from secondpass.training.cross_encoding import CrossEncoding, open_cross_encoding
from secondpass.training.lora import adapter_tensors, add_lora, updates
from secondpass.training.model import Trainable, open_trainable
from secondpass.training.reporting import read_log
from secondpass.training.settings import CompressionSettings, LayerSettings, LoraSettings, TrainingSettings
from secondpass.types import Row, Run
from tests.goldens import golden_folder
from tests.training.golden import TrainingGolden, check_gradients, check_walk, close, golden_runs, groups_of
from tests.training.sharded import STEPS, sharded_trainer
from tests.training.spread import launched

CPU = torch.device("cpu")
TAUGHT = {"cross_entropy": 1.0, "soft_cross_entropy": 1.0}
ALONE = {"cross_entropy": 1.0}
# The reference's name of a method -> how layers teach one another there
METHODS = {
    "distill_fix_layer_teacher": (TAUGHT, LayerSettings(inner_teacher="eighth")),
    "distill_final_layer": (TAUGHT, LayerSettings(inner_teacher="last", teaches_all=False)),
    "distill_last_layer": (TAUGHT, LayerSettings(inner_teacher="above", teaches_all=False)),
    "normal": (ALONE, LayerSettings(inner_teacher="none")),
}


def fill(trainable: Trainable[Any], adapter: Path) -> None:
    """Puts an adapter's figures into the updates and the head."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    found, _, _ = adapter_tensors(trainable)
    assert set(found) == set(tensors)
    with torch.no_grad():
        for name, update in updates(trainable.model):
            theirs = {rows.start: module.removesuffix(".weight") for module, rows in trainable.naming.parts(name)}
            for rows, a, b in update.blocks():
                a.copy_(tensors[f"base_model.model.{theirs[rows.start]}.lora_A.weight"])
                b.copy_(tensors[f"base_model.model.{theirs[rows.start]}.lora_B.weight"])
        for name in [name for name in trainable.parameters if name == "head.out.weight"]:
            for theirs_, rows in trainable.naming.parts(name):
                trainable.model.get_parameter(name)[rows] = tensors[f"base_model.model.{theirs_}"]


def named_gradients(trainable: Trainable[Any]) -> dict[str, Tensor]:
    own = {name: p.grad for name, p in trainable.parameters.items() if p.grad is not None}
    found = trainable.naming.named({name: g for name, g in own.items() if name in trainable.naming.blocks})
    for name, update in updates(trainable.model):
        theirs = {rows.start: module.removesuffix(".weight") for module, rows in trainable.naming.parts(name)}
        assert update.a.grad is not None and update.b.grad is not None
        start = 0
        for index, rows in enumerate(update.parts):
            stop = start + rows.stop - rows.start
            module = theirs[rows.start]
            found[f"{module}.lora_A.weight"] = update.a.grad[index * update.rank : (index + 1) * update.rank]
            found[f"{module}.lora_B.weight"] = update.b.grad[start:stop]
            start = stop
    return found


def check(golden: TrainingGolden, run: dict[str, Any], objective: CrossEncoding, *, has_teacher: bool) -> None:
    groups, rows = groups_of(golden.batch(run), has_teacher=has_teacher)

    def loss() -> Tensor:
        return objective.losses(groups, rows).mean()

    value = loss()
    assert close(float(value.detach()), run["loss"])
    value.backward()  # type: ignore[no-untyped-call]
    check_gradients(named_gradients(objective.trainable), run)
    check_walk(run, objective.trainable.parameters, loss)


def opened(golden: TrainingGolden, run: dict[str, Any], settings: TrainingSettings) -> CrossEncoding:
    adapter = run["settings"].get("adapter")
    trainable = open_trainable(golden.checkpoint, device=CPU, is_low_rank=adapter is not None)
    if adapter is not None:
        names = json.loads((golden.folder / adapter / "adapter_config.json").read_text())
        lora = LoraSettings(
            rank=names["r"],
            alpha=names["lora_alpha"],
            targets=",".join(names["target_modules"]),
            head="low_rank" if "linear_head" in names["target_modules"] else "whole",
        )
        add_lora(trainable, lora, seed=1)
        fill(trainable, golden.folder / adapter)
    return CrossEncoding(trainable, settings)


@pytest.mark.slow
@pytest.mark.parametrize(("golden", "run"), golden_runs("decoder-gemma"))
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_a_word_s_logit_learns_as_the_reference(
    golden: TrainingGolden, run: dict[str, Any], is_recomputed: bool
) -> None:
    has_teacher = run["settings"]["teacher"]
    objective = opened(golden, run, TrainingSettings(losses=TAUGHT if has_teacher else ALONE))
    if is_recomputed:
        from secondpass.training.model import recompute_blocks

        recompute_blocks(objective.trainable.model.backbone)
    check(golden, run, objective, has_teacher=has_teacher)


@pytest.mark.slow
@pytest.mark.parametrize(("golden", "run"), golden_runs("layerwise-minicpm"))
def test_heads_at_layers_learn_as_the_reference(golden: TrainingGolden, run: dict[str, Any]) -> None:
    has_teacher = "teacher" in run["name"]
    layers = LayerSettings(trains_last_alone="last layer alone" in run["name"])
    settings = TrainingSettings(losses=TAUGHT if has_teacher else ALONE, layers=layers)
    check(golden, run, opened(golden, run, settings), has_teacher=has_teacher)


@pytest.mark.parametrize(("golden", "run"), golden_runs("compress-gemma2"))
@pytest.mark.slow
def test_compressed_layers_learn_as_the_reference(
    tmp_path: Path, golden: TrainingGolden, run: dict[str, Any]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(golden.checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    if run["settings"]["attention"] == "eager":
        (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "eager"}))
    losses, layers = METHODS[run["settings"]["train_method"]]
    compression = CompressionSettings(
        layers=tuple(run["settings"]["compress_layers"]), ratios=(run["settings"]["compress_ratio"],), is_fixed=True
    )
    settings = TrainingSettings(losses=losses, layers=layers, compression=compression)
    objective = CrossEncoding(open_trainable(folder, device=CPU), settings)
    check(golden, run, objective, has_teacher=True)


@pytest.mark.slow
@pytest.mark.parametrize(("golden", "run"), golden_runs("compress-mistral"))
def test_means_weighted_by_attention_learn_as_the_reference(
    tmp_path: Path, golden: TrainingGolden, run: dict[str, Any]
) -> None:
    if run["settings"].get("alone") is False:
        pytest.skip(
            "rows padded together: the reference takes the weights of a shorter row from padding, so that its loss "
            "depends on the batch: 52.25, 51.45, 19.07; by themselves, as tested here, 52.44, 51.65, 19.16"
        )
    folder = tmp_path / "model"
    shutil.copytree(golden.checkpoint, folder)
    for file in golden_folder("gemma2-lightweight").glob("*token*"):
        shutil.copy(file, folder)  # it has none, and none of its tokens is read
    losses, layers = METHODS[run["settings"]["train_method"]]
    compression = CompressionSettings(
        layers=tuple(run["settings"]["compress_layers"]), ratios=(run["settings"]["compress_ratio"],), is_fixed=True
    )
    settings = TrainingSettings(losses=losses, layers=layers, compression=compression)
    objective = CrossEncoding(open_trainable(folder, device=CPU), settings)
    check(golden, run, objective, has_teacher=True)


def trained(base: Path, out: Path, **options: Any) -> tuple[Trainer, list[str], str]:
    """A short run on a golden checkpoint, with a query and passages of its own words."""
    pairs = json.loads((base / "pairs.json").read_text())
    query, passages = pairs[0]["query"], [pair["passage"][:200] for pair in pairs[:4]]
    examples = [Example(query=query, positives=(passages[0],), negatives=tuple(passages[1:]))] * 4
    usual = {"learning_rate": 0.01, "batch": 2, "warmup": 0.0, "device": "cpu", "dtype": "float32", "max_length": 64}
    trainer = Trainer(base, Data(examples=examples), out, settings=TrainingSettings(**{**usual, **options}))
    trainer.train()
    return trainer, passages, query


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_trained_decoder_loads_in_peft_and_merged_in_transformers(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", exc_type=ImportError)
    transformers = pytest.importorskip("transformers")
    base = tmp_path / "base"
    shutil.copytree(golden_folder("gemma-llm-reranker"), base)
    config = json.loads((base / "config.json").read_text())
    tanh = "gelu_pytorch_tanh"  # newer transformers read the two names otherwise than those that the model is of
    (base / "config.json").write_text(json.dumps(config | {"hidden_act": tanh, "hidden_activation": tanh}))
    lora = LoraSettings(rank=4, targets="q_proj,v_proj,down_proj", saves_adapter=True)
    trainer, passages, query = trained(base, tmp_path / "out", lora=lora)
    objective = trainer.objective
    expected = objective.score(query, passages)
    before = Reranker(base, dtype="float32", max_length=64).score(query, passages)
    assert max(abs(a - b) for a, b in zip(expected, before, strict=True)) > 0.05
    for folder in (tmp_path / "out", tmp_path / "out" / "adapter"):
        found = Reranker(folder, dtype="float32", max_length=64).score(query, passages)
        assert found == pytest.approx(expected, abs=1e-4)
    rows = objective.rows(Group(query=query, passages=tuple(passages)))
    yes = objective.trainable.answers[1][0]
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "out" / "adapter").eval()
    for model in (whole, adapted):
        with torch.inference_mode():
            logits = [float(model(torch.tensor([row.ids])).logits[0, -1, yes]) for row in rows]
        assert logits == pytest.approx(expected, abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2-llm-reranker", "qwen3-llm-reranker", "gemma-llm-reranker"])
def test_a_decoder_trained_whole_is_saved_with_its_head(tmp_path: Path, name: str) -> None:
    options = {"has_gradient_checkpointing": True, "max_length": 160}  # longer than what stands around the texts
    trainer, passages, query = trained(golden_folder(name), tmp_path / "out", **options)
    expected = trainer.objective.score(query, passages)
    found = Reranker(tmp_path / "out", dtype="float32", max_length=160).score(query, passages)
    assert found == pytest.approx(expected, abs=1e-4)
    before = load_file(golden_folder(name) / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert set(after) == {key for key in before if key != "lm_head.weight" or key in after}
    assert {key: x.shape for key, x in after.items()} == {key: before[key].shape for key in after}


@pytest.mark.slow
@pytest.mark.parametrize("has_lora", [False, True])
def test_trained_layers_score_alike_at_every_cutoff(tmp_path: Path, has_lora: bool) -> None:
    lora = LoraSettings(rank=2, saves_adapter=True) if has_lora else None
    trainer, passages, query = trained(golden_folder("minicpm-layerwise"), tmp_path / "out", lora=lora)
    objective = trainer.objective
    assert isinstance(objective, CrossEncoding)
    rows = objective.rows(Group(query=query, passages=tuple(passages)))
    with torch.inference_mode():
        expected = objective.logits(rows, Run(cutoff_layers=(2, 4, 6))).T.tolist()
    whole = Reranker(tmp_path / "out", dtype="float32", max_length=64)
    assert set(json.loads((tmp_path / "out" / "config.json").read_text())["exit_bounds"]) == set("2345")
    first = [hit.index for hit in whole.rank(query, passages, top_n=2)]
    assert [hit.index for hit in whole.rank(query, passages, top_n=2, early_exit=EarlyExit())] == first
    with pytest.raises(ValueError, match="for its last layer"):
        Reranker(tmp_path / "out", cutoff_layer=4).rank(query, passages, top_n=2, early_exit=EarlyExit())
    for folder in (tmp_path / "out", *([tmp_path / "out" / "adapter"] if has_lora else [])):
        found = Reranker(folder, dtype="float32", max_length=64).score_layers(query, passages, (2, 4, 6))
        assert [found[layer] for layer in (2, 4, 6)] == [pytest.approx(scores, abs=1e-4) for scores in expected]


def test_a_raw_language_model_becomes_layer_wise_with_one_setting(tmp_path: Path) -> None:
    base = tmp_path / "raw"
    shutil.copytree(golden_folder("minicpm-layerwise"), base)
    config = json.loads((base / "config.json").read_text())
    del config["start_layer"]
    (base / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    save_file({k: x for k, x in tensors.items() if "lm_head" not in k}, base / "model.safetensors", {"format": "pt"})
    trainable = open_trainable(base, device=CPU, start_layer=3)
    yes = trainable.tokenizer.encode("Yes")[-1]
    words = tensors["model.embed_tokens.weight"]
    assert torch.equal(trainable.model.head.out.weight.detach(), words[[yes]].repeat(4, 1))
    trainer, passages, query = trained(base, tmp_path / "out", layers=LayerSettings(start_layer=3))
    found = Reranker(tmp_path / "out", dtype="float32", max_length=64).score(query, passages)
    assert found == pytest.approx(trainer.objective.score(query, passages), abs=1e-4)


def test_prompts_of_the_data_are_read_by_decoders(tmp_path: Path) -> None:
    objective = open_cross_encoding(
        golden_folder("gemma-llm-reranker"), TrainingSettings(max_length=64), CPU, torch.float32
    )
    plain, prompted = (
        objective.rows(Group(query="a", passages=("b",), prompt=prompt))[0] for prompt in (None, "Say Yes.")
    )
    assert plain.ids[: plain.passage[1]] == prompted.ids[: prompted.passage[1]]
    assert plain.ids[plain.passage[1] :] != prompted.ids[prompted.passage[1] :]


def test_names_of_no_projection_are_refused(tmp_path: Path) -> None:
    trainable = open_trainable(golden_folder("gemma-llm-reranker"), device=CPU, is_low_rank=True)
    with pytest.raises(ValueError, match=r"'query'; there are attention, all, and of .*q_proj"):
        add_lora(trainable, LoraSettings(targets="query"), seed=1)
    with pytest.raises(ValueError, match="'q_proj,k_prj'; there are"):  # not trained with the one name that is right
        add_lora(trainable, LoraSettings(targets="q_proj,k_prj"), seed=1)


def test_a_head_that_is_rows_of_the_output_matrix_gets_no_updates() -> None:
    trainable = open_trainable(golden_folder("qwen3-llm-reranker"), device=CPU, is_low_rank=True)
    with pytest.raises(
        ValueError, match=r"head is 'low_rank'; .*qwen3-llm-reranker has none that is a tensor of its"
    ):
        add_lora(trainable, LoraSettings(head="low_rank"), seed=1)


def test_heads_are_not_asked_for_where_they_begin_elsewhere() -> None:
    base = golden_folder("minicpm-layerwise")
    with pytest.raises(ValueError, match=r"start_layer is 99; .* has heads from layer 2 on"):
        open_trainable(base, device=CPU, start_layer=99)


def test_a_step_draws_the_same_compression_whoever_asks() -> None:
    compression = CompressionSettings(layers=(2, 4, 6), ratios=(1, 2, 4))
    drawn = [compression.drawn(1, step) for step in range(64)]
    assert drawn == [compression.drawn(1, step) for step in range(64)]
    assert {ratio for ratio, _ in drawn} == {1, 2, 4}
    assert 0.3 < sum(len(layers) for _, layers in drawn) / (3 * 64) < 0.7


def test_a_compressed_model_scores_alike_at_every_cutoff_and_ratio(tmp_path: Path) -> None:
    compression = CompressionSettings(layers=(2, 4), ratios=(1, 2))
    base = golden_folder("gemma2-lightweight")
    trainer, passages, query = trained(base, tmp_path / "out", compression=compression, learning_rate=1e-4)
    objective = trainer.objective
    assert isinstance(objective, CrossEncoding)
    rows = objective.rows(Group(query=query, passages=tuple(passages)))
    reranker = Reranker(tmp_path / "out", dtype="float32", max_length=64)
    for layer, ratio in ((6, 1), (4, 1), (6, 2)):
        run = Run(cutoff_layers=(2, 3, 4, 5, 6), compress_ratio=ratio, compress_layers=(3,))
        with torch.inference_mode():
            expected = objective.logits(rows, run)[:, layer - 2].tolist()
        found = reranker.score(query, passages, cutoff_layer=layer, compress_ratio=ratio, compress_layers=(3,))
        assert found == pytest.approx(expected, abs=1e-3)
    assert reranker.score(query, passages) == pytest.approx(objective.score(query, passages), abs=1e-3)


def test_an_adapter_of_heads_at_layers_scores_as_the_merged_model_and_has_no_bounds_of_its_base(
    tmp_path: Path,
) -> None:
    base = tmp_path / "base"
    shutil.copytree(golden_folder("gemma2-lightweight"), base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"exit_bounds": {"2": 0.0}}))
    lora = LoraSettings(rank=2, head="low_rank", saves_adapter=True)
    trainer, passages, query = trained(base, tmp_path / "out", lora=lora, learning_rate=1e-3)
    expected = trainer.objective.score(query, passages)
    adapter = tmp_path / "out" / "adapter"
    for folder in (adapter, save_merged(open_checkpoint(adapter), tmp_path / "merged")):
        assert "exit_bounds" not in open_checkpoint(folder).config
        found = Reranker(folder, dtype="float32", max_length=64).score(query, passages)
        assert found == pytest.approx(expected, abs=1e-3)


def test_weights_are_the_same_where_rows_share_their_beginning() -> None:
    golden = TrainingGolden("compress-mistral")
    if not golden.folder.is_dir():
        pytest.skip("no reference figures here")
    engine = TorchEngine(open_checkpoint(golden.checkpoint), device="cpu", dtype="float32")
    prefix = list(range(20, 50))
    rows = [
        Row(ids=[*prefix, *range(60 + n, 90 + 3 * n), 7, 8], passage=(len(prefix), len(prefix) + 30 + 2 * n))
        for n in range(4)
    ]
    run = Run(cutoff_layers=(3, 10), compress_ratio=2, compress_layers=(3, 5))
    shared = engine.run(rows, run)
    engine.shares = False
    assert np.allclose(shared, engine.run(rows, run), atol=1e-4)


@pytest.mark.slow
def test_shares_of_the_weights_learn_as_the_whole_and_can_go_on_as_such(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    base = golden_folder("gemma-llm-reranker")
    sharded_trainer(base, tmp_path / "whole", has_shards=False).train()
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    started = load_file(base / "model.safetensors")
    assert any(not torch.allclose(whole[name], started[name], atol=1e-3) for name in whole)
    for name, last in (("stopped", 2), ("shares", STEPS)):
        launched(2, "tests.training.sharded", str(base), str(tmp_path / name), str(last))
    checkpoint = tmp_path / "stopped" / "training" / "step-00000002"
    assert {file.name for file in checkpoint.iterdir()} == {
        "state.json", "state.safetensors", "shard-00001.safetensors"
    }  # fmt: skip
    sharded_trainer(base, tmp_path / "stopped", has_shards=False).train(resume=True)
    for name in ("shares", "stopped"):
        found = load_file(tmp_path / name / "model.safetensors")
        assert set(found) == set(whole)
        for key, tensor in whole.items():
            assert torch.allclose(found[key], tensor, atol=1e-4), (name, key)
        assert read_log(tmp_path / name / "training")[-1] == pytest.approx(
            read_log(tmp_path / "whole" / "training")[-1], abs=1e-3
        )


def test_shares_need_several_processes(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="several processes"):
        sharded_trainer(golden_folder("gemma-llm-reranker"), tmp_path / "out", has_shards=True)
