"""Word matching: the shares by a plain count, in every form of a batch and in every engine."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from secondpass import Reranker
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export
from secondpass.errors import CheckpointError
from secondpass.models.word_match import WordMatch, WordMatchConfig
from secondpass.packed import pack
from secondpass.types import Row
from tests.checkpoints import tiny_bert

SETTINGS = {"k1": 0.9, "b": 0.4, "mean_length": 12.0}
CLS, SEP, NUM_MARKERS, NUM_WORDS = 1, 2, 3, 24
PAIRS = [
    ("which river is long", "the river is long, and a bridge is old"),
    ("a king", "the sea in winter"),
    ("old stone house by the sea", "stone house. " * 9 + "by the sea"),
    ("bridge", ""),
    ("", "a bridge"),
]


def pairs_of_ids() -> list[tuple[list[int], list[int]]]:
    """Random queries and passages of few words, so that much matches; also empty ones."""
    rng = random.Random(0)
    lengths = [(0, 5), (1, 0), (1, 9), *((rng.randint(1, 9), rng.randint(1, 60)) for _ in range(24))]
    return [tuple(rng.choices(range(NUM_MARKERS, NUM_WORDS), k=length) for length in pair) for pair in lengths]  # type: ignore[misc]


def row_of(query: list[int], passage: list[int]) -> Row:
    ids = [CLS, *query, SEP, *passage, SEP]
    return Row(ids, (len(query) + 2, len(ids)))


def matching() -> WordMatch:
    model = WordMatch(WordMatchConfig(num_words=NUM_WORDS, **SETTINGS))
    weights = torch.rand(NUM_WORDS, generator=torch.Generator().manual_seed(0)) + 0.1
    weights[:NUM_MARKERS] = 0
    model.load_state_dict({"weights": weights, "scale": torch.tensor([1.5, 0.7])})
    return model.requires_grad_(False)


def counted(model: WordMatch, query: list[int], passage: list[int]) -> float:
    """The definition, word by word."""
    weights, length = model.weights.tolist(), len(passage) + 1  # with the marker at its end
    norm = SETTINGS["k1"] * (1 - SETTINGS["b"] + SETTINGS["b"] * length / SETTINGS["mean_length"])

    def share(asked: list[tuple[int, ...]], there: Counter[tuple[int, ...]]) -> float:
        told = [min(weights[word] for word in one) for one in asked]
        found = sum(
            weight * there[one] / (there[one] + norm) for weight, one in zip(told, asked, strict=True) if there[one]
        )
        return found / sum(told) if told else 0.0

    words = share([(word,) for word in query], Counter((word,) for word in passage))
    return 1.5 * words + 0.7 * share(list(pairwise(query)), Counter(pairwise(passage)))


def test_packed_rows_have_the_shares_of_a_plain_count() -> None:
    model, pairs = matching(), pairs_of_ids()
    expected = [counted(model, *pair) for pair in pairs]
    assert model(pack([row_of(*pair) for pair in pairs])).tolist() == pytest.approx(expected, abs=1e-6)
    assert [model(pack([row_of(*pair)])).item() for pair in pairs] == pytest.approx(expected, abs=1e-6)
    assert max(expected) > 0.5 and min(expected) == 0


def test_padded_rows_have_the_shares_of_a_plain_count() -> None:
    model, pairs = matching(), pairs_of_ids()
    rows = [row_of(*pair) for pair in pairs]
    ids, mask, types = (torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64) for _ in range(3))
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row.ids)
        mask[place, : len(row)] = 1
        types[place, row.passage[0] : len(row)] = 1
    found = (model.of_padded(ids, mask, types) * model.scale).sum(1)
    assert found.tolist() == pytest.approx([counted(model, *pair) for pair in pairs], abs=1e-6)


@pytest.mark.parametrize(("query", "passage"), [([0, 0], [0, 0]), ([5], [7, 5]), ([5, 6], [5, 6])])
@pytest.mark.parametrize("is_padded", [False, True])
def test_where_nothing_counts_there_is_no_slope(query: list[int], passage: list[int], is_padded: bool) -> None:
    """Of unknown words alone, and of one word, whose pairs are with markers; else a step would learn nothing else."""
    model, row = matching().requires_grad_(True), row_of(query, passage)
    batch = pack([row])
    if is_padded:
        ids = torch.tensor([row.ids])
        shares = model.of_padded(ids, torch.ones_like(ids), batch.types.reshape(1, -1))
    else:
        shares = model.shares(batch)
    (shares * model.scale).sum().backward()
    assert model.weights.grad is not None and model.weights.grad.abs().max() < 10


@pytest.mark.parametrize("found", [{"k1": 0.9, "b": 0.4}, {**SETTINGS, "b": "much"}, True])
def test_settings_that_are_not_whole_are_named(found: object) -> None:
    with pytest.raises(CheckpointError, match=r"word_match is .* needs the numbers k1, b and mean_length"):
        WordMatchConfig.from_hf({"vocab_size": 9, "word_match": found})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with word matching that weighs as much as the rest of its random score."""
    folder = tiny_bert(tmp_path_factory.mktemp("matching"), width=32)
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    told = torch.rand(config["vocab_size"], generator=torch.Generator().manual_seed(0))
    told[:5] = 0
    weights |= {"word_match.weights": told, "word_match.scale": torch.tensor([3.0, 2.0])}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"word_match": SETTINGS}))
    return folder


def scores(folder: Path, engine: str, dtype: str = "float32") -> list[float]:
    return Reranker(folder, engine=engine, dtype=dtype, device="cpu").score_pairs(PAIRS)


def test_matching_is_added_and_does_not_depend_on_the_batch(source: Path, tmp_path: Path) -> None:
    reranker = Reranker(source, engine="torch", dtype="float32", device="cpu")
    assert scores(source, "torch") == pytest.approx([reranker.score(q, [p])[0] for q, p in PAIRS], abs=1e-5)
    plain = tiny_bert(tmp_path, width=32)
    added = [a - b for a, b in zip(scores(source, "torch"), scores(plain, "torch"), strict=True)]
    assert added[0] > 1 and added[1:2] == [0] and added[3:] == [0, 0]


def test_bfloat16_does_not_touch_the_matching(source: Path, tmp_path: Path) -> None:
    plain = tiny_bert(tmp_path, width=32)
    full, half = (
        [a - b for a, b in zip(scores(source, "torch", dtype), scores(plain, "torch", dtype), strict=True)]
        for dtype in ("float32", "bfloat16")
    )
    assert half == pytest.approx(full, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "dtype"), [("openvino", "float32"), ("openvino", "int8"), ("onnx", "float32")])
def test_graphs_match_words_too(source: Path, tmp_path: Path, format: str, dtype: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnx")
    folder = export(open_checkpoint(source), tmp_path / "out", format=format, dtype=dtype)
    assert scores(folder, "openvino") == pytest.approx(
        scores(source, "torch"), abs=2e-5 if dtype == "float32" else 0.3
    )
    if format == "openvino":  # whose constants the torch engine reads
        assert scores(folder, "torch") == pytest.approx(scores(folder, "openvino"), abs=2e-5)
