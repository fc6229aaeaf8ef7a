"""Readers of checkpoints on damaged files: whatever is in them, a score or one sentence comes out.

`make fuzz` or FUZZ_EXAMPLES=100000 tries more than the suite does.
"""

from __future__ import annotations

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from secondpass import Embedder, Reranker
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export
from secondpass.checkpoint.layout import LENGTH
from secondpass.errors import SecondpassError
from tests.checkpoint.test_adapter import write_adapter
from tests.checkpoints import SPECIAL, WORDS, tiny_bert
from tests.test_embedder import tiny_embedder

NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
fuzzed = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # the suite tries the same ones each time, a longer run others
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 130),
    st.sampled_from([2**31, 2**63, -(2**63), 1e308, 1e-320, 0.5, "", "x", "\ud800", "a\0b", [], {}, [[]], {"a": {}}]),
    st.floats(),
    st.text(max_size=4),
)
# What an embedder has beside a config.json.
EMBEDDER: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "1_Pooling/config.json": {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "include_prompt": True},
    "config_sentence_transformers.json": {"prompts": {"query": "river: ", "document": ""}, "version": {"a": "5"}},
    LENGTH: {"max_seq_length": 64, "do_lower_case": False},
}
Edit = tuple[list[int], Any, bool]
EDITS = st.lists(st.tuples(st.lists(st.integers(0, 50), max_size=4), ODD, st.booleans()), min_size=1, max_size=3)

DAMAGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3)), min_size=1, max_size=3)


def edited(content: Any, edits: list[Edit]) -> Any:
    """JSON with some values, found by walking down, replaced or removed."""
    content = json.loads(json.dumps(content))
    for path, value, removes in edits:
        node: Any = content
        for step in path:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = keys[step % len(keys)] if keys else None
            if key is None or not isinstance(node[key], dict | list) or not node[key]:
                break
            node = node[key]
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if keys:
            key = keys[sum(path) % len(keys)]
            if removes:
                del node[key]
            else:
                node[key] = deepcopy(value)  # a list drawn twice would else be put into itself
    return content


def scored(folder: Path, engine: str = "torch") -> None:
    """A score of each, or an error of ours."""
    try:
        scores = Reranker(folder, engine=engine, device="cpu").score("the river", ["a bridge", "", "x" * 300])
    except SecondpassError as error:
        assert len(str(error)) < 3000
    else:
        assert len(scores) == 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def graph(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(open_checkpoint(source), tmp_path_factory.mktemp("graph") / "out")


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_settings(copy: Path, source: Path, name: str) -> None:
    content = json.loads((source / name).read_text())

    @fuzzed
    @given(EDITS)
    def check(edits: list[Edit]) -> None:
        (copy / name).write_text(json.dumps(edited(content, edits)), "utf-8", "surrogatepass")
        scored(copy)

    check()


@fuzzed
@given(edits=EDITS)
def test_a_damaged_index(copy: Path, edits: list[Edit]) -> None:
    file = copy / "model.safetensors"
    if file.exists():
        file.rename(copy / "a.safetensors")
    index = {"metadata": {"total_size": 9}, "weight_map": {"a": "a.safetensors", "b": "a.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(edited(index, edits)))
    scored(copy)


@fuzzed
@given(edits=EDITS)
def test_a_damaged_header_of_safetensors(copy: Path, source: Path, edits: list[Edit]) -> None:
    content = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(edited(json.loads(content[8 : 8 + length]), edits)).encode()
    (copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    scored(copy)


@fuzzed
@given(edits=EDITS)
def test_a_damaged_adapter(source: Path, tmp_path: Path, edits: list[Edit]) -> None:
    folder = tmp_path / "adapter"
    key = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_{}.weight"
    if not folder.exists():
        write_adapter(folder, str(source), {key.format("A"): torch.ones(2, 16), key.format("B"): torch.ones(16, 2)})
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "base_model_name_or_path": str(source),
        "revision": None,
        "alpha_pattern": {"query": 4},
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(edited(config, edits)))
    scored(folder)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("name", ["openvino/openvino_model.xml", "openvino/openvino_model.bin"])
@pytest.mark.slow
def test_a_damaged_graph(graph: Path, tmp_path: Path, name: str, engine: str) -> None:
    copy = Path(shutil.copytree(graph, tmp_path / "copy"))
    content = (graph / name).read_bytes()

    @settings(fuzzed, max_examples=max(NUM_EXAMPLES // 4, 5))
    @given(DAMAGES)
    def check(damages: list[tuple[float, bytes]]) -> None:
        (copy / name).write_bytes(damaged(content, damages))
        scored(copy, engine)

    check()


@pytest.mark.parametrize(
    "name", ["modules.json", "1_Pooling/config.json", "config_sentence_transformers.json", LENGTH]
)
@pytest.mark.slow
def test_damaged_settings_of_an_embedder(tmp_path: Path, name: str) -> None:
    folder = tiny_embedder(tmp_path / "embedder")
    content = EMBEDDER[name]
    for other, value in EMBEDDER.items():
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_text(json.dumps(value))

    @fuzzed
    @given(EDITS)
    def check(edits: list[Edit]) -> None:
        (folder / name).write_text(json.dumps(edited(content, edits)))
        try:
            vectors = Embedder(folder, device="cpu").encode(["the river", ""], kind="query")
        except SecondpassError:
            return
        assert len(vectors) == 2

    check()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "old.bin", "model.safetensors", "vocab.txt"])
@pytest.mark.slow
def test_damaged_bytes(copy: Path, source: Path, name: str) -> None:
    weights = load_file(source / "model.safetensors")
    if name.endswith(".bin"):
        (copy / "model.safetensors").unlink()
        torch.save(weights, copy / name, _use_new_zipfile_serialization=name != "old.bin")
    if name == "vocab.txt":
        (copy / "tokenizer.json").unlink()
        (copy / name).write_text("\n".join((*SPECIAL, *dict.fromkeys(WORDS.split()))))
    content = (copy / name).read_bytes()
    file = copy / ("pytorch_model.bin" if name == "old.bin" else name)

    @fuzzed
    @given(DAMAGES)
    def check(damages: list[tuple[float, bytes]]) -> None:
        file.write_bytes(damaged(content, damages))
        scored(copy)

    check()


def damaged(content: bytes, damages: list[tuple[float, bytes]]) -> bytes:
    """Some bytes overwritten, each at a fraction of the length; with none the rest is cut off."""
    for where, new in damages:
        start = int(where * len(content))
        content = content[:start] + new + content[start + len(new) :] if new else content[:start]
    return content
