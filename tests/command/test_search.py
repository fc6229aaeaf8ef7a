"""The commands of the local pipeline, with the embedded reranker over a few notes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


def test_a_file_that_was_named_and_is_left_out_is_told_to_scripts(
    notes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (notes / "damaged.ipynb").write_text("{")
    code, _, err = called(capsys, "add", ".", "--embedder", "none")
    assert code == 0 and "left out: " in err
    code, _, err = called(capsys, "add", "cars.txt", "damaged.ipynb", "--embedder", "none")
    assert code == 1 and "is no notebook" in err and "1 unchanged" in err


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
    assert code == 0 and out.split("\t")[:4] == ["food", "2", "3", "0"]
    assert called(capsys, "collections", "--name", "food")[:2] == (0, out)
    code, out, err = called(capsys, "collections", "--name", "papers")
    assert (code, out) == (1, "") and err.startswith("there is no index 'papers'; there are food")
    broken = notes.parent / "indexes" / "broken.sqlite"
    broken.write_bytes(b"SQLite format 3\0" + bytes(5000))
    code, out, err = called(capsys, "collections")
    assert code == 1 and out.startswith("food\t") and err.startswith(f"{broken}: is not an index")
    broken.unlink()
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


def test_a_path_is_asked_for_as_a_shell_writes_it(
    notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (notes / "food").mkdir()
    (notes / "food" / "more.md").write_text("Beans again.")
    (tmp_path / "link").symlink_to(notes)
    monkeypatch.setenv("HOME", str(notes))
    called(capsys, "add", ".", "--embedder", "none")
    for path in (
        "./food",
        "./food/*.md",
        "~/food",
        str(tmp_path / "link" / "food"),
        "food",
        "../notes/food",
        "*more*",
    ):
        _, out, _ = called(capsys, "search", "beans", "--no-rerank", "--path", path)
        assert [line.split("\t")[3] for line in out.splitlines()] == ["food/more.md:1"], path
    for path, count in ((".", 3), (".md", 3), ("~", 0), ("/food/", 1), ("/none/", 0)):
        _, out, _ = called(capsys, "search", "beans", "--no-rerank", "--path", path)
        assert len(out.splitlines()) == count, path


def test_a_folder_that_is_gone_is_a_place_to_search_from(
    notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called(capsys, "add", ".", "--embedder", "none")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, out, _ = called(capsys, "search", "tyres", "--no-rerank")
    assert (code, out.split("\t")[3]) == (0, f"{notes}/cars.txt:1")


def test_fields_are_asked_for_as_a_file_has_them(notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    front = '---\ntags: [work, 7]\ndraft: true\nrating: 4.5\nzip: "01234"\narea: "7"\n---\n'
    (notes / "front.md").write_text(f"{front}The beans are here.\n")
    called(capsys, "add", ".", "--embedder", "none")
    for field in ("tags=work", "tags=7", "draft=true", "rating=4.5", "zip=01234", 'area="7"'):
        _, out, _ = called(capsys, "search", "beans", "--no-rerank", "--field", field)
        assert [line.split("\t")[3] for line in out.splitlines()] == ["front.md:8"], field
    for field in ("tags=²", "draft=NaN", f"rating={2**70}", 'a"b=1'):
        code, out, err = called(capsys, "search", "beans", "--no-rerank", "--field", field)
        assert (code, out) in ((0, ""), (2, ""))
        assert "nothing is found" in err or "field" in err
    assert called(capsys, "search", "beans", "--no-rerank", "--since", "1700000000")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["search", "q"], 1, "there is no index 'default'; make it with: secondpass add FOLDER"),
        (["search", " "], 2, "the question is empty"),
        (["add", "nowhere"], 2, "nowhere: there is no such file or folder"),
        (["update", "--name", "a/b"], 2, "the name of an index is 'a/b'"),
        (["add", ""], 2, "a path is empty"),
        (["rank", "q", ""], 2, "a path is empty"),
        (["remove"], 2, "name the files and folders to forget"),
    ],
)
def test_errors_say_what_to_do(
    notes: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    seen, out, err = called(capsys, *arguments)
    assert (seen, out) == (code, "")
    assert said in err


@pytest.mark.slow
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


@contextmanager
def watching(*added: str) -> Iterator[Iterator[str]]:
    """The lines of an `add` that goes on, from its first; at the end it is interrupted."""
    pytest.importorskip("watchfiles")
    command = [sys.executable, "-m", "secondpass", "add", *added, "--embedder", "none", "--watch"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        ending = threading.Timer(120, process.kill)  # a line that never comes ends the reading
        ending.start()
        assert process.stderr is not None
        yield iter(process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        ending.cancel()


@pytest.mark.slow
def test_changes_are_followed_until_it_is_interrupted(notes: Path) -> None:
    with watching(".") as lines:
        assert next(lines).startswith("default: 2 added; 2 files, 3 chunks")
        assert any(line.startswith("watching") for line in lines)
        watchers_start_s = 1.0  # after the line; what changes before is not told
        threading.Event().wait(watchers_start_s)
        (notes / "new.txt").write_text("something new about bread\n")
        assert any("1 added, 2 unchanged; 3 files" in line for line in lines)
        (notes / "cars.txt").unlink()
        assert any("1 removed, 2 unchanged; 2 files" in line for line in lines)
    index = Index(folder=notes.parent / "indexes", reranker=None)
    assert [hit.document.text for hit in index.search("bread")] == ["something new about bread"]


@pytest.mark.slow
def test_a_file_that_is_written_by_renaming_is_followed_on_and_on(notes: Path) -> None:
    with watching("cars.txt") as lines:
        assert any(line.startswith("watching") for line in lines)
        for number in range(3):
            (notes / "new").write_text(f"what the car needs, version {number}\n")
            (notes / "new").rename(notes / "cars.txt")
            assert any("1 changed; 1 file" in line for line in lines)
        notes.rename(notes.parent / "unplugged")
        (notes.parent / "unplugged" / "cars.txt").write_text("back again\n")
        threading.Event().wait(2.5)
        (notes.parent / "unplugged").rename(notes)
        assert any("1 changed; 1 file" in line for line in lines)


def test_a_folder_that_goes_while_its_watch_begins_is_waited_for(
    notes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watchfiles = pytest.importorskip("watchfiles.main")
    away, tries, watcher = notes.parent / "unplugged", [], watchfiles.RustNotify

    def unplugged_first(paths: list[str], *options: object) -> object:
        tries.append(paths)
        if len(tries) == 1:
            notes.rename(away)
        elif len(tries) == 2:
            (away / "cars.txt").write_text("back again\n")
            away.rename(notes)
        else:
            raise KeyboardInterrupt
        return watcher(paths, *options)

    monkeypatch.setattr(watchfiles, "RustNotify", unplugged_first)
    code, _, err = called(capsys, "add", str(notes / "cars.txt"), "--embedder", "none", "--watch")
    assert code == 130
    assert "1 changed; 1 file" in err
    assert tries == [[str(notes / "cars.txt")], [], [str(notes / "cars.txt")]]


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
    assert "--rejected is 9, but" in called(capsys, "feedback", "beans", "--used", "1", "--rejected", "9")[2]
    index = Index(folder=notes.parent / "indexes", reranker=None)
    assert len(index.store.judgements()) == 1
    assert "give a question and what was of use" in called(capsys, "feedback")[2]


def test_nothing_is_learnt_where_nothing_was_of_use(notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = Index(folder=notes.parent / "indexes", embedder="none", create=True, reranker=None)
    judged(index, Cognitive().weights, kind="rejected")
    code, out, err = called(capsys, "feedback", "--fit")
    assert (code, out) == (2, "")
    assert "of the last 120 judgements none says that something was of use" in err
    index.close()


def judged(index: Index, weights: Mapping[str, float], kind: str = "used") -> None:
    """Uses of 400 searches: of the hit that is best by these weights, with some noise."""
    rng = np.random.default_rng(1)
    with index.store.together():
        for number in range(400):
            relevance, terms = np.sort(rng.normal(1.0, 0.3, 5))[::-1], rng.uniform(-1, 1, (5, len(TERMS)))
            liked = relevance + terms @ [weights[name] for name in TERMS] + rng.gumbel(0, 0.2, 5)
            figures = [dict(zip(TERMS, row, strict=True)) for row in terms.tolist()]
            shown = [{"id": at, "relevance": relevance[at], **each} for at, each in enumerate(figures)]
            judgement = {"query": "q", "time": number, "hit": int(liked.argmax()), "kind": kind, "shown": shown}
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
