"""Early exit of layer-wise models: the first n of a full run, with less computed."""

from __future__ import annotations

import asyncio
import math
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from secondpass import EarlyExit, Reranker
from secondpass.engine import early_exit as exits
from secondpass.scoring.early_exit import exit_bounds
from secondpass.types import Row, Run
from tests.checkpoints import tiny_bert
from tests.goldens import Golden

pytestmark = pytest.mark.skipif(not Golden("gemma2-lightweight").folder.is_dir(), reason="no reference figures here")

QUERY = "which river is the longest"
WORDS = "river bridge water city old long the of a is stands over winter 7 2024 , . 河 мост".split()
TEXTS = [" ".join(random.Random(place).choices(WORDS, k=random.Random(place).randint(1, 40))) for place in range(30)]
LAYERS = (2, 3, 4, 5)
COMPRESSED = {"compress_ratio": 2, "compress_layers": (2, 3)}
# name of the reference checkpoint, options
CASES = [("minicpm-layerwise", {}), ("gemma2-lightweight", {}), ("gemma2-lightweight", COMPRESSED)]


def calmed(name: str, folder: Path) -> Path:
    """The checkpoint with one head for all layers and later blocks that change little, as in a trained model."""
    shutil.copytree(Golden(name).folder, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    weights = load_file(folder / "model.safetensors")
    for key, weight in weights.items():
        if key.startswith("lm_head."):
            weights[key] = weights["lm_head.0.linear_head.weight"].clone()
        elif key.startswith(tuple(f"model.layers.{place}." for place in range(2, 6))):
            if name.startswith("gemma2") and "post_" in key:
                weights[key] = (weight + 1) * 0.03 - 1  # Gemma scales by 1 + weight
            elif "o_proj" in key or "down_proj" in key:
                weights[key] = weight * 0.03
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=CASES, ids=["minicpm", "gemma2", "gemma2-compressed"])
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    name, options = request.param
    folder = calmed(name, tmp_path_factory.mktemp("calmed") / name)
    return Reranker(folder, dtype="float32", device="cpu", token_budget=700, **options)


@pytest.fixture(scope="module")
def bounds(reranker: Reranker) -> dict[int, float]:
    """The largest changes, and a little more: batches of other rows round otherwise."""
    measured = exit_bounds(reranker, [(QUERY, text) for text in TEXTS], LAYERS)
    return {layer: bound + 1e-4 for layer, bound in measured.items()}


@pytest.fixture(scope="module")
def plain() -> Reranker:
    return Reranker(Golden("minicpm-layerwise").folder, device="cpu", dtype="float32")


def layer_of(hit: Any) -> int:
    return int(hit.parts["layer"])


@pytest.mark.slow
def test_no_change_of_any_pair_is_beyond_the_bounds(reranker: Reranker, bounds: dict[int, float]) -> None:
    last = np.array(reranker.score(QUERY, TEXTS))
    changes = {layer: np.abs(last - reranker.score(QUERY, TEXTS, cutoff_layer=layer)) for layer in LAYERS}
    assert {layer: change.max() for layer, change in changes.items()} == pytest.approx(bounds, abs=2e-4)
    half = exit_bounds(reranker, [(QUERY, text) for text in TEXTS], [3], quantile=0.5)
    assert changes[3].min() <= half[3] < changes[3].max()
    assert (changes[3] <= half[3] + 1e-5).sum() >= len(TEXTS) / 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_first_n_are_those_of_a_full_run(reranker: Reranker, bounds: dict[int, float], seed: int) -> None:
    draw = random.Random(seed)
    texts = draw.sample(TEXTS, draw.randint(1, len(TEXTS)))
    n = draw.randint(1, 6)
    some = {layer: bounds[layer] for layer in draw.sample(LAYERS, draw.randint(1, 4))}
    for asked in (some, max(bounds.values())):
        found = reranker.rank(QUERY, texts, top_n=n, early_exit=asked)
        assert [hit.index for hit in found] == [hit.index for hit in reranker.rank(QUERY, texts, top_n=n)]
        assert len({layer_of(hit) for hit in found}) == 1
        layer = layer_of(found[0])
        alone = reranker.score(QUERY, found.texts, cutoff_layer=None if layer == 6 else layer)
        assert [hit.score for hit in found] == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
def test_the_others_keep_the_score_of_the_layer_where_they_left(reranker: Reranker, bounds: dict[int, float]) -> None:
    ranking = reranker.rank(QUERY, TEXTS, early_exit=EarlyExit(bounds, top_n=2), explain=True)
    layers = [layer_of(hit) for hit in ranking]
    assert layers == sorted(layers, reverse=True)
    assert len(set(layers)) > 1
    for layer in set(layers):
        of_layer = [hit for hit in ranking if layer_of(hit) == layer]
        alone = reranker.score(QUERY, TEXTS, cutoff_layer=layer)
        assert [hit.score for hit in of_layer] == pytest.approx([alone[hit.index] for hit in of_layer], abs=1e-4)
        assert [hit.score for hit in of_layer] == sorted((hit.score for hit in of_layer), reverse=True)
    assert all("tokens" in (hit.parts or {}) for hit in ranking)
    assert sorted(hit.index for hit in ranking) == list(range(len(TEXTS)))


def test_a_bound_that_drops_none_gives_a_full_run_exactly(reranker: Reranker) -> None:
    full = reranker.rank(QUERY, TEXTS)
    for bound in (math.inf, 1e6):
        found = reranker.rank(QUERY, TEXTS, top_n=len(TEXTS), early_exit=bound)
        assert [(hit.index, hit.score, hit.probability) for hit in found] == [
            (hit.index, hit.score, hit.probability) for hit in full
        ]


def rows_of(reranker: Reranker) -> list[Row]:
    parts = reranker._scoring
    return [reading.row for reading in parts.reader.read([(QUERY, text) for text in TEXTS], parts.limits)]


def exiting(reranker: Reranker, bounds: dict[int, float] | float, n: int = 2) -> Run:
    run = reranker._scoring.run
    early_exit = EarlyExit(bounds, top_n=n)
    return Run(compress_ratio=run.compress_ratio, compress_layers=run.compress_layers, early_exit=early_exit)


def tokens_at(row: Row, block: int, compressed: tuple[int, ...]) -> int:
    """Tokens of the row that enter a block, when passages are halved before some."""
    passage = left = row.passage[1] - row.passage[0]
    for _ in [layer for layer in compressed if layer <= block]:
        left = -(-left // 2)
    return len(row) - passage + left


@pytest.mark.slow
def test_rows_that_left_are_not_computed_any_more(reranker: Reranker, bounds: dict[int, float]) -> None:
    engine: Any = reranker._scoring.engine.current
    rows = rows_of(reranker)
    tokens: Counter[int] = Counter()
    blocks = engine.model.backbone.layers
    hooks = [
        block.register_forward_hook(lambda _, given, __, place=place: tokens.update({place: len(given[0])}))
        for place, block in enumerate(blocks)
    ]
    engine.shares = False
    left = engine.run(rows, exiting(reranker, bounds))[:, 1]
    engine.shares = True
    for hook in hooks:
        hook.remove()
    halved = reranker._scoring.run.compress_layers or ()
    running = {
        place: sum(tokens_at(row, place, halved) for row, layer in zip(rows, left, strict=True) if layer > place)
        for place in tokens
    }
    assert tokens == running
    assert running[5] < running[2] < running[0]


def test_all_stop_when_the_order_is_settled(reranker: Reranker) -> None:
    engine: Any = reranker._scoring.engine.current
    rows = rows_of(reranker)
    calls: list[int] = []
    hook = engine.model.backbone.layers[3].register_forward_hook(lambda *_: calls.append(1))
    engine.shares = False  # what is shared is computed up to the last layer
    assert set(engine.run(rows, exiting(reranker, 0.0))[:, 1]) == {2}
    engine.shares = True
    hook.remove()
    assert calls == []


@pytest.mark.slow
def test_shared_beginnings_budgets_and_waves_give_the_same(
    reranker: Reranker, bounds: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = reranker._scoring.engine.current
    rows, run = rows_of(reranker), exiting(reranker, bounds)
    counts: list[int] = []
    whole = engine.run(rows, run, lambda rows, seconds: counts.append(rows))
    assert sum(counts) == len(rows)
    monkeypatch.setattr(engine, "shares", False)
    assert engine.run(rows, run) == pytest.approx(whole, abs=1e-4)
    monkeypatch.setattr(engine._budget, "tokens", 90)
    assert engine.run(rows, run) == pytest.approx(whole, abs=1e-4)
    monkeypatch.setattr(engine._budget, "tokens", 4096)
    monkeypatch.setattr(exits, "MAX_HELD", 600)
    waves = engine.run(rows, run)
    best = np.argsort(-engine.run(rows, reranker._scoring.run)[:, 0])[:2]
    assert sorted(range(len(rows)), key=lambda row: (-waves[row, 1], -waves[row, 0]))[:2] == best.tolist()
    assert len(set(waves[:, 1])) > 1


def test_a_batch_that_does_not_fit_is_halved(
    reranker: Reranker, bounds: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = reranker._scoring.engine.current
    rows, run = rows_of(reranker), exiting(reranker, bounds)
    whole = engine.run(rows, run)
    advance = engine.model.backbone.advance

    def small(states: torch.Tensor, *given: Any) -> Any:
        if len(states) > 300:
            raise torch.OutOfMemoryError("no room")
        return advance(states, *given)

    monkeypatch.setattr(engine.model.backbone, "advance", small)
    monkeypatch.setattr(engine._budget, "tokens", 700)
    assert engine.run(rows, run) == pytest.approx(whole, abs=1e-4)
    assert engine._budget.tokens < 700


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_exit": 0.5}, "early_exit needs top_n"),
        ({"early_exit": -1, "top_n": 2}, "a bound of the early exit is -1"),
        ({"early_exit": "3.1", "top_n": 2}, "a bound of the early exit is '3.1'"),
        ({"early_exit": True, "top_n": 2}, "a bound of the early exit is True"),
        ({"early_exit": {3: math.nan}, "top_n": 2}, "is nan"),
        ({"early_exit": {}, "top_n": 2}, "has no layers"),
        ({"early_exit": {1: 2.0, 6: 1.0}, "top_n": 2}, "at layer 1, 6: before layer 6 there are 2, 3, 4, 5"),
        ({"early_exit": 0.5, "top_n": 2, "budget_ms": 100}, "budget_ms"),
    ],
)
def test_what_makes_no_sense_is_refused(plain: Reranker, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain.rank(QUERY, TEXTS[:3], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff_layer": 2}, "at layer any: before layer 2 there are none"),
        ({"long_documents": "chunk"}, "long_documents='truncate'"),
        ({"score_cache": "scores.sqlite"}, "without a score_cache"),
    ],
)
def test_what_it_is_not_combined_with(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    if "score_cache" in options:
        options = {"score_cache": tmp_path / options["score_cache"]}
    reranker = Reranker(Golden("minicpm-layerwise").folder, device="cpu", **options)
    with pytest.raises(ValueError, match=message):
        reranker.rank(QUERY, TEXTS[:3], top_n=1, early_exit=0.5)


def test_several_cutoff_layers_are_refused(plain: Reranker) -> None:
    with pytest.raises(ValueError, match="early_exit needs one cutoff layer; here are 3, 5"):
        plain._scoring.engine.current.run([], Run(cutoff_layers=(5, 3), early_exit=EarlyExit(1.0, top_n=1)))


def test_other_models_refuse_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early_exit need a layer-wise model; this is bert"):
        Reranker(tiny_bert(tmp_path), device="cpu").rank("which river", ["water"], top_n=1, early_exit=1.0)


def test_no_documents(plain: Reranker) -> None:
    assert list(plain.rank(QUERY, [], top_n=3, early_exit=0.5)) == []


@pytest.mark.parametrize(
    ("pairs", "quantile", "message"),
    [([], 1.0, "got no pairs"), ([("a", "b")], 1.5, "quantile is 1.5"), ([("a", "b")], 1.0, "cutoff_layer 9")],
)
def test_bounds_that_cannot_be_measured(
    plain: Reranker, pairs: list[tuple[str, str]], quantile: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        exit_bounds(plain, pairs, [9], quantile=quantile)


def test_asyncio(plain: Reranker) -> None:
    found = asyncio.run(plain.arank(QUERY, TEXTS[:5], top_n=2, early_exit={3: 1.0}))
    assert list(found) == list(plain.rank(QUERY, TEXTS[:5], top_n=2, early_exit={3: 1.0}))
