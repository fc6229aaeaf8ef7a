from __future__ import annotations

import asyncio
import os

import pytest

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
pytest.importorskip("haystack")
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from haystack_integrations.components.embedders.secondpass import SecondpassDocumentEmbedder, SecondpassTextEmbedder
from haystack_integrations.components.rankers.secondpass import SecondpassRanker
from secondpass import Reranker
from tests.integrations.question import ANSWER, PASSAGES, QUERY, assert_best_first

pytestmark = pytest.mark.clients
DOCUMENTS = [Document(content=text, meta={"title": "house"}) for text in PASSAGES]


def test_runs_without_and_with_warm_up_and_async_alike() -> None:
    ranker = SecondpassRanker(top_k=3)
    found = ranker.run(query=QUERY, documents=DOCUMENTS)["documents"]
    assert_best_first([d.content for d in found], [d.score for d in found], 3)
    ranker.warm_up()
    assert asyncio.run(ranker.run_async(query=QUERY, documents=DOCUMENTS))["documents"] == found
    assert [document.score for document in DOCUMENTS] == [None] * len(DOCUMENTS)
    assert ranker.run(query=QUERY, documents=[]) == {"documents": []}


def test_options_of_a_call_win_over_those_of_the_constructor() -> None:
    ranker = SecondpassRanker(top_k=1, meta_fields_to_embed=["title"])
    raw = ranker.run(query=QUERY, documents=DOCUMENTS, top_k=5, scale_score=False)["documents"]
    read = ["house\n" + text for text in PASSAGES]
    expected = {hit.document.text: hit.score for hit in Reranker().rank(QUERY, read)}
    assert {"house\n" + d.content: d.score for d in raw} == expected
    assert ranker.run(query=QUERY, documents=DOCUMENTS, score_threshold=1.01)["documents"] == []


def test_doubled_documents_are_ranked_once_and_empty_ones_named() -> None:
    assert len(SecondpassRanker().run(query=QUERY, documents=DOCUMENTS + DOCUMENTS)["documents"]) == len(DOCUMENTS)
    empty = Document(content=None, meta={"title": "picture"})
    with pytest.raises(ValueError, match=f"{empty.id}.*no content"):
        SecondpassRanker().run(query=QUERY, documents=[empty])
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="top_k must be > 0"):
            SecondpassRanker(top_k=wrong)
        with pytest.raises(ValueError, match="top_k must be > 0"):
            SecondpassRanker().run(query=QUERY, documents=DOCUMENTS, top_k=wrong)


def test_a_document_of_blanks_comes_last_without_a_score() -> None:
    found = SecondpassRanker().run(query=QUERY, documents=[Document(content=" "), Document(content=ANSWER)])[
        "documents"
    ]
    assert [document.content for document in found] == [ANSWER, " "] and found[-1].score is None


def test_to_dict_has_the_parameters_and_nothing_else() -> None:
    state = SecondpassRanker(top_k=3).to_dict()
    assert state == {
        "type": "haystack_integrations.components.rankers.secondpass.ranker.SecondpassRanker",
        "init_parameters": {
            "model": "auto",
            "device": "auto",
            "top_k": 3,
            "query_prefix": "",
            "query_suffix": "",
            "document_prefix": "",
            "document_suffix": "",
            "meta_fields_to_embed": [],
            "embedding_separator": "\n",
            "scale_score": True,
            "score_threshold": None,
            "max_length": None,
            "long_documents": "truncate",
        },
    }
    assert SecondpassRanker.from_dict(state).to_dict() == state


def test_pipelines_go_through_yaml_and_run_async() -> None:
    store = InMemoryDocumentStore()
    store.write_documents(DOCUMENTS)
    pipeline = Pipeline()
    pipeline.add_component("bm25", InMemoryBM25Retriever(store, top_k=5))
    pipeline.add_component("ranker", SecondpassRanker(top_k=2))
    pipeline.connect("bm25.documents", "ranker.documents")
    data = {"bm25": {"query": QUERY}, "ranker": {"query": QUERY}}
    assert pipeline.run(data)["ranker"]["documents"][0].content == ANSWER
    again = Pipeline.loads(pipeline.dumps())
    assert again.dumps() == pipeline.dumps()
    assert again.get_component("ranker").top_k == 2


def test_embedders_find_the_answer_and_leave_documents_as_they_were() -> None:
    embedded = SecondpassDocumentEmbedder().run(documents=DOCUMENTS)["documents"]
    assert all(document.embedding is None for document in DOCUMENTS)
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    store.write_documents(embedded)
    pipeline = Pipeline()
    pipeline.add_component("text", SecondpassTextEmbedder())
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
    pipeline.connect("text.embedding", "retriever.query_embedding")
    again = Pipeline.loads(pipeline.dumps())
    assert again.dumps() == pipeline.dumps()
    assert pipeline.run({"text": {"text": QUERY}})["retriever"]["documents"][0].content == ANSWER
    with pytest.raises(TypeError, match="SecondpassDocumentEmbedder"):
        SecondpassTextEmbedder().run(text=DOCUMENTS)
    with pytest.raises(TypeError, match="SecondpassTextEmbedder"):
        SecondpassDocumentEmbedder().run(documents=QUERY)
