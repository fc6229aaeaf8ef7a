"""The examples as their README has them, in a fresh folder, by a person with a home of their own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_examples_do_what_their_page_says(tmp_path: Path) -> None:
    place = shutil.copytree(EXAMPLES, tmp_path / "examples")
    commands = re.findall(r"^    ((?:secondpass|python) .+)$", (place / "README.md").read_text("utf-8"), re.MULTILINE)
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = []
    for command in commands:
        program, *arguments = shlex.split(command)
        called = [sys.executable, *(["-m", "secondpass"] if program == "secondpass" else []), *arguments]
        done = subprocess.run(called, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        shown.append(done.stdout + done.stderr)
    said = dict(zip(commands, shown, strict=True))
    first = {command: text.split("\n")[0] for command, text in said.items()}
    port = 'secondpass search "which ssh port does the server use" --name example'
    assert "2222" in first[port]
    assert "2244" in first[f"{port} --cognitive --explain"]
    assert "meeting.txt:1" in first['secondpass search "when is the next meeting" --name example --path meeting']
    assert "5 unchanged" in said["secondpass update --name example"]
    notes = said["python notes.py"].split("By relevance")[1]
    plain, weighed = notes.split("With what is newer first")
    assert plain.index("2222") < plain.index("2244")
    assert weighed.index("2244") < weighed.index("2222")
    memory = said["python memory.py"]
    port, morning, before = re.split(r"\n[^\n]*\?\n", memory)[1:]
    assert ("2244" in port.split("\n")[0], "2222" in port, "2222" in before) == (True, False, True)
    assert "prefers tea" in morning.split("\n")[0]
    assert "worn washer" in first['secondpass rank "the tap keeps dripping, what can I do" handbook.md --top 3']
    assert "worn washer" in said["python rerank.py"].split("\n")[1]
    assert not list((tmp_path / ".local" / "share" / "secondpass").glob("example*"))
