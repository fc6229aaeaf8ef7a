"""The wheels: the same bytes wherever and whenever they are built, and nothing of the machine in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
# Where people and build machines keep their files. A wheel names none of these.
HOMES = (b"/home/", b"/root/", b"/Users/", b"/tmp/", b"C:\\Users")
PACKAGES = {"secondpass": ".", "multilingual": "packages/multilingual"}
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def built(source: Path, out: Path) -> Path:
    out.mkdir()
    command = [sys.executable, "-c", BUILD, str(out)]
    name = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True).stdout.split()[-1]
    return out / name


def copied(source: Path, target: Path, *, time_s: int) -> Path:
    """What a wheel is built from, under another path and with another time."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, target)
    shutil.copytree(source / "src", target / "src", ignore=LEFT_OUT)
    for file in target.rglob("*"):
        os.utime(file, (time_s, time_s))
    return target


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_is_the_same_anywhere_and_names_no_path_of_its_machine(package: str, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    root, times = ROOT / PACKAGES[package], {"here": 10**9, "elsewhere": 15 * 10**8}
    sources = [copied(root, tmp_path / name, time_s=time_s) for name, time_s in times.items()]
    wheels = [built(source, tmp_path / f"wheel-{source.name}") for source in sources]
    assert wheels[0].name == wheels[1].name
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    unwanted = (*HOMES, os.fsencode(ROOT), os.fsencode(tmp_path), os.fsencode(Path.home()) + b"/")
    with zipfile.ZipFile(wheels[0]) as wheel:
        found = [(name, path) for name in wheel.namelist() for path in unwanted if path in wheel.read(name)]
        assert found == []
        assert any(name.endswith("openvino_model.bin") for name in wheel.namelist())
