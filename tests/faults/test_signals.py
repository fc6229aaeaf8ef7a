"""Ctrl-C and SIGTERM at every stage of long commands: silence, nothing half written, and the next call is right."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from secondpass import cli
from secondpass.training import save_data
from secondpass.training.processes import SIGNALS, Stopping
from secondpass.training.trainer import Trainer
from tests.checkpoints import tiny_bert
from tests.evaluation.sets import small_set
from tests.server.test_workers import children, is_running, process, until
from tests.training.toy import THINGS, toy_examples

STAGES = 3  # moments of a command's run at which it is told to stop
SECONDPASS = [sys.executable, "-W", "ignore", "-m", "secondpass"]


@dataclass(frozen=True)
class Long:
    """A command with what it reads, and whether what it left is whole: nothing, or all of it."""

    arguments: Sequence[str]
    output: Path
    is_whole: Callable[[Path], bool]

    def started(self) -> subprocess.Popen[str]:
        command = [*SECONDPASS, *self.arguments]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def is_json(path: Path) -> bool:
    return isinstance(json.loads(path.read_text()), dict)


def is_lines(path: Path) -> bool:
    files = [path] if path.is_file() else sorted(path.rglob("*.jsonl"))
    return all(isinstance(json.loads(line), dict) for file in files for line in file.read_text().splitlines())


def is_model(path: Path) -> bool:
    return (path / "config.json").is_file() and any(path.rglob("openvino_model.xml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder, and pairs."""
    folder, found = tmp_path_factory.mktemp("data"), small_set()
    for name, texts in (("corpus", found.documents), ("queries", found.queries)):
        rows = [json.dumps({"_id": each, "text": text}) for each, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "qrels").mkdir()
    rows = [f"{query}\t{name}\t{grade}" for query, grades in found.qrels.items() for name, grade in grades.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")
    pairs = [json.dumps({"query": "which river", "passage": f"the river {n} " * 20}) for n in range(300)]
    (folder / "pairs.jsonl").write_text("\n".join(pairs) + "\n")
    return folder


def long(name: str, model: Path, data: Path, out: Path) -> Long:
    """The commands that write, by name."""
    report, index = out / "report.md", out / "index"
    found = {
        "calibrate": Long(
            ["calibrate", str(data), "--model", str(model), "--output", str(out / "c.json")], out / "c.json", is_json
        ),
        "eval": Long(
            ["eval", str(data), "--model", str(model), "--markdown", str(report), "--cache", str(out / "cache")],
            report,
            lambda path: "nDCG@10" in path.read_text(),
        ),
        "export": Long(["export", str(model), "--output", str(out / "graph")], out / "graph", is_model),
        "score": Long(
            ["score", str(data / "pairs.jsonl"), "--output", str(out / "scores"), "--rows", "20"],
            out / "scores",
            is_lines,
        ),
        "mine": Long(
            ["mine", str(data), "--split", "test", "--output", str(out / "mined.jsonl")],
            out / "mined.jsonl",
            is_lines,
        ),
        "add": Long(["add", str(data), "--folder", str(index)], index, lambda path: path.is_dir()),
    }
    return found[name]


@pytest.mark.slow
@pytest.mark.promise("docs/search.md", "Ending the process at any moment")
@pytest.mark.promise("docs/evaluation.md", "A run that was interrupted goes on where it was")
@pytest.mark.promise("docs/export.md", "whole or not at all")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("name", ["calibrate", "eval", "export", "score", "mine", "add"])
def test_a_command_is_told_to_stop(
    name: str, number: signal.Signals, model: Path, data: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    command = long(name, model, data, whole)
    begun = time.monotonic()
    running = command.started()
    assert running.communicate(timeout=300)[1] is not None
    assert running.returncode == 0 and command.output.exists() and command.is_whole(command.output)
    took = time.monotonic() - begun
    out = tmp_path / "out"
    out.mkdir()
    command = long(name, model, data, out)
    for stage in range(STAGES):
        running = command.started()
        time.sleep(took * (stage + 0.5) / STAGES)
        running.send_signal(number)
        said = running.communicate(timeout=120)[1]
        # done before, told, told before it began; and what Python does where exec() of a text was interrupted
        assert running.returncode in (0, 128 + number, -number, -signal.SIGINT), said
        # where Python was in a callback that nobody can be told of, it prints what it ignored there
        assert "Traceback" not in said or "Exception ignored in" in said
        # what `mine` goes on from has no dot before its name
        assert not list(out.rglob(".*.partial-*")), os.listdir(out)
        if command.output.exists():
            assert command.is_whole(command.output)
            # told after the last write: what these two have written is not written again
            if running.returncode == 0 or name in {"export", "mine"}:
                return
    running = command.started()
    said = running.communicate(timeout=300)[1]
    assert running.returncode == 0, said
    assert command.is_whole(command.output)


@pytest.mark.slow
def test_a_signal_after_another_thread_closed_the_model() -> None:
    code = """
        import gc, signal, threading
        from secondpass import Reranker
        kept = [Reranker("default")]
        kept[0].rank("a question", ["a text"])

        def close():
            kept.pop().close()
            gc.collect()

        closing = threading.Thread(target=close)
        closing.start()
        closing.join()
        signal.signal(signal.SIGINT, lambda *_: print("heard"))
        signal.raise_signal(signal.SIGINT)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, "heard"), ended.stderr


QUICK = ["--device", "cpu", "--dtype", "float32", "--lr", "1e-3", "--batch", "4"]
LESSONS = {
    "train": ["train", "base", "toy.jsonl", "--negatives", "3", "--epochs", "40"],
    "pretrain": ["pretrain", "base", "texts.txt", "--method", "mlm", "--epochs", "40"],
    "distil": [
        *("distil", "manual.md", "--teacher", "teacher", "--student", "base", "--epochs", "40"),
        *("--min-spread", "0", "--depth", "8", "--held-out", "0.3"),
    ],
}
# Words on standard error after which a run is told to stop, in this order; the first: while modules are imported.
MOMENTS = {
    "train": ["", "model: ", "step "],
    "pretrain": ["", "run: ", "step "],
    "distil": ["", "the teacher", "step "],
}


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and texts to learn from."""
    folder = tmp_path_factory.mktemp("lessons")
    tiny_bert(folder / "base")
    tiny_bert(folder / "teacher", seed=3)
    save_data(toy_examples(28), folder / "toy.jsonl")
    (folder / "texts.txt").write_text("\n\n".join(example.positives[0] for example in toy_examples(28)))
    told = [
        f"## Where is the {thing}\n\nThe {thing} is in the city. The {thing} was old and cold.\n" for thing in THINGS
    ]
    (folder / "manual.md").write_text("\n".join(["# A city\n", *told]))
    return folder


def lesson(name: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [*SECONDPASS, *LESSONS[name], "--output", f"out-{name}", *QUICK, *more]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def told_after(running: subprocess.Popen[str], words: str, number: signal.Signals) -> str:
    """Tell it to stop once a line begins like that; all that it says."""
    assert running.stderr is not None
    said = ""
    with running.stderr as lines:
        while words and not said.rpartition("\n")[0].rpartition("\n")[2].startswith(words):
            line = lines.readline()
            assert line, said
            said += line
        time.sleep(0 if words else 0.5)
        running.send_signal(number)
        said += lines.read()
    running.wait(timeout=300)
    return said


@pytest.mark.slow
@pytest.mark.promise(
    "docs/training.md", "Ctrl-C (or SIGTERM) finishes the step, saves, and prints the command that goes on"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("name", LESSONS)
def test_learning_is_told_to_stop_at_every_stage(name: str, number: signal.Signals, lessons: Path) -> None:
    out = lessons / f"out-{name}"
    shutil.rmtree(out, ignore_errors=True)
    for words in MOMENTS[name]:
        running = lesson(name, lessons, *(["--resume"] if (out / "training" / "run.json").exists() else []))
        said = told_after(running, words, number)
        assert running.returncode in (128 + number, 128 + signal.SIGINT, -number, -signal.SIGINT), said
        assert "Traceback" not in said and not list(out.rglob("*.partial-*"))
        assert not (out / "model.safetensors").exists()
        assert words != "step " or "To go on: " in said
    running = lesson(name, lessons, "--resume")
    said = running.communicate(timeout=300)[1]
    assert running.returncode == 0, said
    assert (out / "config.json").is_file() and (out / "model.safetensors").is_file()
    assert name != "distil" or list((out / "int8").rglob("openvino_model.xml"))


def test_a_signal_while_the_handlers_of_others_are_put_back_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the last step ends: the first of two handlers is put back, and the signal of the second comes."""
    put_back, stopping = signal.signal, Stopping(lambda line: None)
    before = [put_back(number, signal.default_int_handler) for number in SIGNALS]
    sent: list[int] = []

    def then_comes(number: int, handler: Any) -> Any:
        found = put_back(number, handler)
        for other in SIGNALS:
            if signal.getsignal(other) == stopping._note and not sent:
                sent.append(other)
                signal.raise_signal(other)
        return found

    try:
        with stopping:
            monkeypatch.setattr(signal, "signal", then_comes)
        monkeypatch.undo()
        assert sent and stopping.signal == sent[0]
        assert [signal.getsignal(number) for number in SIGNALS] == [signal.default_int_handler] * 2
    finally:
        monkeypatch.undo()
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.slow
def test_distil_that_is_told_to_stop_at_its_last_step_leaves_the_report_to_the_next_call(
    lessons: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = lessons / "last"
    given = [str(lessons / each) if (lessons / each).exists() else each for each in LESSONS["distil"]]
    arguments = [*given, "--output", str(out), *QUICK, "--epochs", "1"]
    run = Trainer._run

    def to_the_last(self: Trainer, step: int, log: Any, asked: Any) -> int:
        done = run(self, step, log, asked)
        signal.raise_signal(signal.SIGTERM)
        return done

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_run", to_the_last)
            patch.setattr(sys, "argv", ["secondpass", *arguments])
            assert cli.run(arguments) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert "To go on: secondpass distil" in said and "\nstudent: " not in said
    assert (out / "model.safetensors").is_file()
    command = [*SECONDPASS, *arguments, "--resume"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "student, int8: nDCG@10" in found.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_in_an_import_waits_for_its_end(number: signal.Signals, tmp_path: Path) -> None:
    """Torch aborts the process where a callback of its compiled half gets an exception."""
    (tmp_path / "compiled.py").write_text(
        textwrap.dedent(f"""
        import signal, time
        try:
            signal.raise_signal({int(number)})
            time.sleep(0.1)
        except BaseException:
            print("aborted", flush=True)
        print("imported", flush=True)
        """)
    )
    program = """
        import secondpass.cli as cli

        def run(arguments, invocation):
            import compiled, time
            try:
                time.sleep(20)
            except KeyboardInterrupt:
                return 128 + invocation.signal

        cli.run = run
        cli.main()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (found.stdout, found.stderr, found.returncode) == ("imported\n", "", 128 + number)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_starts_is_told_to_stop(model: Path, workers: str, number: signal.Signals) -> None:
    for after_s in (0.2, 1.0, 2.0, 4.0):
        with process(f"tiny={model}", "--workers", workers, "--set", "log_level=warning") as found:
            time.sleep(after_s)
            begun = children(found.pid)
            code, log = found.stopped(number)
            assert code in (0, 128 + number, -number), log
            assert "Traceback" not in log or "secondpass/" not in log, log  # of Python itself, before it is here
            until(lambda begun=begun: not any(map(is_running, begun)))
