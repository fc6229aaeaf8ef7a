"""Programs of other makers that speak to agents' tools, installed from npm; make test-agents brings them."""

from __future__ import annotations

import shutil

import pytest


def program(name: str) -> str:
    """The path of a program; without it the test is skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}; make test-agents")
    return found
