"""The pipeline after each stage: a stage that puts the answer first shows, and time counts where there is any."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from secondpass import cli
from secondpass.cognitive import Cognitive
from secondpass.evaluation.measures import parse
from secondpass.evaluation.pipeline import load_timed, measure_pipeline, table
from secondpass.search.pipeline import Question
from tests.search.conftest import WordEncoder, WordReranker

DOCUMENTS = [
    {"_id": "old", "title": "", "text": "the ssh port of the house", "timestamp": "2020-01-01"},
    {"_id": "new", "title": "", "text": "the ssh port of the house!", "timestamp": "2026-01-01"},
    {"_id": "later", "title": "", "text": "the ssh port of the house", "timestamp": "2027-01-01"},
    {"_id": "tea", "title": "", "text": "tea in the house", "timestamp": "2026-01-01", "scope": "ada"},
    {"_id": "coffee", "title": "", "text": "tea or coffee in the house", "timestamp": "2026-01-01", "scope": "bob"},
]
QUERIES = [
    {"_id": "q1", "text": "ssh port", "timestamp": "2026-06-01"},
    {"_id": "q2", "text": "tea", "timestamp": "2026-06-01", "scope": "bob"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, records in (("corpus", DOCUMENTS), ("queries", QUERIES)):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as stream:
            stream.writelines(json.dumps(record) + "\n" for record in records)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tnew\t1\nq2\tcoffee\t1\n")
    return tmp_path


def test_stages_see_what_was_there_in_their_scope(folder: Path) -> None:
    stages = measure_pipeline(
        load_timed(folder),
        encoder=WordEncoder(),
        reranker=WordReranker(),
        options=Question(text=""),
        cognitive=Cognitive(),
    )
    assert list(stages.rankings) == [
        "bm25",
        "dense",
        "fused",
        "reranked",
        "cognitive",
        "recency only",
        "newest first",
    ]
    first = {stage: next(iter(found["q1"])) for stage, found in stages.rankings.items()}
    assert first["reranked"] == "old"  # the words are the same, so the order of the files
    assert first["cognitive"] == first["newest first"] == "new"
    assert all("later" not in found["q1"] for found in stages.rankings.values())
    assert all(list(found["q2"]) == ["coffee"] for found in stages.rankings.values())
    ndcg = parse("nDCG@10")
    assert stages.figures("cognitive", ndcg).tolist() == [1.0, 1.0]
    assert stages.figures("reranked", ndcg).tolist() == [pytest.approx(0.6309, abs=1e-4), 1.0]
    assert "| cognitive | 1.000 |" in table(stages)


def test_queries_are_drawn_by_the_seed(folder: Path) -> None:
    drawn = {next(iter(load_timed(folder, num_queries=1, seed=seed).dataset.queries)) for seed in range(8)}
    assert drawn == {"q1", "q2"}


def test_the_command_prints_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["eval", str(folder), "--pipeline", "--depth", "10", "--measures", "nDCG@10,recall@20"]) == 0
    shown = capsys.readouterr().out
    assert "| nDCG@10 | recall@20 |" in shown
    assert "| reranked |" in shown
    assert cli.run(["eval", str(folder), "--pipeline", "--depth", "10,20"]) == 2
