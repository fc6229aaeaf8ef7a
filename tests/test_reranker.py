"""Reranker: what goes in, what comes out, and what it says to bad input."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from secondpass import Document, Reranker
from secondpass.errors import CheckpointError, EngineError, UnknownModel
from secondpass.text.documents import is_blank
from tests.checkpoints import tiny_bert

QUERY = "which river is long"
TEXTS = ["the river is long", "a bridge", "", "the river is long", "winter light on the water of the long river"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Iterator[Reranker]:
    yield Reranker(folder, dtype="float32", device="cpu")


def test_rank_is_sorted_by_score(reranker: Reranker) -> None:
    ranking = reranker.rank(QUERY, TEXTS)
    scores = reranker.score(QUERY, TEXTS)
    assert [hit.index for hit in ranking] == [*sorted((0, 1, 3, 4), key=lambda i: -scores[i]), 2]  # the blank last
    assert [hit.score for hit in ranking[:4]] == sorted((scores[i] for i in (0, 1, 3, 4)), reverse=True)
    assert [hit.rank for hit in ranking] == [1, 2, 3, 4, 5]


def test_probability_is_the_sigmoid_of_the_score(reranker: Reranker) -> None:
    for hit in reranker.rank(QUERY, TEXTS)[:4]:
        assert hit.probability == pytest.approx(1 / (1 + math.exp(-hit.score)))


@pytest.mark.promise("docs/scores.md", "identical documents in one call are scored once and get one score")
def test_equal_documents_keep_their_order_and_are_scored_once(reranker: Reranker) -> None:
    ranking = reranker.rank(QUERY, TEXTS)
    twins = [hit.index for hit in ranking if hit.document.text == TEXTS[0]]
    assert twins == [0, 3]
    assert ranking.usage.rows == 3


def test_no_documents_give_an_empty_ranking(reranker: Reranker) -> None:
    assert list(reranker.rank(QUERY, [])) == []
    assert reranker.score(QUERY, []) == []
    assert reranker.score_pairs([]) == []


def test_an_empty_text_is_scored(reranker: Reranker) -> None:
    assert {hit.index for hit in reranker.rank(QUERY, TEXTS)} == {0, 1, 2, 3, 4}
    assert math.isfinite(reranker.score("", [""])[0])


@pytest.mark.parametrize(("top_n", "length"), [(1, 1), (3, 3), (5, 5), (99, 5), (None, 5)])
def test_top_n(reranker: Reranker, top_n: int | None, length: int) -> None:
    assert len(reranker.rank(QUERY, TEXTS, top_n=top_n)) == length


def test_top_n_of_zero_is_refused(reranker: Reranker) -> None:
    with pytest.raises(ValueError, match="top_n is 0"):
        reranker.rank(QUERY, TEXTS, top_n=0)


def test_a_score_does_not_depend_on_the_batch(reranker: Reranker) -> None:
    texts = [f"{text} {'water ' * n}" for n, text in enumerate(TEXTS * 5)]
    alone = [reranker.score(QUERY, [text])[0] for text in texts]
    assert reranker.score(QUERY, texts) == pytest.approx(alone, abs=1e-5)
    assert reranker.score(QUERY, texts[::-1]) == pytest.approx(alone[::-1], abs=1e-5)


def test_a_small_token_budget_changes_nothing(folder: Path, reranker: Reranker) -> None:
    small = Reranker(folder, dtype="float32", device="cpu", token_budget=8)
    assert small.score(QUERY, TEXTS) == pytest.approx(reranker.score(QUERY, TEXTS), abs=1e-5)


def test_pairs_of_many_queries_equal_one_query_at_a_time(reranker: Reranker) -> None:
    queries = [QUERY, "bridge", QUERY, "", "light"]
    pairs = list(zip(queries, TEXTS, strict=True))
    each = [reranker.score(query, [text])[0] for query, text in pairs]
    assert reranker.score_pairs(pairs) == pytest.approx(each, abs=1e-5)


def test_documents_of_every_kind_come_back_untouched(reranker: Reranker) -> None:
    fields = {"text": "the river", "id": 7, "nested": {"a": [1]}}
    ranking = reranker.rank(QUERY, ["a bridge", Document("water", {"id": 8}), fields])
    by_index = {hit.index: hit.document for hit in ranking}
    assert by_index[0].text == "a bridge"
    assert by_index[1]["id"] == 8
    assert by_index[2].fields is fields
    assert by_index[2]["nested"] == {"a": [1]}


def test_rank_fields_are_read_as_lines_in_their_order(reranker: Reranker) -> None:
    document = {"title": "river", "text": "is long", "year": 1841}
    hit = reranker.rank(QUERY, [document], rank_fields=["year", "title"])[0]
    assert hit.score == pytest.approx(reranker.score(QUERY, ["year: 1841\ntitle: river"])[0], abs=1e-6)
    with pytest.raises(ValueError, match="none of the rank_fields"):
        reranker.rank(QUERY, [document], rank_fields=["body"])


@pytest.mark.parametrize("bad", [None, 3, 4.5, b"bytes", ["list"], object()])
def test_a_document_of_the_wrong_kind_is_named(reranker: Reranker, bad: Any) -> None:
    with pytest.raises(TypeError, match=r"documents\[1\] is"):
        reranker.rank(QUERY, ["fine", bad])


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["list"]])
def test_a_query_of_the_wrong_kind_is_named(reranker: Reranker, bad: Any) -> None:
    with pytest.raises(TypeError, match="query is"):
        reranker.rank(bad, ["fine"])


def test_one_string_is_not_a_list_of_documents(reranker: Reranker) -> None:
    with pytest.raises(TypeError, match="give a list"):
        reranker.rank(QUERY, "a single text")


def test_a_mapping_without_text_is_refused(reranker: Reranker) -> None:
    with pytest.raises(ValueError, match=r"documents\[0\] has no 'text' \(it has body\)"):
        reranker.rank(QUERY, [{"body": "x"}])


def test_an_empty_document_may_have_fields(reranker: Reranker) -> None:
    documents = [Document("", {"id": 1}), "a bridge", {"text": " ", "id": 2}]
    ranking = reranker.rank(QUERY, documents)
    assert [(hit.index, hit.is_scored) for hit in ranking] == [(1, True), (0, False), (2, False)]
    assert ranking.usage.unscored == 2
    assert ranking[1].document is documents[0]
    assert math.isfinite(reranker.score(QUERY, documents)[0])


def test_the_blank_are_last_without_the_model(reranker: Reranker) -> None:
    for texts in (["", "a"], ["\n", "a", "\u3000"], ["\ufeff", "a", "\u200b \x00"]):
        assert reranker.rank(QUERY, texts)[0].text == "a"
        assert reranker.rank(QUERY, texts, budget_ms=60_000)[0].text == "a"
    assert [hit.is_scored for hit in reranker.rank(QUERY, ["", " "])] == [False, False]
    assert reranker.rank(QUERY, ["", " "]).usage.rows == 0
    fields = [{"title": "", "text": " "}, {"title": None}, {"title": "a", "text": ""}, {"year": 0}]
    ranking = reranker.rank(QUERY, fields, rank_fields=["title", "text", "year"])
    assert {hit.index for hit in ranking if not hit.is_scored} == {0, 1}


def test_spans_with_rank_fields_count_in_what_was_read(folder: Path) -> None:
    reranker = Reranker(folder, dtype="float32", device="cpu", max_length=24, long_documents="chunk")
    document = {"title": "the river " * 20, "text": "a bridge " * 40}
    hit = reranker.rank(QUERY, [document], rank_fields=["title", "text"])[0]
    assert hit.span is not None
    assert hit.text == f"title: {document['title']}\ntext: {document['text']}"
    assert hit.score == pytest.approx(reranker.score(QUERY, [hit.text[slice(*hit.span)]])[0], abs=1e-5)
    assert hit.document.text == document["text"]


class DataFrame(list[str]):
    """Iterated as pandas' and polars' are: the names of the columns, as if these were the documents."""

    columns = ("text",)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda r: r.rank(QUERY, None), TypeError, "documents is None; give a list"),
        (lambda r: r.rank(QUERY, DataFrame(["text"])), TypeError, r"documents is a DataFrame; .*'text'\]\.tolist"),
        (lambda r: r.probability([1.0, 2.0]), TypeError, "score is a list; give a number; .* for a list"),
        (lambda r: r.probability(None), TypeError, "score is a NoneType; give a number"),
        (lambda r: r.rank(QUERY, ["a"], top_n="2"), TypeError, "top_n is a str; give a whole number"),
        (lambda r: r.rank(QUERY, ["a"], top_k=2), TypeError, "has no 'top_k'; here it is top_n"),
        (lambda r: r.rank(QUERY, [{"t": "a"}], rank_fields="t"), TypeError, r"rank_fields is a str; give .*\['t'\]"),
        (lambda r: r.rank(QUERY, ["a"], first_scores=[1.0]), ValueError, "without a budget all documents are scored"),
        (
            lambda r: r.rank(QUERY, ["a"], first_scores=[None], budget_ms=9),
            TypeError,
            "first_scores has what is no number .*; give one for each",
        ),
        (lambda r: r.score(QUERY, ["a"], max_length="9"), TypeError, "max_length is a str; give a whole number"),
        (lambda r: r.score_pairs(None), TypeError, "pairs is a NoneType; give a list of"),
        (lambda r: r.score_pairs([None]), TypeError, r"pairs\[0\] is None, not a \(query, document\) pair"),
        (lambda r: r.score_pairs((QUERY, "a")), TypeError, r"pairs\[0\] is a str, not .* give a list of pairs"),
        (lambda r: r.rank_many(QUERY, ["a"]), TypeError, "rank_many takes a list of queries"),
        (lambda r: r.rank_many([QUERY], []), ValueError, "1 queries and 0 lists"),
        (lambda r: r.rank_many(["a", None], [["b"], []]), TypeError, r"of queries\[1\], query is None"),
        (lambda r: r.rank_many(["a", "b"], [[], [None]]), TypeError, r"of queries\[1\], documents\[0\] is None"),
        (lambda r: r.rank_many(["a"], [(b.decode() for b in [b"\xff"])]), UnicodeDecodeError, "byte 0xff"),
        (lambda r: r.score(QUERY, ["a"], compress_ratio=1.5), TypeError, "compress_ratio is a float; give a whole"),
        (lambda r: r.score(QUERY, ["a"], compress_layers=2), TypeError, "compress_layers is a int; give a list"),
        (lambda r: r.score(QUERY, ["a"], cutoff_layer=[2]), TypeError, "cutoff_layer is a list; .* score_layers"),
        (lambda r: Reranker(instruction=3), TypeError, "instruction is a int; give a text"),  # type: ignore[arg-type]
        (lambda r: Reranker(123), TypeError, "model is a int; give 'default'"),  # type: ignore[arg-type]
        (lambda r: Reranker(use_fp16=True), TypeError, "here it is dtype="),  # type: ignore[call-arg]
        (lambda r: Reranker(token_budget="9"), TypeError, "token_budget is a str; give a whole number"),  # type: ignore[arg-type]
        (lambda r: Reranker(max_query_length=math.nan), TypeError, "max_query_length is a float; give a whole"),  # type: ignore[arg-type]
        (lambda r: Reranker(passage_cache_bytes="1GB"), TypeError, "passage_cache_bytes is a str; give a whole"),  # type: ignore[arg-type]
        (lambda r: Reranker(calibration=3), TypeError, "calibration is a int; give a Calibration, or the file"),  # type: ignore[arg-type]
    ],
)
def test_wrong_uses_are_refused_in_words(reranker: Reranker, call: Any, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        call(reranker)


def test_names_and_first_scores_may_come_from_iterators(reranker: Reranker) -> None:
    documents = [{"title": "the river", "text": "a"}, {"title": "a bridge", "text": "b"}]
    found = reranker.rank(QUERY, documents, rank_fields=iter(["title"]))  # type: ignore[arg-type]
    assert found.hits == reranker.rank(QUERY, documents, rank_fields=["title"]).hits
    scores = (score for score in (1.0, 2.0))
    timed = reranker.rank(QUERY, ["a", "the river"], first_scores=scores, budget_ms=1e-6)  # type: ignore[arg-type]
    assert [hit.index for hit in timed] == [1, 0]


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_field_that_a_table_has_nothing_in_is_not_read(reranker: Reranker, missing: float | None) -> None:
    documents = [{"title": missing, "text": "the river"}, {"text": "the river"}, {"title": missing, "text": ""}]
    ranking = reranker.rank(QUERY, documents, rank_fields=["title", "text"])
    assert [(hit.index, hit.text) for hit in ranking] == [(0, "text: the river"), (1, "text: the river"), (2, "")]
    assert ranking[0].score == ranking[1].score
    assert not ranking[2].is_scored


def test_many_queries_rank_as_one_by_one(reranker: Reranker) -> None:
    queries = [QUERY, "a bridge", QUERY, "light"]
    documents = [TEXTS, TEXTS[:2], TEXTS[3:], []]
    found = reranker.rank_many(queries, documents, top_n=2)
    for ranking, query, own in zip(found, queries, documents, strict=True):
        alone = reranker.rank(query, own, top_n=2)
        assert ranking.query == query
        assert [hit.index for hit in ranking] == [hit.index for hit in alone]
        assert [hit.score for hit in ranking] == pytest.approx([hit.score for hit in alone], abs=1e-5)


def test_a_ranking_as_plain_values(reranker: Reranker) -> None:
    ranking = reranker.rank(QUERY, [{"text": "the river", "id": 7}, ""], explain=True)
    again = json.loads(json.dumps(ranking.to_dict()))
    assert [hit["rank"] for hit in again["hits"]] == [1, 2]
    assert again["hits"][0]["fields"]["id"] == 7
    assert again["hits"][0]["parts"]["tokens"] > 5
    assert again["hits"][1]["score"] is None
    assert again["usage"]["rows"] == 1


@pytest.mark.promise("docs/scores.md", "are read as U+FFFD")
def test_lone_surrogates_and_null_bytes_are_read(reranker: Reranker) -> None:
    assert all(map(math.isfinite, reranker.score("a\ud800b", ["\udfff", "\x00", "x\x00y", "\u202e"])))


def test_an_unknown_option_is_a_type_error(folder: Path) -> None:
    with pytest.raises(TypeError):
        Reranker(folder, max_lenght=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "last"}, "truncation is 'last'"),
        ({"long_documents": "skip"}, "long_documents is 'skip'"),
        ({"engine": "tensorflow"}, "engine is 'tensorflow'"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": 10**6}, "max_length is 1000000"),
        ({"cutoff_layer": 3}, "cutoff_layer"),
        ({"max_length": 3}, "max_length is 3; what stands around the texts leaves no room"),
        ({"max_query_length": 0}, "max_query_length is 0"),
        ({"max_query_length": -2}, "max_query_length is -2"),
        ({"token_budget": 0}, "token_budget is 0"),
        ({"special_tokens": "forge"}, "special_tokens is 'forge'"),
    ],
)
def test_a_bad_option_is_refused_in_words(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reranker(folder, **options).score(QUERY, TEXTS)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Reranker(tmp_path)


def test_several_labels_are_refused(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path, num_labels=3)
    with pytest.raises(UnknownModel, match="3 labels"):
        Reranker(folder)


def test_scores_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    file = tiny_bert(tmp_path) / "model.safetensors"
    weights = load_file(file)
    weights["bert.pooler.dense.bias"] += 100  # every activation is 1, and the sum of the products overflows
    weights["classifier.weight"] = torch.zeros(1, 16)
    weights["classifier.weight"][0, :2] = 1.7e38
    weights["classifier.bias"] += 3e38
    save_file(weights, file)
    with pytest.raises(EngineError, match="not finite"):
        Reranker(tmp_path, dtype="float32", device="cpu").score(QUERY, TEXTS)


def test_arank_equals_rank(reranker: Reranker) -> None:
    async def together() -> list[Any]:
        return await asyncio.gather(*(reranker.arank(QUERY, TEXTS, top_n=2) for _ in range(4)))

    expected = reranker.rank(QUERY, TEXTS, top_n=2).hits
    assert all(ranking.hits == expected for ranking in asyncio.run(together()))


@pytest.mark.promise("docs/scores.md", "A pair's score does not depend on its company")
def test_many_threads_get_the_scores_of_one(reranker: Reranker) -> None:
    jobs = [(f"{QUERY} {n}", [f"{text} {n}" for text in TEXTS]) for n in range(64)]
    expected = [reranker.score(*job) for job in jobs]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda job: reranker.score(*job), jobs * 3))
    for got, want in zip(found, expected * 3, strict=True):
        assert got == pytest.approx(want, abs=1e-5)


def test_explain_says_what_was_read_and_cut(reranker: Reranker) -> None:
    hit = reranker.rank(QUERY, ["water " * 900], explain=True)[0]
    assert hit.parts is not None
    assert hit.parts["tokens"] == reranker.info().max_length
    assert hit.parts["passage_tokens_cut"] == 900 - (reranker.info().max_length - 3 - 4)


def test_windows_read_all_of_a_long_document(folder: Path) -> None:
    whole = Reranker(folder, dtype="float32", device="cpu", long_documents="chunk", max_length=32)
    text = ". ".join(f"water {'bridge ' * n}" for n in range(20)) + ". the river is long."
    for hit in whole.rank(QUERY, [text, "short"]):
        start, end = hit.span or (0, 0)
        part = hit.document.text[start:end]
        assert hit.score == pytest.approx(whole.score(QUERY, [part])[0], abs=1e-5)
    usage = whole.rank(QUERY, [text]).usage
    assert usage.rows > 5
    assert usage.truncated == 0


def test_progress_counts_every_row(reranker: Reranker) -> None:
    seen: list[tuple[int, int]] = []
    reranker.rank(QUERY, TEXTS, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)  # two are equal, one is blank


@pytest.mark.promise("docs/scores.md", "`info().dtype` and `info().reason` say what was chosen and why")
def test_info_says_what_it_runs_on(reranker: Reranker, folder: Path) -> None:
    info = reranker.info()
    assert (info.model, info.family, info.engine, info.dtype) == (str(folder), "bert", "torch", "float32")
    assert dict(info)["max_length"] == info.max_length


@given(st.lists(st.text(max_size=40), max_size=8), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_any_texts_make_a_sound_ranking(reranker: Reranker, texts: list[str], top_n: int) -> None:
    ranking = reranker.rank(QUERY, texts, top_n=top_n)
    assert len(ranking) == min(top_n, len(texts))
    scores = np.array([hit.score for hit in ranking if hit.is_scored])
    assert (np.diff(scores) <= 0).all()
    assert [hit.is_scored for hit in ranking] == sorted((not is_blank(hit.text) for hit in ranking), reverse=True)
    assert len({hit.index for hit in ranking}) == len(ranking)
