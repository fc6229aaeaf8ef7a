"""Judgements and runs in the columns that tools write."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondpass.errors import DataError
from secondpass.evaluation.datasets.trec import read_candidates, read_qrels, read_run, write_run
from secondpass.evaluation.measures import ranked


def file_of(folder: Path, text: str, name: str = "file.txt") -> Path:
    file = folder / name
    file.write_text(text, "utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qrels.txt", "q1 0 d1 1\nq1 0 d2 -1\n\nq2 0 d1 0\n"),
        ("dev.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t-1\nq2\td1\t0.0\n"),
        ("dev.tsv", "q1\td1\t1\nq1\td2\t-1\nq1\td1\t1\nq2\td1\t0\n"),
        (
            "dev.jsonl",
            '{"query-id": "q1", "corpus-id": "d1", "score": 1}\n{"query-id": "q1", "corpus-id": "d2", "score": -1}\n'
            '{"query-id": "q2", "corpus-id": "d1", "score": 0}\n',
        ),
    ],
)
def test_judgements(tmp_path: Path, name: str, text: str) -> None:
    assert read_qrels(file_of(tmp_path, text, name)) == {"q1": {"d1": 1, "d2": -1}, "q2": {"d1": 0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1 0 d1\nq1 0\n", "file.txt:1: the grade is 'd1'|file.txt:2: has 2 columns"),
        ("q1 0 d1 1\nq1 0 d2 half\n", "file.txt:2: the grade is 'half'"),
        ("q1 0 d1 1\nq1 0 d2 0.5\n", "file.txt:2: the grade is '0.5'"),
        ("q1 0 d1 1\nq1 0 d1 0\n", "file.txt:2: q1 d1 is judged 0 here and 1 above"),
        ("", "holds no judgements"),
    ],
)
def test_bad_judgements(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_qrels(file_of(tmp_path, text))


def test_a_trec_run_counts_by_score(tmp_path: Path) -> None:
    run = read_run(file_of(tmp_path, "q1 Q0 d1 1 0.5 tag\nq1 Q0 d2 2 7.5e-1 tag\nq2 Q0 d1 1 -3 tag\n"))
    assert run == {"q1": {"d1": 0.5, "d2": 0.75}, "q2": {"d1": -3.0}}


def test_a_run_with_a_header_counts_by_rank(tmp_path: Path) -> None:
    """Scores in such files are often rounded, so that many are equal."""
    text = "query-id\tcorpus-id\trank\tscore\nq1\td1\t1\t9.1\nq1\td2\t2\t9.1\nq1\td0\t3\t9.1\n"
    assert ranked(read_run(file_of(tmp_path, text))["q1"]) == ["d1", "d2", "d0"]
    text = "query-id\tcorpus-id\tscore\nq1\td1\t1.5\nq1\td2\t2\n"
    assert read_run(file_of(tmp_path, text)) == {"q1": {"d1": 1.5, "d2": 2.0}}
    text = "qid,docid,rank\nq1,d1,2\nq1,d2,1\n"
    assert read_run(file_of(tmp_path, text, "run.csv")) == {"q1": {"d1": -2.0, "d2": -1.0}}
    text = (
        "qid,docid,docno,rank,score,query\nq1,0,d1,0,3.5,why\nq1,1,d2,1,2,why\n"  # PyTerrier's; its docid is a number
    )
    assert read_run(file_of(tmp_path, text, "run.csv")) == {"q1": {"d1": 0.0, "d2": -1.0}}


def test_runs_in_json_and_lists(tmp_path: Path) -> None:
    assert read_run(file_of(tmp_path, '{"q1": {"d1": 2, "d2": 1.5}}', "run.json")) == {"q1": {"d1": 2.0, "d2": 1.5}}
    file = file_of(tmp_path, '{"query-id": "q1", "corpus-ids": ["d3", "d1", "d3"]}\n', "top_ranked.jsonl")
    assert read_candidates(file) == {"q1": ["d3", "d1"]}
    assert ranked(read_run(file)["q1"]) == ["d3", "d1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1 Q0 d1 1 0.5 tag\nq1 Q0 d2 2 0.5\n", "file.txt:2: has 5 columns; a run has 6"),
        ("q1 Q0 d1 1 high tag\n", "file.txt:1: 'high' is not a number"),
        ("q1 Q0 d1 1 nan tag\n", "file.txt:1: 'nan' is not a number"),
        ("q1 Q0 d1 1 3 tag\nq1 Q0 d1 2 2 tag\n", "file.txt:2: d1 is ranked twice for q1"),
        ("query-id\tname\trank\n", "the header names query-id, name, rank"),
        ("", "holds no ranking"),
    ],
)
def test_bad_runs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_run(file_of(tmp_path, text))


def test_a_run_is_written_as_it_is_read(tmp_path: Path) -> None:
    """Equal scores keep trec_eval's order, and every bit of a score is kept."""
    run = {"q1": {"a": 0.1 + 0.2, "b": -1e-30, "c": 0.1 + 0.2}, "q2": {"a": 7.0}}
    write_run(tmp_path / "x.run", run, "small")
    assert read_run(tmp_path / "x.run") == run
    rows = [line.split() for line in (tmp_path / "x.run").read_text().splitlines()]
    assert [row[2:4] for row in rows] == [["c", "1"], ["a", "2"], ["b", "3"], ["a", "1"]]
    with pytest.raises(DataError, match="hold no names with blanks"):
        write_run(tmp_path / "x.run", {"q 1": {"a": 1.0}}, "small")
    with pytest.raises(DataError, match="cannot be written"):
        write_run(tmp_path, run, "small")
