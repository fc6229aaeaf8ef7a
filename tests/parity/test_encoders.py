"""Encoder cross-encoders against the figures of sentence-transformers and FlagEmbedding."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from secondpass import Reranker
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.engine.cpu.threads import this_processor
from secondpass.text.families import recipe_for
from secondpass.text.recipe import Limits
from secondpass.text.tokenizer import Tokenizer
from tests.goldens import Golden, golden_runs

GOLDENS = (
    "bert-cross-encoder",
    "xlm-roberta-cross-encoder",
    "xlm-roberta-cross-encoder-8k",
    "modernbert-cross-encoder",
    "modernbert-cross-encoder-cls",
    "gte-new-cross-encoder",
    "deberta-v2-cross-encoder",
)
TRUNCATION = {"FlagEmbedding": "only_second"}  # every other reference cuts the longest first
# bfloat16 weights alone move the scores of these checkpoints by this much: their random weights are large
BF16_TOLERANCE = {
    "bert-cross-encoder": 0.2,
    # where bfloat16 is emulated, each operator rounds
    "gte-new-cross-encoder": 0.1 if this_processor().bf16 is None else 0.075,
    "modernbert-cross-encoder": 0.25,
    "modernbert-cross-encoder-cls": 0.15,
    "deberta-v2-cross-encoder": 0.2,
}
INT8_TOLERANCE = 0.6
# How far a pair alone may be from the same pair beside others: kernels for other shapes sum in another order
# A code of int8 is rounded anew for a last bit of bfloat16, and the random weights of these checkpoints carry it far.
ALONE = {"float32": 1e-5, "bfloat16": 0.1, "int8": 0.2}

runs = pytest.mark.parametrize(("golden", "run"), golden_runs(*GOLDENS))
longest_runs = pytest.mark.parametrize(("golden", "run"), [golden_runs(name)[-1] for name in GOLDENS])


@cache
def reranker(golden: Golden, dtype: str, max_query_length: int | None) -> Reranker:
    return Reranker(
        golden.folder, dtype=dtype, device="cpu", max_query_length=max_query_length, special_tokens="parse"
    )


def options(run: dict[str, Any]) -> dict[str, Any]:
    truncation = TRUNCATION.get(run["reference"], "longest_first")
    return {"max_length": run["options"]["max_length"], "truncation": truncation}


@runs
def test_token_ids_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_folder(golden.folder).reading("parse")
    recipe = recipe_for(open_checkpoint(golden.folder).config)
    limits = Limits(**options(run), max_query_length=run["options"].get("query_max_length"))
    rows = [recipe.rows(tokenizer, query, [passage], limits)[0] for query, passage in golden.pairs]
    expected = golden.inputs[run["inputs"]]
    assert [row.ids for row in rows] == expected["input_ids"]
    types = [[int(place >= row.passage[0]) for place in range(len(row))] for row in rows]
    if any(1 in row for row in expected.get("token_type_ids", [])):
        assert types == expected["token_type_ids"]


@cache
def scores(golden: Golden, dtype: str, max_query_length: int | None, max_length: int, truncation: str) -> list[float]:
    """All pairs in one call; runs of two references with the same options are computed once."""
    model = reranker(golden, dtype, max_query_length)
    return model.score_pairs(golden.pairs, max_length=max_length, truncation=truncation)


@pytest.mark.promise(
    "docs/scores.md", "In float32, the same token ids and the same scores as each family's own reference code"
)
@runs
def test_float32_scores_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    together = scores(golden, "float32", run["options"].get("query_max_length"), **options(run))
    assert together == pytest.approx(run["single"], abs=1e-4)


@longest_runs
@pytest.mark.parametrize("dtype", [d if d == "float32" else pytest.param(d, marks=pytest.mark.slow) for d in ALONE])
def test_a_pair_alone_scores_as_it_does_together(golden: Golden, run: dict[str, Any], dtype: str) -> None:
    query_length = run["options"].get("query_max_length")
    model = reranker(golden, dtype, query_length)
    alone = [model.score_pairs([pair], **options(run))[0] for pair in golden.pairs]
    assert alone == pytest.approx(scores(golden, dtype, query_length, **options(run)), abs=ALONE[dtype])


@runs
@pytest.mark.slow
def test_bfloat16_stays_near_and_keeps_clear_orders(golden: Golden, run: dict[str, Any]) -> None:
    check_near(golden, run, "bfloat16", BF16_TOLERANCE.get(golden.name, 0.075))


@longest_runs
def test_int8_stays_near_and_keeps_clear_orders(golden: Golden, run: dict[str, Any]) -> None:
    check_near(golden, run, "int8", INT8_TOLERANCE)


def check_near(golden: Golden, run: dict[str, Any], dtype: str, tolerance: float) -> None:
    found = scores(golden, dtype, run["options"].get("query_max_length"), **options(run))
    assert found == pytest.approx(run["single"], abs=tolerance)
    for i, left in enumerate(run["single"]):
        for j, right in enumerate(run["single"]):
            if left - right > 2 * tolerance:
                assert found[i] > found[j]
