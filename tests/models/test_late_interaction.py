"""Late interaction: the figures by their definition, in every form of a batch and in every engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from secondpass import Embedder, Reranker
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export
from secondpass.checkpoint.export.openvino import write_openvino
from secondpass.checkpoint.export.trace import traceable
from secondpass.errors import CheckpointError
from secondpass.models.late_interaction import LateInteractionConfig
from secondpass.models.text_encoder import TextEncoder
from secondpass.packed import pack
from secondpass.types import Row
from tests.checkpoints import tiny_bert

SCALES = [9.0, 3.0, 4.0]
PAIRS = [
    ("which river is long", "the river is long, and a bridge is old"),
    ("a king", "the sea in winter"),
    ("old stone house by the sea", "stone house. " * 9 + "by the sea"),
    ("bridge", ""),
    ("", "a bridge"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with this head: its tokenizer puts a [CLS] before the passage too."""
    folder = tiny_bert(tmp_path_factory.mktemp("late"), width=32)
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    told = torch.rand(config["vocab_size"], generator=torch.Generator().manual_seed(0)) + 0.1
    told[:5] = 0
    kept = {name: x for name, x in weights.items() if "pooler" not in name and "classifier" not in name}
    head = {"head.scale": torch.tensor(SCALES), "head.bias": torch.tensor([-2.0])}
    matching = {"word_match.weights": told, "word_match.scale": torch.zeros(2)}
    save_file(kept | head | matching, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"late_interaction": {"num_lead": 1}, "word_match": {"k1": 0.2, "b": 0.4, "mean_length": 12.0}}
    (folder / "config.json").write_text(json.dumps(config | settings))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    markers = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [CLS] $B:1 [SEP]:1", special_tokens=markers
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def states_of(folder: Path, text: str) -> tuple[list[int], Tensor]:
    """Ids and states (L, C) of a text that is read alone."""
    checkpoint = open_checkpoint(folder)
    model = TextEncoder(checkpoint.config, pooling="mean")
    found = {name: x for name, x in traceable(checkpoint).model.backbone.state_dict().items()}  # type: ignore[attr-defined]
    model.backbone.load_state_dict(found)  # type: ignore[attr-defined]
    tokenizer = checkpoint.tokenizer
    template = tokenizer.pair_template
    ids = [*template.before, *tokenizer.encode(text), *template.after]
    with torch.inference_mode():
        return ids, model.backbone(pack([Row(ids, (len(ids), len(ids)))]))


def defined(folder: Path, query: str, passage: str) -> float:
    """The score, piece by piece."""
    weights = load_file(folder / "model.safetensors")["word_match.weights"].tolist()
    (asked, q), (said, p) = states_of(folder, query), states_of(folder, passage)
    figures = [float(F.cosine_similarity(q.mean(0), p.mean(0), dim=0))]
    pieces = [place for place, token in enumerate(asked) if weights[token] > 0]
    others = [place for place, token in enumerate(said) if weights[token] > 0]
    similar = [[float(F.cosine_similarity(q[i], p[j], dim=0)) for j in others] for i in pieces]
    told = [weights[asked[i]] for i in pieces]
    best = [max(row, default=0.0) for row in similar]
    figures.append(sum(best) / max(len(best), 1))
    figures.append(sum(w * b for w, b in zip(told, best, strict=True)) / (sum(told) or 1))
    return sum(w * x for w, x in zip(SCALES, figures, strict=True)) - 2.0


def scores(folder: Path, engine: str, dtype: str = "float32") -> list[float]:
    return Reranker(folder, engine=engine, dtype=dtype, device="cpu").score_pairs(PAIRS)


def test_scores_are_those_of_the_definition(folder: Path) -> None:
    assert scores(folder, "torch") == pytest.approx([defined(folder, *pair) for pair in PAIRS], abs=1e-4)


def test_a_score_does_not_depend_on_the_batch(folder: Path) -> None:
    reranker = Reranker(folder, engine="torch", dtype="float32", device="cpu")
    assert reranker.score_pairs(PAIRS) == pytest.approx([reranker.score(q, [p])[0] for q, p in PAIRS], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "dtype"), [("openvino", "float32"), ("openvino", "int8"), ("onnx", "float32")])
def test_graphs_say_the_same(folder: Path, tmp_path: Path, format: str, dtype: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnx")
    out = export(open_checkpoint(folder), tmp_path / "out", format=format, dtype=dtype)
    assert scores(out, "openvino") == pytest.approx(scores(folder, "torch"), abs=1e-4 if dtype == "float32" else 0.3)
    if format == "openvino":  # whose constants the torch engine reads
        assert scores(out, "torch") == pytest.approx(scores(out, "openvino"), abs=1e-4)


@pytest.mark.slow
def test_half_precision_keeps_the_scores_and_halves_the_file(folder: Path, tmp_path: Path) -> None:
    sizes = {}
    for dtype in ("float32", "float16"):
        out = export(open_checkpoint(folder), tmp_path / dtype)
        write_openvino(traceable(open_checkpoint(folder)), out / "openvino" / "openvino_model.xml", dtype, ())
        sizes[dtype] = (out / "openvino" / "openvino_model.bin").stat().st_size
        assert scores(out, "openvino") == pytest.approx(scores(folder, "torch"), abs=2e-3)
    assert sizes["float16"] < 0.6 * sizes["float32"]


@pytest.mark.slow
def test_the_graph_is_an_embedder_too(folder: Path, tmp_path: Path) -> None:
    out = export(open_checkpoint(folder), tmp_path / "out")
    texts = [passage for _, passage in PAIRS]
    embedder = Embedder(out, is_normalized=True)
    vectors = embedder.encode(texts)
    expected = torch.stack([F.normalize(states_of(folder, text)[1].mean(0), dim=0) for text in texts])
    assert embedder.info().engine == "openvino"
    assert np.abs(vectors - expected.numpy()).max() < 1e-5


@pytest.mark.slow
def test_torch_reads_the_embedder_out_of_the_weights(folder: Path, tmp_path: Path) -> None:
    out = export(open_checkpoint(folder), tmp_path / "out")
    texts = [passage for _, passage in PAIRS]
    assert np.abs(Embedder(folder, dtype="float32").encode(texts) - Embedder(out).encode(texts)).max() < 1e-4


@pytest.mark.parametrize("found", [{"num_lead": "one"}, {}, True])
def test_settings_that_are_not_whole_are_named(found: object) -> None:
    with pytest.raises(CheckpointError, match=r"late_interaction is .* needs the number num_lead"):
        LateInteractionConfig.from_hf({"late_interaction": found, "word_match": {}})
