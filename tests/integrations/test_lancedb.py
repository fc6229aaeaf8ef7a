from __future__ import annotations

from pathlib import Path

import pytest

lancedb = pytest.importorskip("lancedb")
import pyarrow as pa
from lancedb.index import FTS

from secondpass import Reranker
from secondpass.integrations import open_embedder, vectors_of
from secondpass.integrations.lancedb import SecondpassReranker
from tests.integrations.question import ANSWER, PASSAGES, QUERY, assert_best_first

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> object:
    vectors = vectors_of(open_embedder(), PASSAGES, "document")
    rows = [{"text": text, "vector": vector} for text, vector in zip(PASSAGES, vectors, strict=True)]
    made = lancedb.connect(str(tmp_path_factory.mktemp("lance"))).create_table("house", rows)
    made.create_index("text", config=FTS())
    return made


@pytest.fixture(scope="module")
def vector() -> list[float]:
    return vectors_of(open_embedder(), [QUERY], "query")[0]


@pytest.mark.parametrize("return_score", ["relevance", "all"])
def test_vector_full_text_and_hybrid_queries(table: object, vector: list[float], return_score: str) -> None:
    reranker = SecondpassReranker(return_score=return_score)
    by_vector = table.search(vector).limit(5).rerank(reranker, query_string=QUERY).to_list()
    assert_best_first([row["text"] for row in by_vector], [row["_relevance_score"] for row in by_vector], 5)
    assert ("_distance" in by_vector[0]) == (return_score == "all")
    by_text = table.search("tap dripping", query_type="fts").limit(5).rerank(reranker).to_list()
    hybrid = table.search(query_type="hybrid").vector(vector).text(QUERY).limit(5).rerank(reranker).to_list()
    assert by_text[0]["text"] == hybrid[0]["text"] == ANSWER


def test_a_row_without_text_comes_last_without_a_score() -> None:
    rows = pa.table({"text": ["", ANSWER], "_distance": [0.1, 0.2]})
    found = SecondpassReranker().rerank_vector(QUERY, rows)
    assert found["text"].to_pylist() == [ANSWER, ""] and found["_relevance_score"].to_pylist()[1] is None


def test_opened_rankers_raw_scores_and_wrong_columns(table: object, vector: list[float], tmp_path: Path) -> None:
    reranker = SecondpassReranker(scorer=Reranker(), raw_scores=True)
    rows = table.search(vector).limit(5).rerank(reranker, query_string=QUERY).to_list()
    expected = {hit.document.text: hit.score for hit in Reranker().rank(QUERY, PASSAGES)}
    assert {row["text"]: row["_relevance_score"] for row in rows} == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"no column 'content'.*text"):
        table.search(vector).rerank(SecondpassReranker(column="content"), query_string=QUERY).to_list()
