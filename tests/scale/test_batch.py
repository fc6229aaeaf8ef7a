"""Jobs of many rows: each row comes out once, whatever is wrong with it and whenever the process ends."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secondpass import Reranker
from secondpass.cli import run
from secondpass.command.flags import On
from secondpass.command.score import Placement
from secondpass.errors import DataError, EngineError
from secondpass.scale.batch import FolderRows, Job, ScoreBatch, ScoreBlock, open_job
from secondpass.scoring.open import ModelOptions
from tests.hub_models import GRAPHS, NAME, connected, model_files

WORDS = "river bridge water long short deep stone market garden winter".split()
SECONDPASS = [sys.executable, "-m", "secondpass"]


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "query": f"which {WORDS[i // 7 % 10]}", "passage": " ".join(WORDS[i % 10 :]) + f" {i}"}
        for i in range(count)
    ]


def small_model(folder: Path) -> Path:
    """A checkpoint whose making needs torch, which is not everywhere where Ray is."""
    pytest.importorskip("torch")
    from tests.checkpoints import tiny_bert

    return tiny_bert(folder)


def write(file: Path, rows: Sequence[Any]) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return file


def results(folder: Path, kind: str = "part-*.jsonl") -> list[dict[str, Any]]:
    return [
        json.loads(line) for part in sorted(folder.glob(kind)) for line in part.read_text("utf-8").split("\n")[:-1]
    ]


def run_here(job: Job) -> None:
    score = ScoreBlock(folder=job.folder, options=job.options)
    for block in job.missing():
        score(block)


def test_scores_are_the_librarys_and_rows_keep_their_order_and_fields(tmp_path: Path) -> None:
    rows = rows_of(25)
    job = open_job([write(tmp_path / "in.jsonl", rows)], tmp_path / "out", ModelOptions(), rows_per_block=10)
    assert len(job.blocks) == 3
    run_here(job)
    found = results(job.folder)
    assert [{name: row[name] for name in ("id", "query", "passage")} for row in found] == rows
    expected = Reranker().score_pairs([(row["query"], row["passage"]) for row in rows[:10]])
    assert [row["score"] for row in found[:10]] == expected
    assert found[0]["probability"] == Reranker().probability(found[0]["score"])
    assert job.totals() == (25, 0)


@pytest.mark.promise("docs/scale.md", "Every row is in the one or the other, once")
def test_bad_rows_are_put_aside_with_their_reason_and_every_row_is_there_once(tmp_path: Path) -> None:
    bad = [
        "{",
        "[1]",
        {"query": "q"},
        {"query": 5, "passage": "p"},
        {"passage": "p"},
        '{"query": "\\ud800", "passage": 1}',
    ]
    good: list[Any] = [*rows_of(6), {"query": "q\ud800", "passage": "half\u2028a character \udfff"}]
    file = write(tmp_path / "in.jsonl", [*good[:3], *bad[:3], "", *good[3:], *bad[3:]])
    file.write_bytes(file.read_bytes() + b'{"query": "\xff", "passage": "p"}')
    job = open_job([file], tmp_path / "out", ModelOptions(), rows_per_block=4)
    run_here(job)
    failures = results(job.folder, "errors/*.jsonl")
    assert len(results(job.folder)) == len(good) and len(failures) == len(bad) + 1
    assert "not readable as JSON" in failures[0]["reason"] and failures[0]["source"] == f"{file}:4"
    assert 'has no "query" or no passage' in failures[2]["reason"]
    assert '"query" is a number; a string is needed' in failures[3]["reason"]
    assert job.totals() == (len(good), len(bad) + 1)


@pytest.mark.promise("docs/scale.md", "the block is halved until the pair at fault is alone")
def test_a_pair_that_the_engine_fails_at_does_not_fail_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = Reranker.score_pairs

    def fail(self: Reranker, pairs: Sequence[tuple[str, str]], **options: Any) -> list[float]:
        if any(passage.endswith(" 5") for _, passage in pairs):
            raise EngineError("no memory for this pair")
        return scored(self, pairs, **options)

    monkeypatch.setattr(Reranker, "score_pairs", fail)
    job = open_job([write(tmp_path / "in.jsonl", rows_of(12))], tmp_path / "out", ModelOptions(), rows_per_block=12)
    run_here(job)
    (failure,) = results(job.folder, "errors/*.jsonl")
    assert failure == {"record": rows_of(12)[5], "reason": "no memory for this pair"}
    assert [row["id"] for row in results(job.folder)] == [f"r{i}" for i in range(12) if i != 5]


def test_of_a_graph_on_a_hub_no_weights_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "in.jsonl", rows_of(3))
    with connected(tmp_path, monkeypatch) as hub:
        hub.commit(NAME, model_files() | GRAPHS)
        assert open_job([file], tmp_path / "out", ModelOptions(model=NAME, engine="openvino")).blocks
        assert not any(name == "model.safetensors" for _, name in hub.requests)
        offline = ModelOptions(model=NAME, engine="openvino", local_files_only=True)
        assert open_job([file], tmp_path / "offline", offline).blocks


def test_a_text_with_a_word_that_the_model_has_not_does_not_fail_the_others(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["extra"] = len(
        tokenizer["model"]["vocab"]
    )  # added, and the weights left as they were
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    rows = [{"query": "the river", "passage": passage} for passage in ("a bridge", "an extra bridge", "winter")]
    job = open_job([write(tmp_path / "in.jsonl", rows)], tmp_path / "out", ModelOptions(model=folder))
    run_here(job)
    (failure,) = results(job.folder, "errors/*.jsonl")
    assert failure["record"] == rows[1] and "take the tokenizer that belongs to the weights" in failure["reason"]
    assert [row["passage"] for row in results(job.folder)] == ["a bridge", "winter"]


def test_gzip_csv_and_several_files_are_read_as_lines(tmp_path: Path) -> None:
    rows = rows_of(7)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows[:4]).encode()))
    table = tmp_path / "b.csv"
    table.write_text("id,query,passage\n" + "".join(f"{r['id']},{r['query']},{r['passage']}\n" for r in rows[4:]))
    job = open_job([packed, table], tmp_path / "out", ModelOptions(), rows_per_block=3)
    run_here(job)
    assert [row["id"] for row in results(job.folder)] == [row["id"] for row in rows]
    job.close()
    assert not (job.folder / ".rows.jsonl").exists()


def test_rows_of_packed_lines_and_tables_are_put_aside_by_where_they_stood(tmp_path: Path) -> None:
    packed, table = tmp_path / "a.jsonl.gz", tmp_path / "b.csv"
    good = [json.dumps(row).encode() for row in rows_of(2)]
    packed.write_bytes(gzip.compress(b"\n".join([good[0], b"", b"{", b'{"query": "\xff"}', b"[1]", good[1]])))
    table.write_text("query,text\nq,p\nq\n")
    job = open_job([packed, table], tmp_path / "out", ModelOptions(), rows_per_block=2)
    run_here(job)
    assert [row.get("id") for row in results(job.folder)] == ["r0", "r1", None]
    failures = results(job.folder, "errors/*.jsonl")
    assert [row["source"] for row in failures] == [*(f"{packed}:{line}" for line in (3, 4, 5)), f"{table}:3"]
    assert [row["line"] for row in failures[:3]] == ["{", '{"query": "\ufffd"}', "[1]"]
    assert "utf-8" in failures[1]["reason"] and "is a list" in failures[2]["reason"]


def test_two_processes_at_one_job_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows_of(4)).encode()))
    first, second = (open_job([packed], tmp_path / "out", ModelOptions(), rows_per_block=2) for _ in range(2))
    known = second.missing()
    monkeypatch.setattr(second, "missing", lambda: known)  # as it saw the job when it began
    Placement().run(first)
    first.close()
    Placement().run(second)
    assert second.totals() == (4, 0)


def test_a_folder_in_which_another_process_begins_the_job_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = write(tmp_path / "in.jsonl", rows_of(2)), tmp_path / "out"
    folder.mkdir()
    (folder / ".score.json.partial-1").write_text("")  # what it writes first
    assert open_job([file], folder, ModelOptions()).blocks
    facts = (folder / "score.json").read_text()
    (folder / "score.json").unlink()
    listed = Path.iterdir

    def begun(path: Path) -> list[Path]:
        found = [each for each in listed(path) if each.name != "score.json"]
        (folder / "score.json").write_text(facts)
        return found

    monkeypatch.setattr(Path, "iterdir", begun)
    assert open_job([file], folder, ModelOptions()).blocks


def test_a_table_of_another_kind_is_refused_at_its_first_line(tmp_path: Path) -> None:
    file = tmp_path / "in.tsv"
    file.write_text("\nquery\tpassage\na\tb\n")
    with pytest.raises(DataError, match=r"in\.tsv:2: is no JSON object; JSON Lines, \.json, \.csv and \.parquet are"):
        open_job([file], tmp_path / "out", ModelOptions())


def test_the_first_row_of_a_file_with_a_mark_of_utf8_is_scored(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", rows_of(3))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))  # as Windows writes it
    job = open_job([file], tmp_path / "out", ModelOptions())
    run_here(job)
    assert [row["id"] for row in results(job.folder)] == ["r0", "r1", "r2"] and job.totals() == (3, 0)


def test_lines_that_are_packed_or_no_text_are_seen_whatever_their_name(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", rows_of(3))
    text = file.read_bytes()
    file.write_bytes(gzip.compress(text))
    job = open_job([file], tmp_path / "out", ModelOptions())
    run_here(job)
    assert job.totals() == (3, 0)
    file.write_bytes(text.decode().encode("utf-16"))
    with pytest.raises(DataError, match="is UTF-16; convert it to UTF-8 text first"):
        open_job([file], tmp_path / "other", ModelOptions())
    assert not (tmp_path / "other").exists()


def test_what_only_parquet_has_is_kept_as_text(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    row = {
        "query": b"r\xc3\xado",
        "passage": "p",
        "day": date(2026, 1, 2),
        "when": datetime(2026, 1, 2, 3),
        "cost": Decimal("1.50"),
    }
    parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / "in.parquet")
    job = open_job([tmp_path / "in.parquet"], tmp_path / "out", ModelOptions())
    run_here(job)
    (found,) = results(job.folder)
    assert found["query"] == "r\u00edo" and found["day"] == "2026-01-02"
    assert found["when"] == "2026-01-02T03:00:00" and found["cost"] == "1.50"


def test_a_job_that_cannot_be_begun_leaves_no_folder(tmp_path: Path) -> None:
    table, folder = tmp_path / "in.csv", tmp_path / "out"
    table.write_text("query,passage\na,b\nc,d,e\n")
    with pytest.raises(DataError, match=r"in\.csv:3: has 3 columns"):
        open_job([table], folder, ModelOptions())
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(DataError, match=r"in\.csv:3: has 3 columns"):
        open_job([table], folder, ModelOptions())
    assert not any(folder.iterdir())
    table.write_text("query,passage\na,b\nc,d\n")
    assert open_job([table], folder, ModelOptions()).blocks
    table.write_text("query,passage\na,b\nc,d,e\n")
    with pytest.raises(DataError, match="another job"):
        open_job([table], folder, ModelOptions())
    assert (folder / "score.json").is_file()  # a job that was begun is left as it is


def test_a_job_that_is_ended_while_its_rows_are_counted_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    table = tmp_path / "in.csv"
    table.write_text("query,passage\na,b\n")
    monkeypatch.setattr("secondpass.scale.batch._blocks", ended)
    with pytest.raises(KeyboardInterrupt):
        open_job([table], tmp_path / "out", ModelOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_a_pipe_is_scored_and_another_is_another_job(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)

    def opened(count: int) -> Job:
        writer = threading.Thread(target=write, args=(pipe, rows_of(count)))
        writer.start()
        try:
            return open_job([pipe], folder, ModelOptions(), rows_per_block=2)
        finally:
            writer.join()

    job = opened(5)
    ScoreBlock(folder=job.folder, options=job.options)(job.blocks[0])
    again = opened(5)
    assert [block.index for block in again.missing()] == [1, 2]
    run_here(again)
    again.close()
    assert [row["id"] for row in results(folder)] == ["r0", "r1", "r2", "r3", "r4"]
    with pytest.raises(DataError, match=r"another job \(what is piped in differs\)"):
        opened(4)
    assert opened(5).totals() == (5, 0)


def test_a_job_keeps_the_commit_that_it_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    file = write(tmp_path / "in.jsonl", rows_of(3))
    with connected(tmp_path, monkeypatch) as hub:
        first = hub.commit(NAME, model_files())
        for model in (NAME, f"{NAME}@main"):
            options, folder = ModelOptions(model=model), tmp_path / f"out-{len(model)}"
            hub.repositories[NAME].branches["main"] = first
            assert open_job([file], folder, options).options.revision == first
            hub.commit(NAME, model_files(2.0))
            assert open_job([file], folder, options).options.revision == first
            with pytest.raises(DataError, match=r"another job \(options, weights differ\)"):
                open_job([file], folder, replace(options, max_length=64))


@pytest.mark.slow
def test_a_beir_folder_pairs_each_query_with_its_candidates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [{"_id": f"d{n}", "text": f"{word} {n}"} for n, word in enumerate(WORDS)])
    write(folder / "queries.jsonl", [{"_id": "a", "text": "deep river"}, {"_id": "b", "text": "winter"}])
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\td0\t1\nb\td9\t1\n")
    write(folder / "mine.trec", ["a Q0 d7 1 3.0 mine", "a Q0 d0 2 2.0 mine"])
    command = ["score", str(folder), "--output", str(tmp_path / "out")]
    assert run([*command, "--depth", "2"]) == 0
    found = results(tmp_path / "out")
    assert [(row["query_id"], row["passage_id"]) for row in found] == [("a", "d0"), ("a", "d5"), ("b", "d9")]
    expected = Reranker().score_pairs([("deep river", "river 0"), ("deep river", "deep 5"), ("winter", "winter 9")])
    assert [row["score"] for row in found] == expected
    assert run([*command, "--depth", "3"]) == 1 and "another job (folders differ)" in capsys.readouterr().err
    assert run([*command[:3], str(tmp_path / "given"), "--first-stage", "run:mine.trec"]) == 0
    assert [row["passage_id"] for row in results(tmp_path / "given")] == ["d7", "d0"]
    given = FolderRows(read=lambda _: rows_of(2), choices={})
    for _ in range(2):  # what it writes is not among its inputs, though it lies inside
        assert open_job([folder], folder / "scores", ModelOptions(), folders=given).blocks
    write(folder / "corpus.jsonl", [{"_id": "d0", "text": "river"}])
    assert run([*command, "--depth", "2"]) == 1 and "another job (inputs differ)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.promise("docs/scale.md", "a folder belongs to one job, and another is refused")
def test_a_folder_belongs_to_one_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "in.jsonl", rows_of(5))
    open_job([file], tmp_path / "out", ModelOptions())
    assert open_job([file], tmp_path / "out", ModelOptions()).blocks
    with pytest.raises(DataError, match=r"another job \(options differ\)"):
        open_job([file], tmp_path / "out", ModelOptions(max_length=64))
    with pytest.raises(DataError, match=r"another job \(rows_per_block differ\)"):
        open_job([file], tmp_path / "out", ModelOptions(), rows_per_block=3)
    write(file, rows_of(6))
    with pytest.raises(DataError, match=r"another job \(inputs differ\)"):
        open_job([file], tmp_path / "out", ModelOptions())
    with pytest.raises(DataError, match="is not empty and holds no scores"):
        open_job([file], tmp_path, ModelOptions())
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        open_job([file], file, ModelOptions())
    told = ["score", str(file), "--output", str(tmp_path / "short"), "--max-length", "2"]
    assert run(told) == 2 and "leaves no room for any" in capsys.readouterr().err
    assert run(told[:-2]) == 0  # the folder had not become the wrong job's
    with pytest.raises(ValueError, match="rows_per_block is 0"):
        open_job([file], tmp_path / "other", ModelOptions(), rows_per_block=0)


def test_a_batch_travels_as_words_and_scores_columns() -> None:
    batch = pickle.loads(pickle.dumps(ScoreBatch("default", document="text")))
    rows = rows_of(6)
    columns = {"query": np.array([r["query"] for r in rows]), "text": np.array([r["passage"] for r in rows])}
    found = batch(columns)
    expected = Reranker().score_pairs([(row["query"], row["passage"]) for row in rows])
    assert found["score"].dtype == np.float32 and found["score"].tolist() == pytest.approx(expected)
    assert set(found) == {"query", "text", "score", "probability"} and "score" not in columns
    with pytest.raises(DataError, match="no column 'text'; it has 'query'"):
        batch({"query": columns["query"]})
    for missing in (None, float("nan"), b"c"):
        with pytest.raises(DataError, match=f"column 'text': row 1 of the batch is {missing!r}"):
            batch({"query": ["a", "b"], "text": ["c", missing]})


class Frame:
    """As polars' frames are: columns by their names, but no mapping."""

    columns = ("query", "document")

    def __getitem__(self, name: str) -> list[str]:
        return [name]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"query": ["a"], "document": ["b", "c"]}, "the batch has 1 rows of 'query' and 2 of 'document'"),
        ({"query": "ab", "document": ["b", "c"]}, "column 'query' is a str; a list of texts is needed"),
        ({"query": b"ab", "document": ["b", "c"]}, "column 'query' is a bytes; a list of texts is needed"),
        (Frame(), r"the batch is a Frame; give a mapping of columns, as frame.to_dict\(as_series=False\)"),
        ([{"query": "a", "document": "b"}], "the batch is a list; give a mapping of columns"),
    ],
)
def test_a_batch_that_is_no_table_is_refused_in_words(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ScoreBatch("default")(batch)


def test_a_batch_takes_a_folder_as_a_path(tmp_path: Path) -> None:
    columns = {"query": ["the river"], "document": ["a bridge"]}
    folder = small_model(tmp_path / "model")
    assert ScoreBatch(folder)(columns)["score"] == ScoreBatch(str(folder))(columns)["score"]
    file = write(tmp_path / "in.jsonl", rows_of(2))
    assert open_job([file], tmp_path / "out", ModelOptions(model=folder)).blocks


@pytest.mark.parametrize("flags", [("--address", "auto"), ("--actors", "16"), ("--gpus", "1")])
def test_flags_of_ray_are_refused_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, str]
) -> None:
    file = write(tmp_path / "in.jsonl", rows_of(2))
    assert run(["score", str(file), "--output", str(tmp_path / "out"), *flags]) == 2
    assert f"{flags[0]} does nothing without --on ray" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no /dev/stdin")
def test_a_dash_is_standard_input(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows_of(3))
    command = [*SECONDPASS, "score", "-", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, f"3 pairs with scores in {tmp_path / 'out'}\n")


def test_without_ray_a_folder_does_not_become_a_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("secondpass.scale.ray.find_spec", lambda name: None)
    file = write(tmp_path / "in.jsonl", rows_of(2))
    assert run(["score", str(file), "--output", str(tmp_path / "out"), "--device", "cpu,cpu"]) != 0
    assert "ray is not installed" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.promise("docs/scale.md", "the command can be killed at any moment and called again")
@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    file, folder = write(tmp_path / "in.jsonl", rows_of(600)), tmp_path / "out"
    command = [*SECONDPASS, "score", str(file), "--output", str(folder), "--rows", "20"]
    for wanted in (1, 8, 20):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(folder.glob("part-*"))) < wanted:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = {part: part.stat().st_mtime_ns for part in folder.glob("part-*")}
    assert len(before) >= 20
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "600 pairs" in done.stderr
    assert [row["id"] for row in results(folder)] == [f"r{i}" for i in range(600)]
    assert {part: part.stat().st_mtime_ns for part in before} == before
    assert not list(folder.glob(".*partial*"))


@pytest.mark.slow
def test_the_command_says_what_failed_and_where(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [*rows_of(3), "{"])
    command = [*SECONDPASS, "score", str(file), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "3 pairs with scores" in done.stderr and "1 rows could not be scored" in done.stderr
    command[4] = str(tmp_path / "no")
    missing = subprocess.run(command, capture_output=True, text=True, check=False)
    assert missing.returncode == 2 and "no such file" in missing.stderr
    assert {each.value for each in On} == {"process", "ray"}
