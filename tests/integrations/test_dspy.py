"""The chain that DSPy's users name: embed, take many, rerank, keep few, answer. The language model is DSPy's stub."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest

dspy = pytest.importorskip("dspy")
from dspy.utils import DummyLM

from secondpass.integrations import open_embedder
from secondpass.integrations.dspy import Rerank, Retrieve
from tests.integrations.question import ANSWER, PASSAGES, QUERY, assert_best_first

pytestmark = pytest.mark.clients


class Answer(dspy.Module):
    def __init__(self, retrieve: Retrieve) -> None:
        super().__init__()
        self.retrieve = retrieve
        self.answer = dspy.ChainOfThought("context: list[str], question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        found = self.retrieve(query=question)
        return dspy.Prediction(answer=self.answer(context=found.passages, question=question).answer, found=found)


@pytest.fixture
def search() -> dspy.Embeddings:
    embedder = open_embedder()
    made = dspy.Embeddings(
        corpus=PASSAGES, embedder=dspy.Embedder(lambda texts: embedder.encode(texts), caching=False), k=5
    )
    made.embedder = dspy.Embedder(lambda texts: np.asarray(embedder.encode(texts, kind="query")), caching=False)
    return made


def test_reranks_sync_and_async(monkeypatch: pytest.MonkeyPatch) -> None:
    rerank = Rerank(k=3)
    found = rerank(query=QUERY, passages=PASSAGES)
    assert_best_first(found.passages, found.scores, 3)
    assert [PASSAGES[index] for index in found.indices] == found.passages
    said: list[logging.LogRecord] = []  # DSPy warns of a `forward` that it does not call itself
    monkeypatch.setattr(logging.getLogger("dspy.primitives.module"), "filters", [said.append])
    assert asyncio.run(rerank.acall(query=QUERY, passages=PASSAGES, k=1)).passages == [ANSWER]
    assert not said


def test_scores_are_none_where_there_is_nothing_to_read_and_one_text_is_no_list() -> None:
    assert Rerank()(query=QUERY, passages=["", ANSWER]).toDict()["scores"][1] is None
    with pytest.raises(TypeError, match="one str; give a list"):
        Rerank()(query=QUERY, passages=ANSWER)


def test_the_chain_answers_from_what_was_reranked(search: dspy.Embeddings, tmp_path: Path) -> None:
    program = Answer(Retrieve(search, k=2))
    with dspy.context(lm=DummyLM([{"reasoning": "r", "answer": "a new washer"}] * 4)):
        said = program(question=QUERY)
        assert said.answer == "a new washer"
        assert said.found.passages[0] == ANSWER
        assert [PASSAGES[index] for index in said.found.indices] == said.found.passages
        evaluate = dspy.Evaluate(
            devset=[dspy.Example(question=QUERY).with_inputs("question")],
            metric=lambda example, prediction, trace=None: prediction.found.passages[0] == ANSWER,
        )
        assert evaluate(program.deepcopy()).score == 100.0
    program.save(tmp_path / "program.json")
    Answer(Retrieve(search, k=2)).load(tmp_path / "program.json")
