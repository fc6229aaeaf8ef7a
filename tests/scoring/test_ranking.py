"""rank(cognitive=...): off it changes no bit, on it orders what is near and shows every term."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from secondpass import Calibration, Document, Reranker
from secondpass.cognitive import Cognitive
from tests.checkpoints import tiny_bert

QUERY = "which river is long"
NOW = "2026-11-28T00:00:00"
OLD, NEW = {"created": "2020-01-01"}, {"created": "2026-11-27"}


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reranker]:
    # A calibration under which all are near to even chances, so that the gate is open.
    yield Reranker(
        tiny_bert(tmp_path_factory.mktemp("tiny")),
        dtype="float32",
        device="cpu",
        calibration=Calibration(slope=0.001, intercept=0.5),
    )


def documents() -> list[Document]:
    texts = ["the river is long", "a bridge", "winter light on the water"]
    return [Document(text, fields) for text in texts for fields in (OLD, NEW, {})]


def test_without_it_nothing_changes(reranker: Reranker) -> None:
    plain = reranker.rank(QUERY, [document.text for document in documents()])
    with_fields = reranker.rank(QUERY, documents(), cognitive=None)
    assert [(hit.index, hit.score, hit.probability, hit.parts) for hit in plain] == [
        (hit.index, hit.score, hit.probability, hit.parts) for hit in with_fields
    ]


def test_newer_documents_come_first_and_keep_their_scores(reranker: Reranker) -> None:
    ranking = reranker.rank(QUERY, documents(), cognitive=Cognitive(now=NOW))
    fields = [hit.document.fields for hit in ranking]
    assert fields == [NEW] * 3 + [{}] * 3 + [OLD] * 3
    assert [hit.rank for hit in ranking] == list(range(1, 10))
    scores = reranker.score(QUERY, documents())
    for hit in ranking:
        assert hit.score == scores[hit.index]
        assert hit.parts is not None
        assert hit.parts["relevance"] == pytest.approx(0.001 * hit.score + 0.5)
        assert hit.parts["final"] == pytest.approx(float(hit.parts["relevance"]) + float(hit.parts["evidence"]))
    assert [hit.probability for hit in ranking] == sorted((hit.probability for hit in ranking), reverse=True)


def test_the_first_are_chosen_after_the_evidence(reranker: Reranker) -> None:
    ranking = reranker.rank(QUERY, documents(), top_n=3, cognitive={"now": NOW})
    assert [hit.document.fields for hit in ranking] == [NEW] * 3
    usual = [hit.index for hit in reranker.rank(QUERY, documents(), cognitive=True)]
    assert [hit.index for hit in reranker.rank(QUERY, documents(), top_n=3, cognitive={})] == usual[:3]


def test_what_cannot_be_read_is_named(reranker: Reranker) -> None:
    with pytest.raises(ValueError, match=r"documents\[1\]: created is 'soon'"):
        reranker.rank(QUERY, ["a", Document("b", {"created": "soon"})], cognitive=True)
    with pytest.raises(ValueError, match="cognitive has no 'recancy'"):
        reranker.rank(QUERY, ["a"], cognitive={"recancy": 1})
    with pytest.raises(ValueError, match="early_exit settles"):
        reranker.rank(QUERY, ["a"], cognitive=True, early_exit=1.0)
