"""Sets of other packages' catalogues, through the packages themselves where they are installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from secondpass.errors import DataError, MissingExtra
from secondpass.evaluation import load_dataset
from secondpass.evaluation.datasets.catalogues import from_task

SPLIT: dict[str, Any] = {
    "corpus": [{"id": "d1", "title": "Rivers", "text": "The river"}, {"id": "d2", "text": "snow"}],
    "queries": [{"id": "q1", "text": "which river"}, {"id": "q2", "text": "cold", "instruction": "in winter"}],
    "relevant_docs": {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}},
    "top_ranked": {"q1": ["d2", "d1"], "q2": ["d2", "d1"]},
}


def test_a_task_of_mteb() -> None:
    """In the form in which release 2 holds a loaded task."""
    dataset = from_task("Toy", {"default": {"test": SPLIT}}, None, None)
    assert dataset.documents == {"d1": "Rivers The river", "d2": "snow"}
    assert dataset.queries == {"q1": "which river", "q2": "cold in winter"}
    assert dataset.qrels["q2"] == {"d2": 2} and dataset.candidates == {"q1": ["d2", "d1"], "q2": ["d2", "d1"]}
    whole = from_task("Toy", {"default": {"dev": {**SPLIT, "top_ranked": None}}}, "dev", None)
    assert whole.candidates is None


def test_a_part_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="has the parts zh, en; name one, as in Toy/zh"):
        from_task("Toy", {"zh": {"test": SPLIT}, "en": {"test": SPLIT}}, None, None)
    with pytest.raises(DataError, match="has no split 'train'; there are test"):
        from_task("Toy", {"default": {"test": SPLIT}}, "train", None)


def test_ir_datasets() -> None:
    package = pytest.importorskip("ir_datasets")
    formats = package.formats

    class Docs(formats.BaseDocs):  # type: ignore[misc]
        def docs_iter(self) -> Iterator[Any]:
            yield from [formats.GenericDoc("d1", "the river"), formats.GenericDoc("d2", "snow")]

    class Queries(formats.BaseQueries):  # type: ignore[misc]
        def queries_iter(self) -> Iterator[Any]:
            yield from [formats.GenericQuery("q1", "which river"), formats.GenericQuery("q2", "cold")]

    class Qrels(formats.BaseQrels):  # type: ignore[misc]
        def qrels_iter(self) -> Iterator[Any]:
            yield from [formats.TrecQrel("q1", "d1", 2, "0"), formats.TrecQrel("q1", "d2", 0, "0")]

    package.registry.register("toy/test", package.Dataset(Docs(), Queries(), Qrels()))
    package.registry.register("toy/docs", package.Dataset(Docs()))
    dataset = load_dataset("ir-datasets:toy/test")
    assert dataset == load_dataset("ir-datasets:toy", split="test")
    assert (dataset.name, dataset.queries, dataset.qrels) == (
        "toy-test",
        {"q1": "which river"},
        {"q1": {"d1": 2, "d2": 0}},
    )
    assert dataset.documents == {"d1": "the river", "d2": "snow"}
    assert list(load_dataset("ir-datasets:toy/test", wanted={"d1"}).documents) == ["d1"]
    assert dataset.notes == ("1 query without judgements skipped",)
    with pytest.raises(DataError, match="toy/docs: has no queries"):
        load_dataset("ir-datasets:toy/docs")
    with pytest.raises(DataError, match="ir_datasets has no set of that name"):
        load_dataset("ir-datasets:no/such/set")


@pytest.mark.parametrize(("source", "module"), [("ir-datasets:toy", "ir_datasets"), ("mteb:Toy", "mteb")])
def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, source: str, module: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtra, match=r"secondpass\[datasets\]"):
        load_dataset(source)
