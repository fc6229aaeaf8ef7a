"""Cross-encoders as Hugging Face folders: the same scores in transformers and sentence-transformers, whole or not."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from secondpass import Reranker
from secondpass.atomic import whole_file, write_text
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export
from secondpass.checkpoint.save import save_model, write_tensors
from secondpass.errors import CheckpointError, UnknownModel
from secondpass.text.families import FAMILIES, saved_head
from secondpass.training.model import Trainable, open_trainable
from tests.checkpoints import tiny_bert
from tests.goldens import SHARED

CPU = torch.device("cpu")
PAIRS = [("which river is long", "the river is long"), ("what is snow", "a cold bridge " * 9), ("the king", "rain")]


def saved(folder: Path, trainable: Trainable) -> Path:
    tensors = trainable.naming.named(dict(trainable.model.named_parameters()))
    save_model(folder, config=trainable.config, tensors=tensors, base=trainable.checkpoint.folder)
    return folder


def without_head(folder: Path, name: str) -> Path:
    """The random checkpoint as the plain encoder that a reranker is trained from."""
    from tests.random_checkpoints import random_checkpoint

    reference = random_checkpoint(folder, name)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    reference.model.base_model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "family",
    ["bert", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet", "modernbert", "deberta-v2"],
)
def test_a_plain_encoder_with_a_new_head_has_the_scores_of_transformers(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    base = without_head(tmp_path / "base", f"{family}-small")
    trainable = open_trainable(base, device=CPU, seed=3)
    assert "head.out.weight" in trainable.fresh
    folder = saved(tmp_path / "saved", trainable)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    queries, passages = map(list, zip(*PAIRS, strict=True))
    has_types = family in ("bert", "electra")
    inputs = tokenizer(queries, passages, padding=True, return_tensors="pt", return_token_type_ids=has_types)
    with torch.inference_mode():
        expected = model(**inputs).logits[:, 0].tolist()
    found = Reranker(folder, device="cpu", dtype="float32").score_pairs(PAIRS)
    assert max(expected) - min(expected) > 1e-3
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert", "gte-new", "deberta-v2"])
def test_a_reranker_is_saved_under_the_names_that_it_had(tmp_path: Path, family: str) -> None:
    base = SHARED / "golden" / f"{family}-cross-encoder"
    if not base.is_dir():
        pytest.skip("no reference figures here")
    trainable = open_trainable(base, device=CPU)
    assert trainable.fresh == ()
    folder = saved(tmp_path / "saved", trainable)
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    assert set(after) == {name for name in before if "position_ids" not in name}
    assert all(torch.equal(after[name], before[name].float()) for name in after)


def test_a_pooler_beside_the_head_of_roberta_takes_no_part(tmp_path: Path) -> None:
    whole = SHARED / "golden" / "xlm-roberta-cross-encoder"
    if not whole.is_dir():
        pytest.skip("no reference figures here")
    base, tensors = tmp_path / "base", load_file(whole / "model.safetensors")
    shutil.copytree(whole, base)
    pooler = {"roberta.pooler.dense.weight": torch.ones(48, 48), "roberta.pooler.dense.bias": torch.ones(48)}
    save_file(tensors | pooler, base / "model.safetensors")
    folder = saved(tmp_path / "saved", open_trainable(base, device=CPU))
    assert set(load_file(folder / "model.safetensors")) == {name for name in tensors if "position_ids" not in name}
    scores = [Reranker(each, device="cpu", engine="torch").score_pairs(PAIRS) for each in (whole, base, folder)]
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert", "gte-new", "deberta-v2"])
def test_a_bare_backbone_is_saved_under_the_names_of_a_reranker(tmp_path: Path, family: str) -> None:
    whole = SHARED / "golden" / f"{family}-cross-encoder"
    if not whole.is_dir():
        pytest.skip("no reference figures here")
    config = json.loads((whole / "config.json").read_text())
    layout = saved_head(config)
    tensors = load_file(whole / "model.safetensors")
    heads = tuple(f"{name}." for name in layout.head.values())
    bare = {name.removeprefix(layout.prefix): x for name, x in tensors.items() if not name.startswith(heads)}
    base = tmp_path / "base"
    shutil.copytree(whole, base)
    save_file({**bare, "cls.predictions.bias": torch.zeros(3)}, base / "model.safetensors")
    (base / "config.json").write_text(
        json.dumps({**config, "architectures": ["Model"], "id2label": {"0": "a", "1": "b"}})
    )
    folder = saved(tmp_path / "saved", open_trainable(base, device=CPU))
    assert set(load_file(folder / "model.safetensors")) == {name for name in tensors if "position_ids" not in name}
    found = json.loads((folder / "config.json").read_text())
    assert (found["architectures"], found["id2label"]) == (config["architectures"], {"0": "LABEL_0"})
    assert len(Reranker(folder, device="cpu").score_pairs(PAIRS)) == 3


JINA = "JinaBertForSequenceClassification"


def jina_bert(folder: Path) -> Path:
    """A tiny JinaBERT by the names of its checkpoints, whose config.json does not say how many labels there are."""
    tensors = load_file(tiny_bert(folder) / "model.safetensors")
    del tensors["bert.embeddings.position_embeddings.weight"]
    for layer in range(2):
        own = f"bert.encoder.layer.{layer}"
        up = tensors.pop(f"{own}.intermediate.dense.weight")
        del tensors[f"{own}.intermediate.dense.bias"]
        tensors[f"{own}.mlp.gated_layers.weight"] = torch.cat([up, -0.5 * up])
        for theirs, jinas in (("output.dense", "mlp.wo"), ("output.LayerNorm", "mlp.layernorm")):
            for kind in ("weight", "bias"):
                tensors[f"{own}.{jinas}.{kind}"] = tensors.pop(f"{own}.{theirs}.{kind}")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    jina = {"position_embedding_type": "alibi", "feed_forward_type": "geglu", "architectures": [JINA]}
    (folder / "config.json").write_text(json.dumps({**kept, **jina}))
    return folder


def test_jina_bert_is_read_and_saved_under_its_names(tmp_path: Path) -> None:
    base = jina_bert(tmp_path / "base")
    folder = saved(tmp_path / "saved", open_trainable(base, device=CPU))
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    assert set(before) == set(after)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [JINA]
    scores = [Reranker(each, device="cpu", dtype="float32").score_pairs(PAIRS) for each in (base, folder)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert max(scores[0]) - min(scores[0]) > 1e-3


@pytest.mark.slow
def test_jina_bert_exported_gives_the_scores_of_torch(tmp_path: Path) -> None:
    base = jina_bert(tmp_path / "base")
    graph = export(open_checkpoint(base), tmp_path / "graph")
    scores = [Reranker(each, device="cpu", dtype="float32").score_pairs(PAIRS) for each in (base, graph)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_two_labels_become_one_with_a_new_last_layer(tmp_path: Path) -> None:
    trainable = open_trainable(tiny_bert(tmp_path / "base", num_labels=2), device=CPU)
    assert trainable.fresh == ("head.out.weight", "head.out.bias")
    folder = saved(tmp_path / "saved", trainable)
    assert len(Reranker(folder, device="cpu").score("the river", ["a bridge"])) == 1
    dense = [
        load_file(tmp_path / name / "model.safetensors")["bert.pooler.dense.weight"] for name in ("base", "saved")
    ]
    assert torch.equal(*dense)


def test_a_new_head_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path, num_labels=2)
    heads = [open_trainable(base, device=CPU, seed=seed).model.head.out.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_names_of_new_heads_are_read_back_as_ours() -> None:
    from secondpass.checkpoint.weights import rename
    from secondpass.models import import_module

    for model_type, family in FAMILIES.items():
        renames = import_module(f"secondpass.models.{family.backbone.partition('.')[0]}").RENAMES
        for ours, theirs in family.saved.head.items() if family.saved else ():
            assert rename(f"{theirs}.weight", renames) == f"{ours}.weight", model_type


@pytest.mark.parametrize("model_type", ["nomic_bert", "mamba"])
def test_what_cannot_become_a_reranker_is_refused(tmp_path: Path, model_type: str) -> None:
    folder = tiny_bert(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    with pytest.raises(UnknownModel, match=f"'{model_type}' cannot be trained"):
        open_trainable(folder, device=CPU)


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    write_tensors(file, {"x": torch.ones(3)})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_tensors(file, {"x": torch.zeros(3)})
    assert torch.equal(load_file(file)["x"], torch.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_graph_of_other_weights_does_not_stay(tmp_path: Path) -> None:
    from secondpass.checkpoint.checkpoint import open_checkpoint

    folder = tiny_bert(tmp_path / "model")
    for name in ("openvino/openvino_model.xml", "openvino/openvino_model.bin", "onnx/model.onnx", "export.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "openvino" / "mine.txt").write_text("mine")
    assert open_checkpoint(folder).graph() is not None
    saved(folder, open_trainable(folder, device=CPU))
    assert open_checkpoint(folder).graph() is None
    assert not (folder / "export.json").exists()
    assert (folder / "openvino" / "mine.txt").read_text() == "mine"
