"""Files and folders that appear whole or not at all: on errors, full disks, and processes that end in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from secondpass import Reranker, atomic
from secondpass.atomic import at_home, exchanged, user_folder, whole_file, whole_folder, write_text
from secondpass.errors import CheckpointError

HAS_EXCHANGE = sys.platform in ("linux", "darwin")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "renamed twice":
        monkeypatch.setattr(atomic, "exchanged", lambda first, second: False)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_a_home_that_nobody_has_is_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert at_home("~/notes") == tmp_path / "notes"
    assert at_home("~no-such-user/notes") == Path("~no-such-user/notes")
    with pytest.raises(CheckpointError, match="no such folder"):
        Reranker("~no-such-user/model")


@pytest.mark.parametrize(
    ("system", "data", "cache"),
    [
        ("linux", ".local/share/secondpass", ".cache/secondpass"),
        ("darwin", "Library/Application Support/secondpass", "Library/Caches/secondpass"),
        ("win32", "AppData/Local/secondpass", "AppData/Local/secondpass/cache"),
    ],
)
def test_the_folders_of_a_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, data: str, cache: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert (user_folder("data"), user_folder("cache")) == (tmp_path / data, tmp_path / cache)
    for chosen in ("", "relative/folder"):  # counts as if it were not set
        monkeypatch.setenv("XDG_DATA_HOME", chosen)
        assert user_folder("data") == tmp_path / data
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fast"))
    elsewhere = (tmp_path / "elsewhere" / "secondpass", tmp_path / "fast" / "secondpass")
    assert (user_folder("data"), user_folder("cache")) == (
        elsewhere if system == "linux" else (tmp_path / data, tmp_path / cache)
    )


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with whole_folder(tmp_path / "model") as partial:
            (partial / "file").write_text(text)
        assert (tmp_path / "model" / "file").read_text() == text
    assert names(tmp_path) == ["model"]


@pytest.mark.usefixtures("way")
def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "model.txt", "mine")
    with pytest.raises(KeyError), whole_folder(tmp_path / "model.txt") as partial:
        (partial / "file").write_text("half")
        raise KeyError
    assert names(tmp_path) == ["model.txt"]
    assert (tmp_path / "model.txt").read_text() == "mine"


@pytest.mark.skipif(not HAS_EXCHANGE, reason="this system cannot exchange two names")
def test_two_folders_are_exchanged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    if not exchanged(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two names")
    assert [(tmp_path / name / "name").read_text() for name in ("a", "b")] == ["b", "a"]
    assert not exchanged(tmp_path / "a", tmp_path / "nowhere")


KILLED = """
import os
from pathlib import Path
from secondpass import atomic

folder, way, renames = Path({folder!r}), {way!r}, {renames}
rename = Path.rename

def counted(self, target):
    global renames
    if renames == 0:
        os._exit(9)
    renames -= 1
    return rename(self, target)

if way == "renamed twice":
    atomic.exchanged = lambda first, second: False
Path.rename = counted
with atomic.whole_folder(folder) as partial:
    (partial / "file").write_text("new")
    if way == "exchanged":
        atomic.sync_folder = lambda folder: os._exit(9)
"""


@pytest.mark.parametrize(("way", "renames", "left"), [("exchanged", 0, "new"), ("renamed twice", 1, None)])
def test_a_killed_process_loses_nothing(tmp_path: Path, way: str, renames: int, left: str | None) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "file").write_text("old")
    if way == "exchanged" and not (HAS_EXCHANGE and _can_exchange(tmp_path)):
        pytest.skip("this system cannot exchange two names")
    code = KILLED.format(folder=str(folder), way=way, renames=renames)
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert folder.exists() == (left is not None)
    if left is not None:
        assert (folder / "file").read_text() == left
    with pytest.raises(KeyError), whole_folder(folder):  # which brings back what was set aside, and then fails
        raise KeyError
    assert (folder / "file").read_text() == (left or "old")


def _can_exchange(folder: Path) -> bool:
    for name in ("x", "y"):
        (folder / name).mkdir()
    return exchanged(folder / "x", folder / "y")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        for write in (whole_folder, whole_file):
            with pytest.raises(CheckpointError, match="cannot be written"), write(tmp_path / "model"):
                pass
    finally:
        tmp_path.chmod(0o700)


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "mine")
    with pytest.raises(CheckpointError, match="cannot be written"), whole_folder(tmp_path / "file" / "model"):
        pass
    assert names(tmp_path) == ["file"]


def test_a_link_is_written_through_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "through")
    assert (tmp_path / "target").read_text() == "through" and (tmp_path / "link").is_symlink()
    command = (
        "from pathlib import Path; from secondpass.atomic import write_text as w; w(Path('/dev/stdout'), 'seen')"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", command], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "seen"
    with pytest.raises(CheckpointError, match="/dev/full: cannot be written"):
        write_text(Path("/dev/full"), "x")


FULL = """
import resource, signal, sys
from pathlib import Path
from secondpass.atomic import write_text

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_text(Path({file!r}), "x" * 5000)
"""


@pytest.mark.skipif(os.name == "nt", reason="a limit on files is POSIX's")
def test_a_file_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "mine")
    ended = subprocess.run(
        [sys.executable, "-c", FULL.format(file=str(tmp_path / "a.txt"))], capture_output=True, text=True
    )
    assert "CheckpointError" in ended.stderr and "what was there before is untouched" in ended.stderr
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "mine"
