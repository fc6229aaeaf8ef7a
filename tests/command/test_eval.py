"""`secondpass eval` and `calibrate` with a small real model, run as a user runs them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from secondpass import Reranker, cli
from secondpass.calibration import Calibration
from secondpass.command.sets import Sets
from secondpass.evaluation import evaluate, read_run
from tests.checkpoints import tiny_bert
from tests.evaluation.datasets.test_dataset import lines, write
from tests.evaluation.sets import small_set
from tests.goldens import SHARED


@dataclass(frozen=True)
class Place:
    model: Path
    data: Path
    lists: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("eval")
    dataset = small_set()
    data = folder / "data"
    write(data / "corpus.jsonl", lines({"_id": name, "text": text} for name, text in dataset.documents.items()))
    write(data / "queries.jsonl", lines({"_id": name, "text": text} for name, text in dataset.queries.items()))
    rows = [f"{query}\t{name}\t{grade}" for query, grades in dataset.qrels.items() for name, grade in grades.items()]
    write(data / "qrels" / "test.tsv", "\n".join(rows))
    run = [f"q{n} Q0 r{n} 1 2.5 t\nq{n} Q0 o{n}-0 2 1.5 t" for n in range(12)]
    write(data / "first.run", "\n".join(run))
    lists = write(
        folder / "lists.jsonl",
        lines({"query": f"river {n}", "pos": [f"the river {n}"], "neg": ["snow", f"bridge {n}"]} for n in range(9)),
    )
    return Place(tiny_bert(folder / "model"), data, lists)


@pytest.fixture(autouse=True)
def _streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_set_up_streams", lambda: None)


def called(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_tables_are_printed(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    code, out, err = called(capsys, "eval", place.data, place.lists, "--model", place.model, "--depth", "2,6")
    assert (code, err) == (0, "")
    assert out.startswith("# Does the reranker help?")
    for name in ("| data ", "| lists ", "| average ", "## Speed", "## Hurt most by"):
        assert name in out


def test_names_that_a_run_cannot_hold_are_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    texts = {"ship log": "the ship sails", "other": "a tree grows"}
    write(tmp_path / "set" / "corpus.jsonl", lines({"_id": name, "text": text} for name, text in texts.items()))
    write(tmp_path / "set" / "queries.jsonl", lines([{"_id": "q", "text": "which ship sails"}]))
    write(tmp_path / "set" / "qrels" / "test.tsv", "q\tship log\t1")
    options = ("--model", place.model, "--run", tmp_path / "x.run")
    code, out, err = called(capsys, "eval", tmp_path / "set", *options)
    assert (code, out) == (1, "") and "'ship log' of query 'q': TREC's columns hold no names with blanks" in err


def test_json_has_what_python_gives(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    arguments = ("--model", place.model, "--depth", "6", "--measures", "MRR@10,MAP", "--json", "--no-latency")
    code, out, _ = called(capsys, "eval", place.data, *arguments)
    found = json.loads(out)
    evaluation = evaluate(Reranker(place.model), small_set(), depths=[6], measures=["MRR@10", "MAP"])
    assert code == 0 and found["measures"] == ["MRR@10", "MAP"]
    (measured,) = found["measured"]
    for measure in evaluation.measures:
        assert measured["after"][str(measure)] == pytest.approx(evaluation.after(measure, 6).mean(), abs=1e-9)
        assert measured["before"][str(measure)] == pytest.approx(evaluation.before(measure, 6).mean(), abs=1e-9)
    assert found["models"][str(place.model)]["engine"] == "torch" and found["speed"] == []


def test_a_run_of_the_set_is_reranked(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    options = ("--model", place.model, "--first-stage", "run:first.run", "--json")
    code, out, _ = called(capsys, "eval", place.data, *options)
    (measured,) = json.loads(out)["measured"]
    assert code == 0
    assert measured["before"]["MRR@10"] == 1.0 and measured["first_stage"] == "run:first.run"


@pytest.mark.slow
def test_reports_are_written(capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    html, markdown = tmp_path / "report.html", tmp_path / "report.md"
    options = ("--model", place.model, "--queries", "5", "--html", html, "--markdown", markdown)
    code, out, _ = called(capsys, "eval", place.data, *options)
    assert code == 0 and markdown.read_text("utf-8") == out
    assert "5 of 12 queries, drawn with seed 0" in html.read_text("utf-8")


def test_rankings_are_written_for_other_tools(
    capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    file = tmp_path / "out.run"
    options = ("--model", place.model, "--depth", "6", "--no-latency")
    assert called(capsys, "eval", place.data, *options, "--run", file)[0] == 0
    evaluation = evaluate(Reranker(place.model), small_set(), depths=[6])
    assert read_run(file) == evaluation.scores
    assert called(capsys, "eval", place.data, place.lists, *options, "--run", file)[0] == 0
    written = {path.name.split(".")[1] for path in tmp_path.glob("out.*.run")}
    assert written == {"data", "lists"}
    assert called(capsys, "eval", place.data, *options, "--run", tmp_path / "none" / "x.run")[0] == 2


def test_a_cache_gives_the_same_figures_without_computing(
    capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    cache = tmp_path / "scores.sqlite"
    options = ("--model", place.model, "--cache", cache, "--json", "--no-latency")
    first = json.loads(called(capsys, "eval", place.data, *options)[1])
    kept = cache.stat().st_mtime_ns, num_kept(cache)
    assert json.loads(called(capsys, "eval", place.data, *options)[1]) == first
    assert (cache.stat().st_mtime_ns, num_kept(cache)) == kept


def num_kept(cache: Path) -> int:
    with sqlite3.connect(cache) as store:
        (number,) = store.execute("SELECT count(*) FROM scores").fetchone()
    store.close()
    return int(number)


@pytest.mark.parametrize("options", [(), ("--cache", "scores.sqlite")])
def test_what_is_timed_reads_every_passage_anew(
    options: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of a lesser depth were read at the greatest: from the memory of the embedded model they cost nothing."""
    real, timed = Reranker.score, list[bool]()

    def watched(self: Reranker, query: str, documents: Any) -> list[float]:
        timed.append(self._scoring.engine.facts.keeps_passages)
        return real(self, query, documents)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Reranker, "score", watched)
    code, _, err = called(capsys, "eval", place.data, "--queries", "2", "--depth", "1,3", "--json", *options)
    assert code == 0, err
    assert not timed[-1] and any(timed) == bool(options)


@pytest.mark.promise("docs/evaluation.md", "A run that was interrupted goes on where it was")
def test_an_interrupted_evaluation_goes_on(place: Place, tmp_path: Path) -> None:
    cache = tmp_path / "scores.sqlite"

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Reranker(place.model, score_cache=cache), small_set(), depths=[6], progress=interrupt)
    assert num_kept(cache) == 3 * 6
    resumed = evaluate(Reranker(place.model, score_cache=cache), small_set(), depths=[6])
    assert num_kept(cache) == 12 * 6
    assert resumed.scores == evaluate(Reranker(place.model), small_set(), depths=[6]).scores


def test_calibrate_writes_beside_the_model(capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path) -> None:
    model = tiny_bert(tmp_path / "model")
    reranker = Reranker(model)
    texts = [f"{word} {number}" for word in ("river", "snow", "bridge", "stone") for number in range(10)]
    cut = sorted(reranker.score("which river", texts))[20]
    rows = [
        {"query": f"which {word}", "text": text, "label": int(score > cut)}
        for word in ("river", "snow", "bridge", "stone", "road", "ship")
        for text, score in zip(texts, reranker.score(f"which {word}", texts), strict=True)
    ]
    file = write(tmp_path / "pairs.jsonl", lines(rows))
    code, out, err = called(capsys, "calibrate", file, "--model", model, "--precision", "0.8")
    assert (code, err) == (0, "")
    assert "precision 0.8: accept a score of" in out and "written to" in out
    calibration = Calibration.load(model)
    assert calibration.fitted_on["pairs"] == 240 and calibration.model["model"] == str(model)
    hit = Reranker(model, calibration=model).rank("which river", texts)[0]
    assert hit.probability == calibration.probability(hit.score)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("eval",), "Missing argument"),
        (("eval", "{data}", "--depth", "10,x"), "--depth 10,x: give whole numbers"),
        (("eval", "{data}", "--depth", "0"), "--depth 0"),
        (("eval", "{data}", "--measures", "F1"), "there is no measure 'F1'"),
        (("eval", "{data}", "--first-stage", "bm26"), "give bm25, run:FILE or embedder:NAME"),
        (("eval", "{data}", "--first-stage", "run:"), "give bm25, run:FILE or embedder:NAME"),
        (("eval", "{data}", "--html", "/no/such/folder/x.html"), "there is no folder"),
        (("eval", "{data}", "--run", "{data}"), "is a folder; name a file"),
        (("eval", "{data}", "--seed", "-1"), "--seed"),
        (("eval", "{data}", "--pipeline", "--run", "x.trec"), "leave out what writes files"),
        (("eval", "{data}", "--pipeline", "--first-stage", "run:x.trec"), "--pipeline searches itself"),
        (("calibrate", "{data}"), "name a file with --output"),
        (("calibrate", "{data}", "--output", "x.json", "--precision", "2"), "--precision 2.0"),
    ],
)
def test_wrong_use_is_one_sentence(
    capsys: pytest.CaptureFixture[str], place: Place, arguments: tuple[str, ...], sentence: str
) -> None:
    code, out, err = called(capsys, *(argument.format(data=place.data) for argument in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sentence in err


def test_bad_data_is_named(capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", '{"query": "a", "text": "b", "label": 1}\n{"query": "a", "text": "c"}\n')
    code, _, err = called(capsys, "calibrate", file, "--model", place.model)
    assert code == 1 and 'pairs.jsonl:2: "label" is None; 1 or true, 0 or false' in err
    code, _, err = called(capsys, "eval", place.data, "--first-stage", "run:nowhere.run")
    assert code == 1 and "nowhere.run: there is no such file" in err


@pytest.mark.slow
def test_bm25_and_the_embedded_model_need_no_torch(place: Place) -> None:
    """With the import of torch made to fail, as in a default install."""
    code = (
        "import sys; sys.modules['torch'] = None; from secondpass import cli; "
        f"command = ['eval', {str(place.data)!r}, '--queries', '2', '--depth', '3', '--json']; "
        "sys.exit(cli.run(command))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["models"]["default"]["engine"] == "openvino"


def test_each_layer_is_measured_as_a_model_of_its_own(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    model = SHARED / "golden" / "minicpm-layerwise"
    if not model.is_dir():
        pytest.skip("no reference figures here")
    options = ("--model", model, "--depth", "3", "--no-latency", "--json", "--queries", "3")
    code, out, _ = called(capsys, "eval", place.data, *options, "--layers", "3,6")
    assert code == 0
    assert [name.rpartition("@")[2] for name in json.loads(out)["models"]] == ["layer-3", "layer-6"]
    code, _, err = called(capsys, "eval", place.data, *options, "--layers", "1")
    assert code == 2 and "there are 2, 3, 4, 5, 6" in err
    code, _, err = called(capsys, "eval", place.data, "--model", place.model, "--layers", "3", "--no-latency")
    assert code == 2 and "layer-wise" in err


@pytest.mark.slow
def test_each_ratio_is_measured_at_each_layer(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    model = SHARED / "golden" / "gemma2-lightweight"
    if not model.is_dir():
        pytest.skip("no reference figures here")
    options = ("--model", model, "--depth", "3", "--queries", "2", "--layers", "4,6", "--ratios", "1,2")
    code, out, err = called(capsys, "eval", place.data, *options, "--compress-layers", "2")
    assert code == 0, err
    lines = [line for line in out.partition("## Speed")[2].splitlines() if "@ratio" in line and line[0] == "|"]
    assert [line.split("|")[1].strip().partition("@")[2] for line in lines] == [
        f"layer-{layer}@ratio-{ratio}" for layer in (4, 6) for ratio in (1, 2)
    ]
    assert all(0 <= float(line.split("|")[3]) <= 1 for line in lines)  # the quality, beside its time
    code, _, err = called(capsys, "eval", place.data, "--model", model, "--compress-layers", "2")
    assert code == 2 and "--ratios" in err


def test_a_second_model_that_is_not_there_is_said_before_the_first_is_measured(
    capsys: pytest.CaptureFixture[str], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sets, "each", lambda *_: pytest.fail("the work began"))
    code, _, err = called(capsys, "eval", place.data, "--model", place.model, "--model", "nothere")
    assert code == 1 and "'nothere': no such folder" in err
    layered = SHARED / "golden" / "minicpm-layerwise"
    if layered.is_dir():
        code, _, err = called(capsys, "eval", place.data, "--model", layered, "--layers", "3,99")
        assert code == 2 and "cutoff_layer 99: there are 2, 3, 4, 5, 6" in err
