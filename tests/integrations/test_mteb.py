"""mteb evaluates our models on a task of its own kind, made here."""

from __future__ import annotations

from typing import Any

import pytest

mteb = pytest.importorskip("mteb")
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from secondpass import ColBERT
from secondpass.integrations.mteb import SecondpassColBERT, SecondpassCrossEncoder, SecondpassEncoder
from tests.goldens import Golden
from tests.integrations.question import PASSAGES, QUERY

pytestmark = pytest.mark.clients


def task_of(kind: str) -> Any:
    class Taps(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Taps{kind}",
            description="One question over five passages.",
            dataset={"path": "made/here", "revision": "1"},
            type=kind,
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, *args: Any, **kwargs: Any) -> None:
            names = [f"d{i}" for i in range(len(PASSAGES))]
            split = {
                "corpus": Dataset.from_list(
                    [{"id": name, "title": "", "text": text} for name, text in zip(names, PASSAGES, strict=True)]
                ),
                "queries": Dataset.from_list([{"id": "q", "text": QUERY}]),
                "relevant_docs": {"q": {"d2": 1}},
                "top_ranked": {"q": names} if kind == "Reranking" else None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Taps()


@pytest.mark.parametrize(("kind", "model"), [("Reranking", SecondpassCrossEncoder), ("Retrieval", SecondpassEncoder)])
def test_the_answer_is_found(kind: str, model: Any) -> None:
    result = mteb.evaluate(model(), task_of(kind), cache=None, co2_tracker=False)
    assert result.task_results[0].get_score() == 1.0


def test_colbert_scores_pairs_as_the_library_does() -> None:
    golden = Golden("colbertv2")
    if not golden.folder.is_dir():
        pytest.skip("no reference figures here")
    model = SecondpassColBERT(str(golden.folder), device="cpu")
    task = task_of("Reranking")
    assert 0 <= mteb.evaluate(model, task, cache=None, co2_tracker=False).task_results[0].get_score() <= 1
    queries, passages = [QUERY, QUERY, "another"], [*PASSAGES[:2], PASSAGES[0]]
    found = model.predict(
        [{"text": queries}], [{"text": passages}], task_metadata=task.metadata, hf_split="test", hf_subset="default"
    )
    colbert = ColBERT(golden.folder, device="cpu")
    assert found.tolist() == pytest.approx(
        colbert.score(QUERY, passages[:2]) + colbert.score("another", passages[2:])
    )
