"""What applications with a reranker setting send, and what they look for in the answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.dialects.answers import answer

DOCUMENTS = ["a", "b", "c"]
LOGITS = (0.0, 3.0, -3.0)


def test_open_webui_finds_every_index() -> None:
    """It sorts the results by index and takes them for the scores of its documents."""
    body = {"model": "m", "query": "q", "documents": DOCUMENTS, "top_n": len(DOCUMENTS)}
    results = sorted(answer("/v1/rerank", body, *LOGITS).body["results"], key=lambda result: result["index"])
    assert [result["index"] for result in results] == [0, 1, 2]
    assert [result["relevance_score"] for result in results] == pytest.approx([0.5, 0.9525741, 0.0474259])


@pytest.mark.parametrize(("path", "best"), [("/v1/rerank", 0.9525741), ("/logits/v1/rerank", 3.0)])
def test_dify_finds_texts_and_scores(path: str, best: float) -> None:
    """Its OpenAI-compatible provider applies a sigmoid: below /logits that gives the probability."""
    body = {"model": "m", "query": "q", "documents": DOCUMENTS, "top_n": 2, "return_documents": True}
    results = answer(path, body, *LOGITS).body["results"]
    assert [result["document"]["text"] for result in results] == ["b", "a"]
    assert results[0]["relevance_score"] == pytest.approx(best)


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/rerank", {"model": "jina-reranker-v2-base-multilingual", "return_documents": True}),
        ("/v2/rerank", {"model": "rerank-v3.5"}),
    ],
)
def test_librechat_finds_jinas_or_coheres_results(path: str, more: dict[str, Any]) -> None:
    body = {"query": "q", "documents": DOCUMENTS, "top_n": 3, **more}
    results = answer(path, body, *LOGITS).body["results"]
    assert [result["index"] for result in results] == [1, 0, 2]
    assert [result["relevance_score"] for result in results] == pytest.approx([0.9525741, 0.5, 0.0474259])
    assert [result["document"]["text"] for result in results if "document" in result] in ([], ["b", "a", "c"])


@pytest.mark.parametrize("more", [{}, {"model": "default", "top_n": 3}])
def test_openclaws_plugins_find_a_probability_for_each_document(more: dict[str, Any]) -> None:
    """Ours sends no model and no number; memory-lancedb-pro, as of Jina, mixes the probability with its own score."""
    results = answer("/v1/rerank", {"query": "q", "documents": DOCUMENTS, **more}, *LOGITS).body["results"]
    assert {result["index"]: result["relevance_score"] for result in results} == pytest.approx(
        {0: 0.5, 1: 0.9525741, 2: 0.0474259}
    )
