"""LLM rerankers against the figures of FlagEmbedding, mxbai-rerank and the Qwen3-Reranker example."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.engine.torch import TorchEngine
from secondpass.text.families import recipe_for
from secondpass.text.recipe import Limits, Recipe
from secondpass.text.tokenizer import Tokenizer
from secondpass.types import Row, Run
from tests.goldens import Golden, golden_runs

TOKEN_GOLDENS = ("gemma-llm-reranker", "qwen2-llm-reranker", "qwen3-llm-reranker")
LAYER_GOLDENS = ("minicpm-layerwise", "gemma2-lightweight")
TOLERANCE = {
    "gemma-llm-reranker": 1e-4,
    "qwen2-llm-reranker": 1e-4,
    "qwen3-llm-reranker": 2e-4,
    "minicpm-layerwise": 2e-4,
    "gemma2-lightweight": 5e-4,
}
# All 172 runs of the lightweight model take a minute; these have every option once.
QUICK = ("max_length=64,", "cutoff_layers=[2, 4, 6],compress_ratio=8,compress_layers=[2, 4]", "defaults", "custom")


def quick_or_slow(parameters: list[Any]) -> list[Any]:
    def is_quick(parameter: Any) -> bool:
        golden, run = parameter.values
        return golden is None or golden.name != "gemma2-lightweight" or any(part in run["name"] for part in QUICK)

    return [p if is_quick(p) else pytest.param(*p.values, id=p.id, marks=pytest.mark.slow) for p in parameters]


runs = pytest.mark.parametrize(("golden", "run"), quick_or_slow(golden_runs(*TOKEN_GOLDENS, *LAYER_GOLDENS)))
token_runs = pytest.mark.parametrize(("golden", "run"), golden_runs(*TOKEN_GOLDENS))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors here are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def eager_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lightweight checkpoint, asking for the attention that caps its logits."""
    folder = tmp_path_factory.mktemp("eager")
    golden = Golden("gemma2-lightweight").folder
    shutil.copytree(golden, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    config = json.loads((golden / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "eager"}))
    return folder


@cache
def engine(folder: Path, dtype: str = "float32") -> TorchEngine:
    return TorchEngine(open_checkpoint(folder), device="cpu", dtype=dtype)


@cache
def tokenizer(golden: Golden) -> Tokenizer:
    return Tokenizer.from_folder(golden.folder).reading("parse")


def recipe(golden: Golden, run: dict[str, Any]) -> Recipe:
    instruction = run["options"].get("prompt", run["options"].get("instruction"))
    return recipe_for(open_checkpoint(golden.folder).config).instructed(instruction)


def rows_of(golden: Golden, run: dict[str, Any]) -> list[Row]:
    read, options = recipe(golden, run), run["options"]
    limits = Limits(
        max_length=options.get("max_length", read.default_length),
        max_query_length=options.get("query_max_length"),
        truncation=read.truncation,
    )
    return [read.rows(tokenizer(golden), query, [passage], limits)[0] for query, passage in golden.pairs]


def options_of(run: dict[str, Any]) -> Run:
    if "layers_of_the_outputs" not in run:
        return Run()
    layers = run["options"].get("compress_layers")
    return Run(
        cutoff_layers=tuple(run["layers_of_the_outputs"]),
        compress_ratio=run["options"].get("compress_ratio"),
        compress_layers=None if layers is None else tuple(layers),
    )


def expected(golden: Golden, run: dict[str, Any]) -> Any:
    figures = np.array(run["single"]).reshape(-1, len(golden.pairs)).T
    if run["options"].get("normalize"):
        return np.log(figures / (1 - figures)) + recipe(golden, run).midpoint
    return figures


@runs
def test_token_ids_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    rows = rows_of(golden, run)
    inputs = golden.inputs[run["inputs"]]
    assert [row.ids for row in rows] == inputs["input_ids"]
    if "query_lengths" in inputs:
        assert [row.passage[0] for row in rows] == inputs["query_lengths"]
        assert [len(row) - row.passage[1] for row in rows] == inputs["prompt_lengths"]


@runs
def test_float32_scores_equal_the_reference(golden: Golden, run: dict[str, Any], eager_folder: Path) -> None:
    model = engine(eager_folder if "eager" in run["reference"] else golden.folder)
    rows, options = rows_of(golden, run), options_of(run)
    together = model.run(rows, options)
    # An unsorted list of layers gets the heads of other layers in FlagEmbedding; here each layer has its own.
    mixed = golden.name == "minicpm-layerwise" and "not sorted" in run["name"]
    outputs = [1] if mixed else list(range(together.shape[1]))
    assert together[:, outputs] == pytest.approx(expected(golden, run)[:, outputs], abs=TOLERANCE[golden.name])
    alone = np.concatenate([model.run([row], options) for row in rows[::5]])
    assert alone == pytest.approx(together[::5], abs=2e-5)


@token_runs
@pytest.mark.slow
def test_bfloat16_stays_near_and_keeps_clear_orders(golden: Golden, run: dict[str, Any]) -> None:
    scores = engine(golden.folder, "bfloat16").run(rows_of(golden, run), Run())[:, 0]
    want = expected(golden, run)[:, 0]
    tolerance = 0.05 * (want.max() - want.min())
    assert scores == pytest.approx(want, abs=tolerance)
    clear = want[:, None] - want[None, :] > 2 * tolerance
    assert (scores[:, None] > scores[None, :])[clear].all()
