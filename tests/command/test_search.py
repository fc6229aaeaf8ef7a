"""The commands of the local pipeline, with the embedded reranker over a few notes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from secondpass import cli
from secondpass.cognitive import TERMS, Cognitive
from secondpass.command.search import bar, explained
from secondpass.search.index import Index


@pytest.fixture(autouse=True)
def _streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_set_up_streams", lambda: None)  # pytest's own streams are not to be changed


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "notes"
    place.mkdir()
    (place / "beans.md").write_text(
        "# Beans\n\nSoak them first. Dry beans cook for ninety minutes.\n\n## Salt\n\nLate.\n"
    )
    (place / "cars.txt").write_text("The car needs new tyres before winter.\n")
    monkeypatch.setenv("SECONDPASS_INDEXES", str(tmp_path / "indexes"))
    monkeypatch.chdir(place)
    return place


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(arguments)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_folder_is_added_searched_listed_and_removed(notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capsys, "add", ".", "--embedder", "none", "--name", "food")
    assert (code, out) == (0, "")
    assert err.startswith("food: 2 added; 2 files, 3 chunks")
    code, out, err = called(capsys, "search", "how long do beans cook", "--name", "food", "-n", "1", "--explain")
    assert code == 0
    rank, probability, _, source, heading, text, parts = out.rstrip("\n").split("\t")
    assert (rank, source, heading) == ("1", "beans.md:1", "Beans")
    assert float(probability) > 0.5
    assert text.startswith("# Beans\\n\\nSoak them first.")
    assert "bm25_rank=1" in parts
    (notes / "cars.txt").write_text("The car has new tyres now.\n")
    assert called(capsys, "update", "--name", "food")[2].startswith("food: 1 changed, 1 unchanged;")
    code, out, _ = called(capsys, "collections")
    assert out.split("\t")[:4] == ["food", "2", "3", "0"]
    assert called(capsys, "remove", "cars.txt", "--name", "food")[2] == "1 chunk forgotten\n"
    assert called(capsys, "remove", "--all", "--name", "food")[2] == "the index food is gone\n"
    assert called(capsys, "collections")[1] == ""


def test_states_are_kept_where_they_are_asked_for(notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {}
    for command in ("add . --embedder none --states", "update", "add . --no-states"):
        made[command] = json.loads(called(capsys, *command.split(), "--json")[1])
    assert [each["report"]["states"] for each in made.values()] == [3, 0, 0]
    assert made["add . --embedder none --states"]["status"]["bytes"] > made["add . --no-states"]["status"]["bytes"]


def test_json_has_everything(notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called(capsys, "add", "beans.md", "--embedder", "none")
    code, out, _ = called(capsys, "search", "when to salt", "--json", "--cognitive", "--field", "x=1", "--no-rerank")
    assert (code, json.loads(out)["results"]) == (0, [])
    _, out, _ = called(capsys, "search", "when to salt beans", "--json", "--cognitive")
    hit = json.loads(out)["results"][0]
    assert hit["file"] == str(notes / "beans.md")
    assert hit["parts"]["fused"] > 0
    assert hit["parts"]["final"] == pytest.approx(hit["parts"]["relevance"])
    assert hit["fields"]["characters"][1] > hit["fields"]["characters"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["search", "q"], 1, "there is no index 'default'; make it with: secondpass add FOLDER"),
        (["search", " "], 2, "the question is empty"),
        (["add", "nowhere"], 2, "nowhere: there is no such file or folder"),
        (["update", "--name", "a/b"], 2, "the name of an index is 'a/b'"),
        (["remove"], 2, "name the files and folders to forget"),
    ],
)
def test_errors_say_what_to_do(
    notes: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    seen, out, err = called(capsys, *arguments)
    assert (seen, out) == (code, "")
    assert said in err


def test_a_person_sees_where_the_answer_is(notes: Path) -> None:
    pytest.importorskip("pty")
    script = (
        "import pty, sys; sys.exit(pty.spawn([sys.executable, '-m', 'secondpass', "
        "'search', 'how long do beans cook', '-n', '1']) >> 8)"
    )
    subprocess.run([sys.executable, "-m", "secondpass", "add", ".", "--embedder", "none"], check=True, timeout=60)
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=60, check=True
    ).stdout.decode()
    assert "beans.md:1" in shown
    assert "\x1b[1mDry beans cook for ninety minutes." in shown


@pytest.mark.slow
def test_changes_are_followed_until_it_is_interrupted(notes: Path) -> None:
    pytest.importorskip("watchfiles")
    command = [sys.executable, "-m", "secondpass", "add", ".", "--embedder", "none", "--watch"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as watching:
        ending = threading.Timer(120, watching.kill)  # a line that never comes ends the reading
        ending.start()
        assert watching.stderr is not None
        lines = iter(watching.stderr)
        assert next(lines).startswith("default: 2 added; 2 files, 3 chunks")
        assert any(line.startswith("watching") for line in lines)
        watchers_start_s = 1.0  # after the line; what changes before is not told
        threading.Event().wait(watchers_start_s)
        (notes / "new.txt").write_text("something new about bread\n")
        assert any("1 added, 2 unchanged; 3 files" in line for line in lines)
        (notes / "cars.txt").unlink()
        assert any("1 removed, 2 unchanged; 2 files" in line for line in lines)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130
        ending.cancel()
    index = Index(folder=notes.parent / "indexes", reranker=None)
    assert [hit.document.text for hit in index.search("bread")] == ["something new about bread"]


def test_bars_have_eighths() -> None:
    assert bar(0.0) == " " * 10
    assert bar(1.0) == "█" * 10
    assert bar(0.55) == "█████▌    "
    assert bar(float("nan")) == " " * 10
    assert explained({"a": 1, "b": 0.25}) == "a=1 b=0.250"


@pytest.mark.slow
def test_feedback_is_recorded_by_rank_and_learnt_from_when_there_is_enough(
    notes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called(capsys, "add", ".", "--embedder", "none")
    code, _, err = called(capsys, "feedback", "how long do beans cook", "--used", "1", "--name", "default")
    assert (code, err) == (0, "used: beans.md:1\n")
    _, out, _ = called(capsys, "search", "how long do beans cook", "--json", "--cognitive", "-n", "1")
    assert json.loads(out)["results"][0]["parts"]["frequency"] > 0
    assert "has 1 judged searches; 200 are needed" in called(capsys, "feedback", "--fit")[2]
    assert "--used is 9, but" in called(capsys, "feedback", "beans", "--used", "9")[2]
    assert "give a question and what was of use" in called(capsys, "feedback")[2]


def judged(index: Index, weights: Mapping[str, float]) -> None:
    """Uses of 400 searches: of the hit that is best by these weights, with some noise."""
    rng = np.random.default_rng(1)
    with index.store.together():
        for number in range(400):
            relevance, terms = np.sort(rng.normal(1.0, 0.3, 5))[::-1], rng.uniform(-1, 1, (5, len(TERMS)))
            liked = relevance + terms @ [weights[name] for name in TERMS] + rng.gumbel(0, 0.2, 5)
            figures = [dict(zip(TERMS, row, strict=True)) for row in terms.tolist()]
            shown = [{"id": at, "relevance": relevance[at], **each} for at, each in enumerate(figures)]
            judgement = {"query": "q", "time": number, "hit": int(liked.argmax()), "kind": "used", "shown": shown}
            index.store.add_judgement(judgement)


@pytest.mark.parametrize("has_own_taste", [True, False])
def test_learnt_weights_are_taken_only_where_they_help_later_uses(
    notes: Path, capsys: pytest.CaptureFixture[str], has_own_taste: bool
) -> None:
    defaults = Cognitive().weights
    index = Index(folder=notes.parent / "indexes", embedder="none", create=True, reranker=None)
    index.set_weights(defaults)
    judged(index, {**dict.fromkeys(TERMS, 0.0), "importance": 1.0} if has_own_taste else defaults)
    code, out, _ = called(capsys, "feedback", "--fit")
    assert code == 0
    report = dict(line.split("\t") for line in out.splitlines())
    assert report["searches"] == "280 to learn from, 120 uses kept out"
    figures, verdict = report["MRR, learnt weights"].split(": ")
    low, high = (float(bound) for bound in figures.partition("(")[2].strip(")").split(" to "))
    change = float(figures.split()[0]) - float(report["MRR, default weights"])
    assert low - 0.002 <= change <= high + 0.002
    kept = json.loads(index.store.meta("weights") or "{}")
    if has_own_taste:
        assert (verdict, report["now in use"]) == ("helps", "the learnt weights")
        assert low > 0
        assert kept["importance"] > 2 * defaults["importance"]
    else:
        assert verdict != "helps"
        assert low <= 0
        assert (kept, report["now in use"]) == (defaults, "the weights of before")
    index.close()
