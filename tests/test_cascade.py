"""A cascade: the large model has the last word on the head of the small one's list."""

from __future__ import annotations

from typing import Any

import pytest

from secondpass import Cascade, Document, Reranker
from tests.checkpoints import tiny_bert

QUERY = "which river is long"
TEXTS = [f"the river is long {'water ' * (n % 5)}{n}" for n in range(12)]


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    small, large = (
        tiny_bert(tmp_path_factory.mktemp(name), seed=seed) for name, seed in (("small", 0), ("large", 1))
    )
    small, large = (Reranker(model, dtype="float32", device="cpu") for model in (small, large))
    return Cascade(small, large, keep=4)


def test_the_head_is_the_large_models_and_the_tail_the_small_ones(cascade: Cascade) -> None:
    by_small = cascade.small.rank(QUERY, TEXTS)
    large = cascade.large.score(QUERY, TEXTS)
    ranking = cascade.rank(QUERY, TEXTS)
    head = [hit.index for hit in by_small[:4]]
    assert [hit.index for hit in ranking[:4]] == sorted(head, key=lambda i: -large[i])
    assert [hit.score for hit in ranking[:4]] == pytest.approx(
        sorted((large[i] for i in head), reverse=True), abs=1e-5
    )
    assert [hit.index for hit in ranking[4:]] == [hit.index for hit in by_small[4:]]
    assert [hit.parts["stage"] for hit in ranking if hit.parts] == [2] * 4 + [1] * 8
    assert [hit.rank for hit in ranking] == list(range(1, 13))
    assert ranking.usage.rows == 16


def test_scores_sort_as_the_ranking(cascade: Cascade) -> None:
    scores = cascade.score(QUERY, TEXTS)
    order = sorted(range(12), key=lambda i: -scores[i])
    assert order == [hit.index for hit in cascade.rank(QUERY, TEXTS)]


def test_what_has_nothing_to_read_has_a_score_below_all_others(cascade: Cascade) -> None:
    texts = ["", *TEXTS, " "]
    scores = cascade.score(QUERY, texts)
    assert sorted(range(14), key=lambda i: -scores[i]) == [hit.index for hit in cascade.rank(QUERY, texts)]
    assert scores[0] == scores[13] == min(scores[1:13]) - 1
    assert cascade.score(QUERY, [""]) == [0.0]


def test_documents_come_back_untouched(cascade: Cascade) -> None:
    documents = [Document(text, {"id": place}) for place, text in enumerate(TEXTS)]
    assert all(hit.document is documents[hit.index] for hit in cascade.rank(QUERY, documents, top_n=6))


def test_no_documents(cascade: Cascade) -> None:
    assert list(cascade.rank(QUERY, [])) == []
    assert cascade.score(QUERY, []) == []


def test_a_budget_is_for_both(cascade: Cascade) -> None:
    cascade.warm_up()
    ranking = cascade.rank(QUERY, TEXTS, budget_ms=60_000)
    assert ranking.usage.unscored == 0
    assert [hit.index for hit in ranking] == [hit.index for hit in cascade.rank(QUERY, TEXTS)]
    short = cascade.rank(QUERY, TEXTS, budget_ms=0.6)
    assert [hit.index for hit in short] == list(range(12))
    assert short.usage.unscored == 11  # the first one is scored in any case


def test_what_is_superseded_is_last_and_the_newest_of_a_subject_first_in_both(cascade: Cascade) -> None:
    best = [hit.index for hit in cascade.small.rank(QUERY, TEXTS)]
    dated = {place: {"created": f"2026-11-{10 + place}", "subject": "river"} for place in (best[0], best[-1])}
    newest = max(dated)
    replaced = {place: {"superseded": True} for place in best[1:4]}
    documents = [Document(text, {**dated, **replaced}.get(place, {})) for place, text in enumerate(TEXTS)]
    found = [
        hit.index for hit in cascade.rank(QUERY, documents, cognitive={"now": "2026-11-28", "min_probability": 0})
    ]
    assert set(found[-3:]) == set(replaced)
    assert newest in found[:4]


@pytest.mark.parametrize("keep", [0, 2.5, "2"])
def test_keep_is_a_whole_number_of_one_or_more(cascade: Cascade, keep: Any) -> None:
    with pytest.raises(ValueError, match=f"keep is {keep!r}"):
        Cascade(small=cascade.small, large=cascade.large, keep=keep)
