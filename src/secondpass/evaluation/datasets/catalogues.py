"""Sets of other packages' catalogues: `ir-datasets:NAME` and `mteb:NAME`, which those packages download and read."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from secondpass.data.files import titled_text
from secondpass.errors import DataError, MissingExtra, NoSuchSplit
from secondpass.evaluation.datasets.dataset import Dataset, checked
from secondpass.evaluation.datasets.trec import Qrels

Load = Callable[[str, "str | None", "Container[str] | None"], Dataset]


def load_ir_dataset(name: str, split: str | None, wanted: Container[str] | None) -> Dataset:
    """A set of ir_datasets; its names have the split already, as in beir/scifact/test."""
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingExtra("ir_datasets", "datasets") from error
    kind = NoSuchSplit if split else DataError
    try:
        name = f"{name}/{split}" if split else name
        found = ir_datasets.load(name)
    except KeyError as error:
        raise kind(f"ir-datasets:{name}: ir_datasets has no set of that name") from error
    for part in ("docs", "queries", "qrels"):
        if not getattr(found, f"has_{part}")():
            raise kind(f"ir-datasets:{name}: has no {part}; name a part that has, as in beir/scifact/test")
    qrels: Qrels = {}
    for qrel in found.qrels_iter():
        qrels.setdefault(qrel.query_id, {})[qrel.doc_id] = int(qrel.relevance)
    documents = {
        doc.doc_id: doc.default_text() for doc in found.docs_iter() if wanted is None or doc.doc_id in wanted
    }
    queries = {query.query_id: query.default_text() for query in found.queries_iter()}
    return checked(name.replace("/", "-"), queries, documents, qrels, is_whole=wanted is None)


def load_mteb(name: str, split: str | None, wanted: Container[str] | None) -> Dataset:
    """A retrieval or reranking task of MTEB; NAME/SUBSET where it has several, as in MIRACLReranking/zh."""
    try:
        import mteb
    except ImportError as error:
        raise MissingExtra("mteb", "datasets") from error
    task_name, _, subset = name.partition("/")
    try:
        task = mteb.get_task(task_name, hf_subsets=[subset] if subset else None)
    except (KeyError, ValueError) as error:
        raise DataError(f"mteb:{name}: {error.args[0] if error.args else error}") from error
    if task.metadata.type not in ("Retrieval", "Reranking"):
        raise DataError(f"mteb:{name}: is for {task.metadata.type}; a Retrieval or Reranking task is needed")
    task.load_data()
    return from_task(name, task.dataset, split, wanted)


def from_task(name: str, parts: Mapping[str, Any], split: str | None, wanted: Container[str] | None) -> Dataset:
    """The data of a loaded task: by subset and split its corpus, queries, relevant_docs and top_ranked."""
    if len(parts) != 1:
        raise DataError(f"mteb:{name}: has the parts {', '.join(parts)}; name one, as in {name}/{next(iter(parts))}")
    (splits,) = parts.values()
    chosen = split or ("test" if "test" in splits else next(iter(splits)))
    if chosen not in splits:
        raise NoSuchSplit(f"mteb:{name}: has no split {chosen!r}; there are {', '.join(splits)}")
    data = splits[chosen]
    qrels = {
        query: {document: int(grade) for document, grade in grades.items()}
        for query, grades in data["relevant_docs"].items()
    }
    ranked = data.get("top_ranked")
    return checked(
        name.replace("/", "-"),
        {str(row["id"]): _query_of(row, name) for row in data["queries"]},
        dict(_documents(data["corpus"], name, wanted)),
        qrels,
        is_whole=wanted is None,
        candidates=None
        if ranked is None or wanted is not None
        else {q: list(listed) for q, listed in ranked.items()},
    )


def _documents(
    rows: Iterable[Mapping[str, Any]], name: str, wanted: Container[str] | None
) -> Iterable[tuple[str, str]]:
    for row in rows:
        if wanted is None or str(row["id"]) in wanted:
            yield str(row["id"]), titled_text(row, f"mteb:{name}: {row['id']}")


def _query_of(row: Mapping[str, Any], name: str) -> str:
    """The query, with the instruction that some tasks have beside it."""
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError(f"mteb:{name}: {row['id']} is a query without text")
    return f"{text} {row['instruction']}" if isinstance(row.get("instruction"), str) else text


CATALOGUES: Mapping[str, Load] = {"ir-datasets": load_ir_dataset, "ir_datasets": load_ir_dataset, "mteb": load_mteb}
