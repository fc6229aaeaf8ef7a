"""The snippets of docs/integrations.md run as they stand, each where its package is."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.clients
PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def package_of(snippet: str) -> str:
    names = re.findall(r"^(?:from|import) (\w+)", snippet, re.MULTILINE)
    return next((name for name in names if name not in ("secondpass", "tempfile", "pandas")), "secondpass")


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[package_of(snippet) for snippet in SNIPPETS])
def test_a_snippet_runs_and_finds_the_answer(snippet: str) -> None:
    if find_spec(package_of(snippet)) is None:
        pytest.skip(f"{package_of(snippet)} is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", snippet], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "washer" in done.stdout or "d2" in done.stdout
