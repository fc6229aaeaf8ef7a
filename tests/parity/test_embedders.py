"""Embedders against the figures of sentence-transformers, nomic's own code and FlagEmbedding."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from secondpass import Embedder
from secondpass.embedder import MODES, lexical_score
from tests.goldens import Golden, golden_runs

DENSE = ("bert-embedder-mean", "bert-embedder-cls", "nomic-bert-embedder")
SEPARATE = {"query": "query", "passage": "document"}
# Only an embedder of this folder's name would have its prompt from the table: it is given.
BGE = {"bert-embedder-cls": {"query": "Represent this sentence for searching relevant passages: "}}
# Pairs scored in every mode: short, equal texts with many shared tokens, an empty passage.
MODES_OF = (0, 8, 9)

dense_runs = pytest.mark.parametrize(("golden", "run"), golden_runs(*DENSE))
m3_runs = pytest.mark.parametrize(("golden", "run"), golden_runs("bge-m3"))


@cache
def embedder(golden: Golden, max_length: int, **options: Any) -> Embedder:
    return Embedder(
        golden.folder,
        special_tokens="parse",
        dtype="float32",
        device="cpu",
        max_length=max_length,
        prompts=BGE.get(golden.name),
        **options,
    )


@cache
def expected(golden: Golden) -> dict[str, Any]:
    return dict(json.loads((golden.folder / "expected.json").read_text("utf-8")))


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def texts(golden: Golden, side: str) -> list[str]:
    return [pair[side == "passage"] for pair in golden.pairs]


@cache
def vectors(golden: Golden, max_length: int, side: str) -> NDArray[Any]:
    return embedder(golden, max_length).encode(texts(golden, side), kind=SEPARATE[side])


def cosines(query: NDArray[Any], passage: NDArray[Any]) -> list[float]:
    scores: list[float] = (unit(query) * unit(passage)).sum(axis=1).tolist()
    return scores


@dense_runs
def test_token_ids_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    model = embedder(golden, run["options"]["max_length"])
    inputs = golden.inputs[run["inputs"]]
    for side, kind in SEPARATE.items():
        rows = model._rows(texts(golden, side), kind)
        assert [row.ids for row in rows] == inputs[f"{side}_ids"]


@dense_runs
def test_cosines_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    max_length = run["options"]["max_length"]
    found = cosines(vectors(golden, max_length, "query"), vectors(golden, max_length, "passage"))
    assert found == pytest.approx(run["single"], abs=1e-5)
    query, passage = golden.pairs[0]
    assert embedder(golden, max_length).score(query, [passage]) == pytest.approx(run["single"][:1], abs=1e-5)


@dense_runs
def test_vectors_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    names = {"query_vectors": "query", "mean_pooled_query": "query"}
    names |= {"passage_vectors": "passage", "mean_pooled_passage": "passage"}
    for name in names.keys() & run.keys():
        found = vectors(golden, run["options"]["max_length"], names[name])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, run[name], atol=1e-4)


@dense_runs
def test_matryoshka_dimensions_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    max_length = run["options"]["max_length"]
    for cut in run.get("matryoshka", []):
        model = embedder(golden, max_length, dimension=cut["dim"])
        query, passage = (model._finished(vectors(golden, max_length, side)) for side in SEPARATE)
        assert cosines(query, passage) == pytest.approx(cut["single"], abs=1e-5)
        np.testing.assert_allclose(model.encode([golden.pairs[0][0]], kind="query")[0], cut["query_0"], atol=1e-5)
        np.testing.assert_allclose(model.encode([golden.pairs[0][1]])[0], cut["passage_0"], atol=1e-5)


@dense_runs
def test_alone_is_as_in_a_batch(golden: Golden, run: dict[str, Any]) -> None:
    if run is not golden.runs[0]:
        return
    model = embedder(golden, run["options"]["max_length"])
    together = vectors(golden, run["options"]["max_length"], "passage")
    alone = np.concatenate([model.encode([text]) for text in texts(golden, "passage")])
    np.testing.assert_allclose(alone, together, atol=1e-5)


@dense_runs
def test_bfloat16_stays_near(golden: Golden, run: dict[str, Any]) -> None:
    if run is not golden.runs[0]:
        return
    max_length = run["options"]["max_length"]
    model = Embedder(
        golden.folder,
        special_tokens="parse",
        dtype="bfloat16",
        device="cpu",
        max_length=max_length,
        prompts=BGE.get(golden.name),
    )
    query, passage = (model.encode(texts(golden, side), kind=kind) for side, kind in SEPARATE.items())
    assert cosines(query, passage) == pytest.approx(run["single"], abs=0.03)


@dense_runs
def test_lower_case_before_special_tokens_is_the_old_reference(golden: Golden, run: dict[str, Any]) -> None:
    old = expected(golden).get("sentence_transformers_4_1_0_special_literals", {})
    if run["name"] not in old:
        return
    model = embedder(golden, run["options"]["max_length"], has_lowered_case=True)
    query, passage = next(pair for pair in golden.pairs if "[SEP]" in pair[0])
    assert model.score(query, [passage]) == pytest.approx([old[run["name"]]], abs=1e-5)


@m3_runs
def test_all_scores_of_bge_m3_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    options = run["options"]
    model = embedder(
        golden,
        options["max_passage_length"],
        max_query_length=options["max_query_length"],
        weights=tuple(options.get("weights_for_different_modes", (1, 1, 1))),
    )
    scores = [model.score(query, [passage])[0] for query, passage in golden.pairs]
    assert scores == pytest.approx(run["single"]["colbert+sparse+dense"], abs=1e-4)
    for mode in MODES.keys() | run["single"].keys():
        for index in MODES_OF:
            query, passage = golden.pairs[index]
            assert model.score(query, [passage], mode=mode) == pytest.approx([run["single"][mode][index]], abs=1e-4)


@m3_runs
def test_encoded_texts_of_bge_m3_equal_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    if run is not golden.runs[0]:
        return
    blocks = expected(golden)["encode"]
    whole = [entry["text"] for entry in blocks[1]["texts"]]
    for block in blocks:
        entries = block["texts"]
        # the first block cites its texts, all of them longer than the citation
        found = [next(t for t in whole if t == e["text"] or (e["text"] and t.startswith(e["text"]))) for e in entries]
        model = embedder(golden, block["max_length"])
        assert [row.ids for row in model._rows(found, "document")] == [e["input_ids"] for e in entries]
        dense = [entry["dense"] for entry in entries]
        np.testing.assert_allclose(model.encode(found), dense, atol=1e-4)
        for weights, entry in zip(model.sparse(found), entries, strict=True):
            assert {str(t): w for t, w in weights.items()} == pytest.approx(entry["lexical_weights"], abs=1e-4)
        for vectors, entry in zip(model.multi_vector(found), entries, strict=True):
            assert list(vectors.shape) == entry["colbert_shape"]
            np.testing.assert_allclose(vectors.sum(axis=0), entry["colbert_sum_over_tokens"], atol=1e-4)
            cited = vectors if "colbert_vecs" in entry else vectors[[0, -1]]
            np.testing.assert_allclose(cited, entry.get("colbert_vecs", entry.get("colbert_first_last")), atol=1e-4)


@m3_runs
def test_lexical_matching_equals_the_reference(golden: Golden, run: dict[str, Any]) -> None:
    if run is not golden.runs[0]:
        return
    figures = expected(golden)["lexical_matching"]
    model = embedder(golden, 512)
    for index, score in zip(figures["pairs_of_pairs_json"], figures["compute_lexical_matching_score"], strict=True):
        query, passage = model.sparse(golden.pairs[index])
        assert lexical_score(query, passage) == pytest.approx(score, abs=1e-4)


@m3_runs
def test_a_batch_does_not_change_colbert_scores(golden: Golden, run: dict[str, Any]) -> None:
    """FlagEmbedding's do: its padding takes part in the maxima. Ours equal `single` in any company."""
    if run is not golden.runs[0]:
        return
    model = embedder(golden, 512, mode="colbert")
    query = golden.pairs[0][0]
    together = model.score(query, texts(golden, "passage"))
    assert together == pytest.approx([model.score(query, [t])[0] for t in texts(golden, "passage")], abs=1e-5)
