from __future__ import annotations

import asyncio
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

from secondpass import Reranker
from secondpass.integrations.llama_index import SecondpassEmbedding, SecondpassRerank, SecondpassRetriever
from secondpass.search.index import Index
from tests.integrations.question import ANSWER, PASSAGES, QUERY, assert_best_first

pytestmark = pytest.mark.clients


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in PASSAGES]


def test_ranks_sync_and_async_alike_and_leaves_the_nodes_as_they_were(nodes: list[NodeWithScore]) -> None:
    rerank = SecondpassRerank(top_n=3)
    kept = rerank.postprocess_nodes(nodes, query_str=QUERY)
    assert_best_first([node.text for node in kept], [node.score or 0.0 for node in kept], 3)
    again = asyncio.run(rerank.apostprocess_nodes(nodes, query_str=QUERY))
    assert [node.score for node in again] == [node.score for node in kept]
    assert [node.score for node in nodes] == [0.5] * len(nodes)
    assert not any(node.metadata for node in nodes)


def test_scores_are_those_of_the_library(nodes: list[NodeWithScore]) -> None:
    reranker = Reranker()
    kept = SecondpassRerank(top_n=5, raw_scores=True).postprocess_nodes(nodes, query_str=QUERY)
    expected = {hit.document.text: hit.score for hit in reranker.rank(QUERY, PASSAGES)}
    assert {node.text: node.score for node in kept} == expected
    assert SecondpassRerank(scorer=reranker, top_n=1).postprocess_nodes(nodes, query_str=QUERY)[0].text == ANSWER


def test_metadata_is_read_or_left_out_and_the_retrieval_score_is_kept_on_copies() -> None:
    node = TextNode(text="It stops.", metadata={"title": ANSWER})
    given = [NodeWithScore(node=node, score=0.25), NodeWithScore(node=TextNode(text="It stops."), score=0.5)]
    embed = SecondpassRerank(raw_scores=True).postprocess_nodes(given, query_str=QUERY)
    alone = SecondpassRerank(raw_scores=True, metadata_mode=MetadataMode.NONE).postprocess_nodes(
        given, query_str=QUERY
    )
    assert embed[0].score != embed[1].score
    assert alone[0].score == alone[1].score
    kept = SecondpassRerank(keep_retrieval_score=True, metadata_mode=MetadataMode.NONE)
    assert {each.metadata["retrieval_score"] for each in kept.postprocess_nodes(given, query_str=QUERY)} == {
        0.25,
        0.5,
    }
    assert node.metadata == {"title": ANSWER}


def test_a_node_without_text_comes_last_without_a_score(nodes: list[NodeWithScore]) -> None:
    found = SecondpassRerank(top_n=9).postprocess_nodes(
        [NodeWithScore(node=TextNode(text="")), *nodes], query_str=QUERY
    )
    assert found[-1].text == "" and found[-1].score is None


def test_threshold_and_bad_input(nodes: list[NodeWithScore]) -> None:
    assert SecondpassRerank(threshold=1.01).postprocess_nodes(nodes, query_str=QUERY) == []
    assert SecondpassRerank().postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(ValueError, match="query is missing"):
        SecondpassRerank().postprocess_nodes(nodes)
    with pytest.raises(TypeError, match="top_k"):
        SecondpassRerank(top_k=3)  # type: ignore[call-arg]


def test_takes_the_words_of_other_rerankers() -> None:
    made = SecondpassRerank(model="default", top_n=2, device="cpu", keep_retrieval_score=True)
    assert (made.top_n, made.device) == (2, "cpu")
    with pytest.warns(UserWarning, match="use_fp16"):
        SecondpassRerank(model="default", top_n=2, use_fp16=True)


def test_round_trips_through_dict_json_and_pickle(nodes: list[NodeWithScore]) -> None:
    made = SecondpassRerank(top_n=2, threshold=0.01, metadata_mode=MetadataMode.NONE)
    made.postprocess_nodes(nodes, query_str=QUERY)
    for again in (
        SecondpassRerank.from_dict(made.to_dict()),
        SecondpassRerank.from_json(made.to_json()),
        pickle.loads(pickle.dumps(made)),
    ):
        assert again.to_dict() == made.to_dict()
        assert [node.score for node in again.postprocess_nodes(nodes, query_str=QUERY)] == [
            node.score for node in made.postprocess_nodes(nodes, query_str=QUERY)
        ]


class Seen(BaseEventHandler):
    events: list[Any] = []  # noqa: RUF012  (a field of pydantic)

    def handle(self, event: Any, **_: Any) -> None:
        self.events.append(event)


def test_events_of_both_styles_are_sent_and_closed(nodes: list[NodeWithScore]) -> None:
    seen, debug = Seen(), LlamaDebugHandler(print_trace_on_end=False)
    get_dispatcher().add_event_handler(seen)
    rerank = SecondpassRerank(top_n=2)
    rerank.callback_manager = CallbackManager([debug])
    rerank.postprocess_nodes(nodes, query_str=QUERY)
    kinds = [type(event) for event in seen.events]
    assert kinds.count(ReRankStartEvent) == kinds.count(ReRankEndEvent) == 1
    (pair,) = debug.get_event_pairs(CBEventType.RERANKING)
    assert len(pair) == 2


def test_in_a_query_engine_and_an_evaluator() -> None:
    index = VectorStoreIndex.from_documents(
        [Document(text=text, doc_id=str(i)) for i, text in enumerate(PASSAGES)], embed_model=MockEmbedding(8)
    )
    rerank = SecondpassRerank(top_n=1)
    engine = index.as_query_engine(similarity_top_k=5, node_postprocessors=[rerank], llm=MockLLM())
    assert engine.query(QUERY).source_nodes[0].text == ANSWER
    assert asyncio.run(engine.aquery(QUERY)).source_nodes[0].text == ANSWER
    expected = next(node.node_id for node in index.docstore.docs.values() if node.get_content() == ANSWER)
    evaluator = RetrieverEvaluator.from_metric_names(
        ["hit_rate", "mrr"], retriever=index.as_retriever(similarity_top_k=5), node_postprocessors=[rerank]
    )
    assert evaluator.evaluate(QUERY, [expected]).metric_vals_dict == {"hit_rate": 1.0, "mrr": 1.0}


def test_embedding_finds_the_answer() -> None:
    index = VectorStoreIndex.from_documents(
        [Document(text=text) for text in PASSAGES], embed_model=SecondpassEmbedding()
    )
    retriever = index.as_retriever(similarity_top_k=2)
    assert retriever.retrieve(QUERY)[0].text == ANSWER
    assert asyncio.run(retriever.aretrieve(QUERY))[0].text == ANSWER
    embedding = SecondpassEmbedding()
    assert embedding.get_text_embedding(ANSWER) == asyncio.run(embedding.aget_text_embedding(ANSWER))


def test_a_model_is_opened_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, opened = [], SecondpassEmbedding._embedder

    def watched(self: SecondpassEmbedding) -> Any:
        threads.append(threading.current_thread())
        return opened(self)

    monkeypatch.setattr(SecondpassEmbedding, "_embedder", watched)
    asyncio.run(SecondpassEmbedding().aget_query_embedding(QUERY))
    asyncio.run(SecondpassEmbedding().aget_text_embedding(ANSWER))
    assert len(threads) == 2 and threading.main_thread() not in threads


def test_an_index_of_files_is_a_retriever(tmp_path: Path) -> None:
    (tmp_path / "house.md").write_text(
        "# House\n\n" + "\n\n".join(f"## Part {i}\n\n{t}" for i, t in enumerate(PASSAGES))
    )
    index = Index("house", folder=tmp_path / "indexes", create=True)
    index.add(tmp_path / "house.md")
    retriever = SecondpassRetriever(index, top_n=2)
    found = retriever.retrieve(QUERY)
    assert ANSWER in found[0].text and len(found) == 2
    assert 0 <= (found[1].score or 0) <= (found[0].score or 0) <= 1
    assert {"line", "characters", "created"} <= set(found[0].metadata)
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        head, _, text = found[0].node.get_content(mode).partition("\n\n")
        assert text == found[0].text
        assert [line.split(": ")[0] for line in head.splitlines()] == ["path", "heading"]
    assert str(tmp_path / "house.md") in map(str, found[0].metadata.values())
    assert [node.text for node in asyncio.run(retriever.aretrieve(QUERY))] == [node.text for node in found]
    with pytest.raises(ValueError, match="top_n is 0"):
        SecondpassRetriever(index, top_n=0)
