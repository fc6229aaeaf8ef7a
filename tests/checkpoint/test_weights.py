"""Weights of a tiny BERT: every tensor accounted for, and no code run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from secondpass.checkpoint.weights import load_weights
from secondpass.errors import CheckpointError
from secondpass.models.cross_encoder import CrossEncoderModel

CONFIG = {
    "num_labels": 1,
    "model_type": "bert",
    "vocab_size": 20,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_act": "gelu",
}
WORDS = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.{}.attention.self.query.weight"
LINEARS = {
    "attention.self.query": (8, 8),
    "attention.self.key": (8, 8),
    "attention.self.value": (8, 8),
    "attention.output.dense": (8, 8),
    "intermediate.dense": (16, 8),
    "output.dense": (8, 16),
}


def hf_tensors() -> dict[str, Tensor]:
    """Random tensors under the names that transformers gives them."""
    shapes: dict[str, tuple[int, ...]] = {"bert.pooler.dense.weight": (8, 8), "bert.pooler.dense.bias": (8,)}
    shapes |= {"classifier.weight": (1, 8), "classifier.bias": (1,)}
    for table, rows in (("word", 20), ("position", 12), ("token_type", 2)):
        shapes[f"bert.embeddings.{table}_embeddings.weight"] = (rows, 8)
    norms = ["bert.embeddings.LayerNorm"]
    for layer in ("bert.encoder.layer.0.", "bert.encoder.layer.1."):
        norms += [layer + "attention.output.LayerNorm", layer + "output.LayerNorm"]
        for name, shape in LINEARS.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    for norm in norms:
        shapes |= {f"{norm}.weight": (8,), f"{norm}.bias": (8,)}
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def load(*files: Path, dtype: torch.dtype | None = None) -> CrossEncoderModel:
    with torch.device("meta"):
        model = CrossEncoderModel(CONFIG)
    load_weights(model, files, renames=model.renames, ignored=model.ignored, dtype=dtype)
    return model


def load_tensors(folder: Path, tensors: dict[str, Tensor]) -> CrossEncoderModel:
    save_file(tensors, folder / "model.safetensors")
    return load(folder / "model.safetensors")


def test_every_tensor_arrives_under_our_name(tmp_path: Path) -> None:
    tensors = hf_tensors()
    state = load_tensors(tmp_path, tensors).state_dict()
    assert torch.equal(state["backbone.word.weight"], tensors[WORDS])
    parts = [tensors[QUERY.format(1).replace("query", part)] for part in ("query", "key", "value")]
    assert torch.equal(state["backbone.layers.1.qkv.weight"], torch.cat(parts))
    assert not any(parameter.is_meta for parameter in state.values())


def test_shards_and_bin_files_give_the_same_weights(tmp_path: Path) -> None:
    tensors = hf_tensors()
    whole = load_tensors(tmp_path, tensors).state_dict()
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:9]}, tmp_path / "model-1.safetensors")
    save_file({name: tensors[name] for name in names[9:]}, tmp_path / "model-2.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    sharded = load(tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors").state_dict()
    pickled = load(tmp_path / "pytorch_model.bin").state_dict()
    assert all(torch.equal(whole[name], sharded[name]) and torch.equal(whole[name], pickled[name]) for name in whole)


def test_norms_and_head_stay_in_full_precision(tmp_path: Path) -> None:
    save_file(hf_tensors(), tmp_path / "model.safetensors")
    state = load(tmp_path / "model.safetensors", dtype=torch.bfloat16).state_dict()
    kept = {name for name, tensor in state.items() if tensor.dtype == torch.float32}
    assert kept == {name for name in state if name.startswith("head.") or "norm." in name}


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = hf_tensors()
    del tensors[WORDS]
    with pytest.raises(CheckpointError, match=r"missing backbone\.word\.weight"):
        load_tensors(tmp_path, tensors)


def test_a_missing_block_of_a_joined_matrix_is_named(tmp_path: Path) -> None:
    tensors = hf_tensors()
    del tensors[QUERY.format(0)]
    with pytest.raises(CheckpointError, match=r"backbone\.layers\.0\.qkv\.weight"):
        load_tensors(tmp_path, tensors)


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"unexpected bert\.extra\.weight"):
        load_tensors(tmp_path, hf_tensors() | {"bert.extra.weight": torch.ones(2)})


def test_ignored_tensors_may_be_there(tmp_path: Path) -> None:
    more = {"bert.embeddings.position_ids": torch.arange(12), "roberta.pooler.dense.weight": torch.ones(8, 8)}
    load_tensors(tmp_path, hf_tensors() | more)


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"word\.weight is \(19, 8\), config\.json asks for \(20, 8\)"):
        load_tensors(tmp_path, hf_tensors() | {WORDS: torch.ones(19, 8)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    tensors = hf_tensors()
    tensors[QUERY.format(1)][3, 3] = value
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in backbone\.layers\.1\.qkv\.weight"):
        load_tensors(tmp_path, tensors)


def test_all_problems_come_in_one_error(tmp_path: Path) -> None:
    tensors = hf_tensors() | {"bert.extra": torch.ones(1), "classifier.weight": torch.ones(2, 8)}
    del tensors[WORDS]
    with pytest.raises(
        CheckpointError, match=r"missing backbone\.word.*unexpected bert\.extra.*head\.out\.weight is"
    ):
        load_tensors(tmp_path, tensors)


def test_a_missing_part_of_a_joined_matrix_is_named(tmp_path: Path) -> None:
    tensors = hf_tensors()
    del tensors["bert.encoder.layer.0.attention.self.key.weight"]
    with pytest.raises(CheckpointError, match=r"missing backbone\.layers\.0\.qkv\.weight \(part 1\)"):
        load_tensors(tmp_path, tensors)


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file(hf_tensors(), tmp_path / "model.safetensors")
    os.truncate(tmp_path / "model.safetensors", 2000)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(tmp_path / "model.safetensors")


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_bin_file_is_not_run(tmp_path: Path) -> None:
    torch.save({WORDS: Malice(tmp_path / "owned")}, tmp_path / "pytorch_model.bin")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Malice(tmp_path / "owned")))
    for name in ("pytorch_model.bin", "plain.bin"):
        with pytest.raises(CheckpointError, match="convert it to safetensors"):
            load(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_a_bin_file_of_old_torch_loads(tmp_path: Path) -> None:
    torch.save(hf_tensors(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    load(tmp_path / "pytorch_model.bin")


def test_a_bin_file_with_more_than_tensors_is_named(tmp_path: Path) -> None:
    torch.save({"model": hf_tensors(), "step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="unexpected model, step"):
        load(tmp_path / "pytorch_model.bin")
