"""Every layout that is read, each built as its publishers lay it out, and what is said of a bad one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from secondpass.errors import DataError
from secondpass.evaluation import load_dataset
from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.evaluation.datasets.lists import from_records

DOCUMENTS = {"d1": "Rivers The river is cold", "d2": "snow falls", "d3": "the bridge"}


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text, "utf-8")
    return file


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def beir(folder: Path, suffix: str = "") -> Path:
    corpus = [
        {"_id": "d1", "title": "Rivers", "text": "The river is cold"},
        {"_id": "d2", "title": "", "text": "snow falls"},
        {"_id": "d3", "text": "the bridge"},
    ]
    write(folder / f"corpus.jsonl{suffix}", lines(corpus))
    queries = [{"_id": "q1", "text": "which river"}, {"_id": "q2", "text": "雪"}, {"_id": "q3", "text": "nothing"}]
    write(folder / f"queries.jsonl{suffix}", lines(queries))
    head = "query-id\tcorpus-id\tscore\n"
    write(folder / "qrels" / "test.tsv", head + "q1\td1\t2\nq1\td3\t1\nq2\td2\t1\nq3\td2\t0\nq9\td2\t1\n")
    write(folder / "qrels" / "train.tsv", head + "q3\td3\t1\n")
    return folder


def check(dataset: Dataset) -> None:
    assert dataset.documents == DOCUMENTS
    assert dataset.queries == {"q1": "which river", "q2": "雪"}
    assert dataset.qrels == {"q1": {"d1": 2, "d3": 1}, "q2": {"d2": 1}}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_beir(tmp_path: Path, suffix: str) -> None:
    dataset = load_dataset(beir(tmp_path / "set", suffix))
    check(dataset)
    assert dataset.name == "set" and dataset.candidates is None
    assert dataset.notes == (
        "1 query judged but not among the queries skipped",
        "1 query without a relevant document skipped",
    )


def test_a_split_is_chosen(tmp_path: Path) -> None:
    beir(tmp_path)
    assert load_dataset(tmp_path, split="train").qrels == {"q3": {"d3": 1}}
    with pytest.raises(DataError, match=r"test\.tsv, train\.tsv; name a split"):
        load_dataset(tmp_path, split="dev")


def test_only_wanted_documents_are_kept(tmp_path: Path) -> None:
    assert list(load_dataset(beir(tmp_path), wanted={"d3"}).documents) == ["d3"]


def test_judged_documents_that_are_missing_are_noted(tmp_path: Path) -> None:
    beir(tmp_path)
    rows = (tmp_path / "qrels" / "test.tsv").read_text()
    (tmp_path / "qrels" / "test.tsv").write_text(rows.rstrip("\n") + "\nq1\td8\t1\nq1\td9\t2\nq2\td7\t0\n")
    note = "2 relevant documents of 1 query are not in the corpus and count against both sides"
    assert note in load_dataset(tmp_path).notes
    assert note not in load_dataset(tmp_path, wanted={"d1", "d2"}).notes


def test_an_empty_corpus_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has none of the documents of the run"):
        load_dataset(beir(tmp_path), wanted={"d9"})
    write(tmp_path / "corpus.jsonl", "")
    with pytest.raises(DataError, match="the corpus is empty"):
        load_dataset(tmp_path)


def test_fixed_candidates(tmp_path: Path) -> None:
    beir(tmp_path)
    rows = [{"query-id": "q1", "candidate-ids": ["d3", "d1"]}, {"query-id": "q2", "candidate-ids": []}]
    write(tmp_path / "candidates.jsonl", lines(rows))
    dataset = load_dataset(tmp_path)
    assert dataset.candidates == {"q1": ["d3", "d1"]} and list(dataset.queries) == ["q1"]
    assert "1 query without candidates skipped" in dataset.notes
    write(tmp_path / "candidates.jsonl", lines([{"query-id": "q1", "candidate-ids": ["d7"]}]))
    with pytest.raises(DataError, match="d7, a candidate of q1, is not among the documents"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("is_beside", [True, False])
def test_miracl(tmp_path: Path, is_beside: bool) -> None:
    """Topics and judgements in one repository, the sharded corpus in another."""
    folder = tmp_path / "miracl-v1.0-zh"
    write(folder / "topics" / "topics.miracl-v1.0-zh-dev.tsv", "q1\twhich river\nq2\t雪\n")
    write(folder / "topics" / "topics.miracl-v1.0-zh-train.tsv", "q5\tother\n")
    write(folder / "qrels" / "qrels.miracl-v1.0-zh-dev.tsv", "q1\tQ0\td1\t2\nq1\tQ0\td3\t1\nq2\tQ0\td2\t1\n")
    write(folder / "qrels" / "qrels.miracl-v1.0-zh-train.tsv", "q5\tQ0\td1\t1\n")
    shards = tmp_path / "miracl-corpus-v1.0-zh" if is_beside else folder
    first = {"docid": "d1", "title": "Rivers", "text": "The river is cold"}
    write(shards / "docs-0.jsonl.gz", lines([first]))
    rest = [{"docid": "d2", "title": "", "text": "snow falls"}, {"docid": "d3", "text": "the bridge"}]
    write(shards / "docs-1.jsonl.gz", lines(rest))
    check(load_dataset(folder))


def test_ms_marco(tmp_path: Path) -> None:
    write(tmp_path / "collection.tsv", "d1\tRivers The river is cold\nd2\tsnow falls\nd3\tthe bridge\n")
    write(tmp_path / "queries.dev.tsv", "q1\twhich river\nq2\t雪\n")
    write(tmp_path / "qrels.dev.tsv", "q1 0 d1 2\nq1 0 d3 1\nq2 0 d2 1\n")
    check(load_dataset(tmp_path))
    write(tmp_path / "collection.tsv", "docid\ttext\n" + (tmp_path / "collection.tsv").read_text("utf-8"))
    write(tmp_path / "queries.dev.tsv", "id\tquery\nq1\twhich river\nq2\t雪\n")
    check(load_dataset(tmp_path))  # a header is no document
    assert len(load_dataset(tmp_path).documents) == 3 and not load_dataset(tmp_path).notes


def test_parquet(tmp_path: Path) -> None:
    """As the hub lays out retrieval tasks: a folder for each part."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    source = load_dataset(beir(tmp_path / "beir"))
    qrels = [
        {"query-id": query, "corpus-id": name, "score": grade}
        for query, grades in source.qrels.items()
        for name, grade in grades.items()
    ]
    parts = {
        "corpus": [{"_id": name, "title": "", "text": text} for name, text in source.documents.items()],
        "queries": [{"_id": name, "text": text} for name, text in source.queries.items()],
        "qrels": qrels,
    }
    for part, rows in parts.items():
        folder = tmp_path / "set" / part
        folder.mkdir(parents=True)
        parquet.write_table(arrow.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet")
    check(load_dataset(tmp_path / "set"))


LISTS = [
    {"query": "which river", "positive": ["the river"], "negative": ["snow", "the bridge", "snow"]},
    {"query": "empty", "positive": [], "negative": ["snow"]},
    {"query": "snow?", "positive": ["snow", "much snow"], "negative": ["the river"]},
]


def check_lists(dataset: Dataset) -> None:
    assert dataset.queries == {"q1": "which river", "q3": "snow?"}
    assert dataset.notes == ("1 query without a positive or without a negative text skipped",)
    assert dataset.candidates is not None
    for query, positive, others in (
        ("q1", {"the river"}, {"snow", "the bridge"}),
        ("q3", {"snow", "much snow"}, {"the river"}),
    ):
        grades = dataset.qrels[query]
        assert {dataset.documents[name] for name, grade in grades.items() if grade} == positive
        assert {dataset.documents[name] for name in dataset.candidates[query]} == positive | others


@pytest.mark.parametrize("name", ["dev.jsonl", "dev.jsonl.gz", "dev.json", "dev.parquet"])
def test_reranking_lists(tmp_path: Path, name: str) -> None:
    if name.endswith(".parquet"):
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist(LISTS), tmp_path / name)
    else:
        write(tmp_path / name, json.dumps(LISTS) if name.endswith(".json") else lines(LISTS))
    check_lists(load_dataset(tmp_path / name))
    check_lists(load_dataset(tmp_path))


def test_flag_embedding(tmp_path: Path) -> None:
    rows = [{"query": row["query"], "pos": row["positive"], "neg": row["negative"], "prompt": "x"} for row in LISTS]
    check_lists(load_dataset(write(tmp_path / "toy.jsonl", lines(rows))))


def test_names_of_list_documents_do_not_tell_which_are_relevant() -> None:
    """Else equal scores would be sorted by relevance."""
    rows = [{"query": "a", "positive": [f"p{n}"], "negative": [f"n{n}"]} for n in range(200)]
    dataset = from_records("set", [(f"file:{n}", row) for n, row in enumerate(rows)])
    first = sum(
        max(grades) == max(grades, key=lambda name: (grades[name], name)) for grades in dataset.qrels.values()
    )
    assert 60 < first < 140


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"query": "a", "positive": ["b"]\n', r"x\.jsonl:1: is not JSON"),
        ('{"query": "a", "pos": ["b"], "neg": ["c"]}\n["a"]\n', r"x\.jsonl:2: holds a list"),
        ('{"query": "a", "positive": "b", "negative": []}\n', r'x\.jsonl:1: "positive" is a string; a list'),
        ('{"query": "a", "positive": ["b"], "negative": [3]}\n', r'x\.jsonl:1: "negative" is a list with a number'),
        ('{"question": "a"}\n', r'x\.jsonl:1: has neither "positive" nor "pos" \(it has question\)'),
        ('{"positive": ["b"], "negative": ["c"]}\n', r'x\.jsonl:1: has no "query"'),
        ('{"query": "a", "positive": [], "negative": ["c"]}\n', "no query has both"),
        ("", "no query has both"),
    ],
)
def test_bad_lists_are_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(write(tmp_path / "x.jsonl", text))


def test_bad_bytes_are_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"query": "a", "pos": ["b"], "neg": ["c"]}\n{"query": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:2: byte 15 \(0xe9\) is not UTF-8"):
        load_dataset(file)
    cut = gzip.compress(b'{"query": "a"}\n' * 1000)[:-20]
    (tmp_path / "y.jsonl.gz").write_bytes(cut)
    with pytest.raises(DataError, match=r"y\.jsonl\.gz: is not a whole gzip file"):
        load_dataset(tmp_path / "y.jsonl.gz")


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no judgements .* there is nothing"):
        load_dataset(tmp_path)
    folder = beir(tmp_path / "set")
    write(folder / "queries.jsonl", '{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "b"}\n')
    with pytest.raises(DataError, match=r"queries\.jsonl:2: 'q1' is there twice, first at .*:1"):
        load_dataset(folder)
    (beir(folder) / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match="holds no documents"):
        load_dataset(folder)


def test_a_set_without_relevant_documents_is_refused(tmp_path: Path) -> None:
    beir(tmp_path)
    write(tmp_path / "qrels" / "test.tsv", "q1\td1\t0\n")
    with pytest.raises(DataError, match="no query can be measured: 1 query without a relevant document"):
        load_dataset(tmp_path)


def test_a_sample_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    rows = [{"query": f"q {n}", "positive": ["a"], "negative": ["b"]} for n in range(50)]
    dataset = load_dataset(write(tmp_path / "x.jsonl", lines(rows)))
    drawn = dataset.sample(10, seed=3)
    assert len(drawn.queries) == len(drawn.qrels) == 10
    assert drawn.queries == dataset.sample(10, seed=3).queries != dataset.sample(10, seed=4).queries
    assert drawn.notes == ("10 of 50 queries, drawn with seed 3",)
    assert dataset.sample(50) is dataset
    assert repr(drawn) == "<Dataset x: 10 queries, 2 documents; 10 of 50 queries, drawn with seed 3>"  # not the texts
    with pytest.raises(ValueError, match="num_queries is 0"):
        dataset.sample(0)
