"""The real command: exit codes, what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from secondpass import __version__, cli
from secondpass.command.serve import address
from secondpass.server.settings import Settings
from tests.checkpoints import tiny_bert

COMMAND = (sys.executable, "-m", "secondpass")
TEXT = "the river is cold\nthe bridge is old\tand long\nsnow and wind in winter\n"


@dataclass(frozen=True)
class Place:
    model: Path
    notes: Path
    cache: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        return {**kept, "HF_HUB_CACHE": str(self.cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def rank(self, *options: str) -> list[str]:
        return [*COMMAND, "rank", "which river", "--model", str(self.model), *options]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "notes.txt").write_text(TEXT)
    return Place(tiny_bert(folder / "model"), folder / "notes.txt", folder / "cache")


def run(place: Place, command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=place.environment, timeout=60)


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line, run in this process."""
    code = cli.run(arguments)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture(autouse=True)
def _streams_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_set_up_streams", lambda: None)  # pytest's own streams are not to be changed


def test_help_is_quick_and_imports_nothing_heavy(place: Place) -> None:
    code = "import sys, secondpass.cli as c; c.run(['--help']); sys.stderr.write(repr(list(sys.modules)))"
    shown = run(place, [sys.executable, "-c", code])
    assert "rank" in shown.stdout
    for name in ("torch", "numpy", "rich", "openvino", "tokenizers", "huggingface_hub"):
        assert f"'{name}'" not in shown.stderr


@pytest.mark.slow
def test_piped_output_is_tab_separated(place: Place) -> None:
    shown = run(place, place.rank(str(place.notes), "--explain"))
    rows = [line.split("\t") for line in shown.stdout.splitlines()]
    assert shown.returncode == 0
    assert [row[0] for row in rows] == ["1", "2", "3"]
    scores = [float(row[2]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= float(row[1]) <= 1 for row in rows)
    assert {row[3] for row in rows} == {f"{place.notes}:{line}" for line in (1, 2, 3)}
    assert "the bridge is old\\tand long" in {row[4] for row in rows}
    assert re.search(r"3 rows, \d+ tokens, 0 truncated .* in all; .* on torch, cpu", shown.stderr)


def test_json_has_everything(place: Place) -> None:
    stdin = '{"text": "the river", "id": "é"}\n{"text": "a road", "id": 2}\n'
    shown = run(place, place.rank("--json", "--explain", "--long", "chunk", "--top", "1"), stdin)
    result = json.loads(shown.stdout)
    assert list(result) == ["query", "model", "usage", "results"]
    assert result["model"]["engine"] == "torch"
    assert result["usage"]["rows"] == 2
    (hit,) = result["results"]
    assert hit["rank"] == 1
    assert hit["fields"]["id"] == ("é", 2)[hit["index"]]
    assert hit["source"] == f"stdin:{hit['index'] + 1}"
    assert hit["span"] == [0, len(hit["text"])]
    assert hit["parts"]["tokens"] > 0


@pytest.mark.parametrize(("options", "why"), [((), "there is nothing to read"), (("--budget-ms", "9e9"), "the time")])
def test_what_is_left_unscored_is_said_with_its_reason(
    place: Place, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], why: str
) -> None:
    passages = ("--passage", "the river", "--passage", " ")
    code, out, err = called(capsys, *place.rank(*passages, *options)[3:])
    assert (code, len(out.splitlines())) == (0, 2)
    assert f"unscored, and so last: 1 of the passages; {why}" in err


@pytest.mark.slow
def test_a_terminal_shows_a_table(place: Place) -> None:
    """On a pseudo-terminal of 80 columns; passages are cut at 8 tokens, which is said."""
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    environment = {**place.environment, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
    command = place.rank(str(place.notes), "--max-length", "8")
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    shown = re.sub(r"\x1b\[2?m|\x1b\[0m", "", read_all(parent))
    assert process.wait(60) == 0
    assert "Traceback" not in shown
    assert re.search(r"probability .* passage .* source", shown)
    assert re.search(r"1  .*[█▏▎▍▌▋▊▉].* 0\.\d{3}  \w+", shown)
    assert shown.count("…") >= 3 and "notes.txt:1" in shown
    assert "3 of 3 passages were cut at 8 tokens; --long chunk reads them whole" in shown
    assert "\x1b[32" not in shown  # NO_COLOR


def read_all(descriptor: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # how Linux says that the other end is closed
            part = b""
        if not part:
            os.close(descriptor)
            return b"".join(parts).decode()
        parts.append(part)


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(place: Place) -> None:
    stdin = "".join(f"river {number} {'cold ' * 40}\n" for number in range(2000))
    command = [*place.rank("--top", "0", "--max-length", "8")]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=place.environment,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write(stdin)
    process.stdin.close()
    assert process.stdout.readline().startswith("1\t")
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 0


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(place: Place, tmp_path: Path) -> None:
    """Interrupted while it waits for its input, with nothing written to the terminal or the disk."""
    environment = {**place.environment, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [*COMMAND, "rank", "which river", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    wait_until_asleep(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


def wait_until_asleep(pid: int) -> None:
    """Until the process reads its input: it is in a pipe read and burns no time."""
    state = Path(f"/proc/{pid}/wchan")
    if not state.exists():
        pytest.skip("needs /proc")
    deadline = time.monotonic() + 30
    while "pipe" not in state.read_text() and time.monotonic() < deadline:
        select.select([], [], [], 0.02)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert called(capsys, "--version") == (0, f"secondpass {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("rank",), "Missing argument"),
        (("rnk",), "No such command 'rnk'"),
        (("rank", "q", "--top", "-1"), "--top"),
        (("rank", "q", "--long", "cut"), "--long"),
        (("rank", " ", "--passage", "x"), "the query is empty"),
        (("rank", "q", "no-such-file.txt"), "no-such-file.txt: there is no such file"),
        (("serve", "--calibration", "small=a.json"), "calibration is 'small=a.json'; give NAME=FILE"),
        (("serve", "--trusted-proxy", "proxy.example"), "trusted_proxies: 'proxy.example'"),
    ],
)
def test_wrong_use_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    code, out, err = called(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("secondpass: ") and sentence in err


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_serve_says_an_ipv6_address_in_one_pair_of_brackets(host: str) -> None:
    assert address(Settings(host=host), 8787) == "http://[::1]:8787"


@pytest.mark.parametrize(
    "options", [("--max-length", "4096"), ("--engine", "abacus"), ("--dtype", "int3"), ("--revision", "main")]
)
def test_values_that_the_model_refuses_are_wrong_use(
    capsys: pytest.CaptureFixture[str], place: Place, options: tuple[str, str]
) -> None:
    code, _, err = called(capsys, "rank", "q", "--passage", "x", "--model", str(place.model), *options)
    assert (code, err.count("\n")) == (2, 1)
    assert options[1] in err


def test_a_failed_job_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = called(capsys, "rank", "q", "--passage", "x", "--model", str(tmp_path))
    assert (code, out) == (1, "")
    assert err.startswith("secondpass: ") and "config.json" in err and err.count("\n") == 1


@pytest.mark.slow
def test_debug_shows_the_traceback(place: Place, tmp_path: Path) -> None:
    command = [*COMMAND, "rank", "q", "--passage", "x", "--model", str(tmp_path)]
    assert "Traceback" not in run(place, command).stderr
    shown = run(place, [*command, "--debug"])
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr


def test_nothing_to_rank_fails(place: Place) -> None:
    shown = run(place, place.rank(), stdin="\n")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == "secondpass: there is nothing to read in standard input\n"


def test_top_and_fields(capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"title": "t {n}", "body": "river {n}"}}\n' for n in range(12)))
    base = ("rank", "q", str(file), "--model", str(place.model), "--fields", "title,body")
    assert called(capsys, *base)[1].count("\n") == 10
    code, out, _ = called(capsys, *base, "--top", "0")
    assert (code, out.count("\n")) == (0, 12)
    assert re.search(r"\tt \d+ river \d+\n", out)
    notes = tmp_path / "notes.txt"
    notes.write_text("a river\n")
    code, out, err = called(capsys, *base, str(notes))
    told = f"{notes}:1: has none of the fields title, body (it has text)\n"
    assert (code, out.count("\n")) == (1, 10) and told in err  # named and left out, as a record without them is
    code, out, err = called(capsys, *base[:2], str(notes), *base[3:])
    assert (code, out, err) == (1, "", f"secondpass: {told}")


def test_models_lists_the_known_and_the_cached(
    capsys: pytest.CaptureFixture[str], place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    tiny_bert(tmp_path / "models--some--reranker" / "snapshots" / ("a" * 40))
    code, out, _ = called(capsys, "models")
    rows = {line.split("\t")[0]: line.split("\t") for line in out.splitlines()}
    assert code == 0
    assert rows["default"][-1] == "embedded"
    assert rows["some/reranker"][1] == "bert"
    assert rows["some/reranker"][-1].startswith("aaaaaaa (")
    listed = json.loads(called(capsys, "models", "--json")[1])
    assert listed[-1]["cached"][0]["revision"] == "a" * 40


def test_pull_prints_commit_and_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    assert called(capsys, "pull", str(place.model)) == (0, f"\t{place.model}\n", "")
    code, _, err = called(capsys, "pull", "owner/name", "--revision", "../x")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_short_line_and_a_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    _, line = cli.COMMANDS[name]
    code, out, _ = called(capsys, name, "--help")
    assert code == 0 and len(line) <= 64 and line.endswith(".")
    assert "--debug" in out and "..." not in line
    assert not re.search(r"<(list|str|int|float|bool)", out)


@pytest.mark.slow
def test_a_shell_is_told_what_could_come_next(place: Place) -> None:
    """As bash asks: first for a command, then for a flag."""
    asked = {**place.environment, "_SECONDPASS_COMPLETE": "complete_bash"}
    for words, index, expected in (("secondpass ca", "1", "calibrate"), ("secondpass rank --exp", "2", "--explain")):
        environment = {**asked, "COMP_WORDS": words, "COMP_CWORD": index}
        shown = subprocess.run(COMMAND, capture_output=True, text=True, env=environment, timeout=60)
        assert expected in shown.stdout.split(), shown.stderr


@pytest.mark.slow
def test_closed_streams_are_no_error(place: Place) -> None:
    """`>&-`: what would be printed is lost, as was asked for, and no file gets the stream's number."""
    line = shlex.join(place.rank(str(place.notes)))
    shown = subprocess.run(["sh", "-c", f"{line} >&-"], capture_output=True, text=True, env=place.environment)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
    shown = subprocess.run(["sh", "-c", f"{line} 2>&-"], capture_output=True, text=True, env=place.environment)
    assert (shown.returncode, shown.stdout.count("\n")) == (0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.03, 0.06, 0.12])
def test_ctrl_c_while_modules_are_imported_is_silent(place: Place, delay: float) -> None:
    """Sent at a moment of the imports, which is another one on every machine; from the first of them it is heeded."""
    code = (
        "import os, signal, sys, threading; from secondpass import __main__ as start; "
        f"threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGINT)).start(); "
        "sys.argv = ['secondpass', 'rank', 'which river', '-']; start.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=place.environment,
    )
    assert process.wait(60) == 130
    assert process.stdout is not None and process.stderr is not None and process.stdin is not None
    assert (process.stdout.read(), process.stderr.read()) == ("", "")
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def test_an_alarm_that_is_not_heard_is_followed_by_another(place: Place, tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text(
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
        "signal.sigwait([signal.SIGALRM])\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])\n"
    )
    code = f"""
import os, signal, sys
from secondpass.cli import Invocation
sys.path.append({str(tmp_path)!r})
signal.signal(signal.SIGINT, Invocation().interrupt)
import heavy
try:
    os.read(os.pipe()[0], 1)
except KeyboardInterrupt:
    print(signal.getitimer(signal.ITIMER_REAL))
"""
    assert run(place, [sys.executable, "-c", code]).stdout == "(0.0, 0.0)\n"


@pytest.mark.parametrize("is_alone", [True, False])
def test_the_process_ends_after_what_is_registered_and_what_still_runs(place: Place, is_alone: bool) -> None:
    code = f"""
import atexit, sys, threading, time
from secondpass import cli
atexit.register(print, "registered")
if not {is_alone}:
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
sys.argv = ["secondpass", "rank", " "]
cli.main()
"""
    shown = run(place, [sys.executable, "-c", code])
    assert (shown.returncode, shown.stderr.startswith("secondpass: the query is empty")) == (2, True)
    assert shown.stdout.split() == (["registered"] if is_alone else ["thread", "registered"])


def test_a_bad_file_among_many_is_named_and_the_rest_is_ranked(
    capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7")
    base = ("rank", "which river", "--model", str(place.model))
    code, out, err = called(capsys, *base, str(place.notes), str(tmp_path / "bad.pdf"))
    assert (code, out.count("\n")) == (1, 3)
    assert err == f"secondpass: {tmp_path / 'bad.pdf'}: is a PDF; convert it to UTF-8 text first\n"
    (tmp_path / "good.md").write_text("the river\n")
    code, out, err = called(capsys, *base, str(tmp_path))
    assert (code, out.count("\n"), err) == (0, 1, f"secondpass: {tmp_path}: left out .pdf (1)\n")
