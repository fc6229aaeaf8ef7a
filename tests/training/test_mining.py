"""Hard negatives: which are taken, and which are left out because they may be right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from secondpass.command.flags import Opening
from secondpass.command.mine import Miner, _key
from secondpass.errors import DataError
from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.retrieval.bm25 import BM25
from secondpass.training import Collection, Data, Example, Judged, MiningSettings, collection_of, dev_set, mine
from secondpass.training.distilling import judged
from secondpass.training.mining import collection_of_examples, taught
from secondpass.types import DocumentLike

PASSAGES = ["right", "near", "Near", "good", "fair", "poor", "right", "none"]
SCORES = [0.8, 0.79, 0.78, 0.9, 0.6, 0.3, 0.7, 0.0]
COLLECTION = Collection(name="c", passages=PASSAGES, queries=[Judged(query="q", positives=(0,))])


class Fixed:
    """A search whose scores are given."""

    def scores(self, query: str) -> NDArray[np.float32]:
        return np.array(SCORES, np.float32)


class Lengths:
    """A scorer of texts by their lengths."""

    def score(self, query: str, documents: Sequence[DocumentLike]) -> list[float]:
        return [float(len(str(document))) for document in documents]


def negatives(**settings: Any) -> list[str]:
    (example,) = mine(COLLECTION, Fixed(), MiningSettings(**settings))
    assert example.positives == ("right",)
    return list(example.negatives)


def test_the_best_come_first_without_the_positive_and_without_repeats() -> None:
    assert negatives() == ["good", "near", "fair", "poor"]
    assert negatives(num_negatives=2) == ["good", "near"]


def test_ranks_margins_and_ratios() -> None:
    assert negatives(first=1, depth=4) == ["near"]
    assert negatives(margin=0.0) == ["near", "fair", "poor"]
    assert negatives(margin=0.15) == ["fair", "poor"]
    assert negatives(ratio=0.95) == ["fair", "poor"]
    assert negatives(num_negatives=2, is_spread=True) == ["good", "poor"]


def test_a_judge_filters_by_its_own_scores_which_are_kept() -> None:
    (example,) = mine(COLLECTION, Fixed(), MiningSettings(margin=0.5), judge=Lengths())
    assert example.negatives == ("good", "near", "fair", "poor")
    assert (example.positive_scores, example.negative_scores) == ((5.0,), (4.0,) * 4)
    (example,) = mine(COLLECTION, Fixed(), MiningSettings(margin=1.5), judge=Lengths())
    assert example.negatives == ()


def test_what_answers_the_same_query_elsewhere_is_no_negative() -> None:
    queries = [
        Judged(query="q", positives=(0,)),
        Judged(query=" Q", positives=(3,)),
        Judged(query="r", positives=(4,)),
    ]
    found = list(mine(Collection(name="c", passages=PASSAGES, queries=queries), Fixed(), MiningSettings()))
    assert [example.negatives for example in found[:2]] == [("near", "fair", "poor")] * 2
    assert found[2].negatives == ("good", "right", "near", "poor")


def test_a_query_keeps_its_own_instruction() -> None:
    examples = [Example(query="q", positives=("right",), negatives=("near",), prompt="Say Yes.")]
    collection = collection_of_examples(Data(examples=examples), "examples")
    (example,) = mine(collection, BM25(["right", "q near"]), MiningSettings())
    assert (example.negatives, example.prompt) == (("near",), "Say Yes.")


def test_mining_goes_on_where_the_positives_are_those_of_before_alone() -> None:
    other = replace(COLLECTION, queries=[Judged(query="q", positives=(3,))])
    keys = {_key(collection, Miner(), MiningSettings(), Opening()) for collection in (COLLECTION, COLLECTION, other)}
    assert len(keys) == 2


def test_mining_goes_on_at_a_place() -> None:
    queries = [Judged(query=str(number), positives=(0,)) for number in range(3)]
    collection = Collection(name="c", passages=PASSAGES, queries=queries)
    assert [example.query for example in mine(collection, Fixed(), MiningSettings(), start=2)] == ["2"]


def test_bm25_finds_passages_with_the_same_words() -> None:
    passages = ["the river is long", "a long river bridge", "snow is cold", "long long road"]
    collection = Collection(name="c", passages=passages, queries=[Judged(query="long river", positives=(0,))])
    (example,) = mine(collection, BM25(passages), MiningSettings())
    assert example.negatives == ("a long river bridge", "long long road")


def test_a_teacher_scores_every_passage() -> None:
    (example,) = taught(list(mine(COLLECTION, Fixed(), MiningSettings(num_negatives=2))), Lengths())
    assert (example.positive_scores, example.negative_scores) == ((5.0,), (4.0, 4.0))


@pytest.mark.parametrize("given", [[1.0], [1.0, 2.0, 3.0, 4.0], [1.0, math.nan, 0.0], [math.inf, 0.0, 0.0]])
def test_scores_that_are_not_one_finite_number_a_text_are_refused(given: list[float]) -> None:
    class Odd:
        def score(self, query: str, documents: Sequence[DocumentLike]) -> list[float]:
            return given

    example = Example(query="q", positives=("a",), negatives=("b", "c"))
    with pytest.raises(DataError, match=r"the scores of 'q' are .*; 3 finite numbers are needed"):
        list(taught([example], Odd()))
    with pytest.raises(DataError, match="finite numbers are needed"):
        list(judged([example], Odd()))


@pytest.mark.parametrize(
    "wrong", [{"num_negatives": 0}, {"first": 5, "depth": 5}, {"ratio": 0.0}, {"margin": float("nan")}]
)
def test_settings_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give"):
        MiningSettings(**wrong)


DATASET = Dataset(
    name="d",
    queries={"q1": "long river", "q2": "cold"},
    documents={"a": "the river is long", "b": "a long bridge", "c": "snow is cold", "d": "no word of it"},
    qrels={"q1": {"a": 1, "b": 0}, "q2": {"d": 2, "c": 0}},
)


def test_a_set_becomes_a_collection() -> None:
    collection = collection_of(DATASET)
    assert [(one.query, one.positives) for one in collection.queries] == [("long river", (0,)), ("cold", (3,))]


def test_a_dev_set_counts_what_the_first_stage_missed() -> None:
    dev = dev_set(DATASET, depth=2)
    assert [query.documents for query in dev.queries] == [("the river is long", "a long bridge"), ("snow is cold",)]
    assert dev.first_stage() == {"nDCG@10": 0.5, "MRR@10": 0.5}
    assert dev.queries[0].figures([0.0, 1.0])["MRR@10"] == 0.5
    assert dev.queries[1].figures([1.0]) == {"nDCG@10": 0.0, "MRR@10": 0.0}
