"""ColBERTv2 against the figures of colbert-ai and PyLate."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

from secondpass import ColBERT
from tests.goldens import Golden, golden_runs

OPTIONS = {
    "doc_maxlen": "max_length",
    "query_maxlen": "max_query_length",
    "attend_to_mask_tokens": "attends_to_masks",
}

runs = pytest.mark.parametrize(("golden", "run"), golden_runs("colbertv2"))


@cache
def colbert(golden: Golden, name: str, dtype: str = "float32") -> ColBERT:
    run = next(run for run in golden.runs if run["name"] == name)
    options = {OPTIONS[key]: value for key, value in run["options"].items()}
    return ColBERT(golden.folder, dtype=dtype, device="cpu", special_tokens="parse", **options)


@runs
def test_token_ids_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    model, inputs = colbert(golden, run["name"]), golden.inputs[run["inputs"]]
    rows, visible = model._query_rows([query for query, _ in golden.pairs])
    assert [row.ids for row in rows] == inputs["query_ids"]
    if not model._attends_to_masks:
        assert visible == [sum(mask) for mask in inputs["query_attention_mask"]]
    vectors, document_rows, _ = model._read([passage for _, passage in golden.pairs])
    assert [row.ids for row in document_rows] == inputs["doc_ids"]
    assert vectors.lengths.tolist() == [sum(kept) for kept in inputs["doc_kept"]]


@runs
def test_scores_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    model = colbert(golden, run["name"])
    queries = {query: model.encode([p for q, p in golden.pairs if q == query]) for query, _ in golden.pairs}
    left = {query: iter(model.score(query, vectors)) for query, vectors in queries.items()}
    scores = [next(left[query]) for query, _ in golden.pairs]
    assert scores == pytest.approx(run["single"], abs=1e-4)
    literal = next(i for i, (query, _) in enumerate(golden.pairs) if "[SEP]" in query)
    pylate = [score for i, score in enumerate(run["pylate_single"]) if i != literal]
    assert [score for i, score in enumerate(scores) if i != literal] == pytest.approx(pylate, abs=1e-4)


@runs
def test_one_query_against_all_equals_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    model = colbert(golden, run["name"])
    query, passages = golden.pairs[0][0], [passage for _, passage in golden.pairs]
    together = model.score(query, passages)
    assert together == pytest.approx(run["query_0_against_all_passages"], abs=1e-4)
    if run is golden.runs[0]:
        assert [model.score(query, [p])[0] for p in passages] == pytest.approx(together, abs=1e-5)


@runs
def test_vectors_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    if "query_0_vectors" not in run:
        return
    model = colbert(golden, run["name"])
    query, passage = golden.pairs[0]
    np.testing.assert_allclose(model.encode_queries([query])[0], run["query_0_vectors"], atol=1e-5)
    kept = np.array(golden.inputs[run["inputs"]]["doc_kept"][0], bool)
    vectors = np.array(run["passage_0_vectors"])[kept]
    np.testing.assert_allclose(model.encode([passage]).vectors, vectors, atol=1e-5)


@runs
def test_skipped_tokens_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    figures = json.loads((golden.folder / "expected.json").read_text("utf-8"))
    assert set(colbert(golden, run["name"])._skipped.tolist()) == {0, *figures["skiplist_ids"]}


@runs
def test_bfloat16_stays_near(golden: Golden, run: dict[str, Any]) -> None:
    if run is not golden.runs[0]:
        return
    model = colbert(golden, run["name"], "bfloat16")
    scores = model.score(golden.pairs[0][0], [passage for _, passage in golden.pairs])
    assert scores == pytest.approx(run["query_0_against_all_passages"], abs=0.2)
