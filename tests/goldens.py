"""Reference figures: tiny checkpoints with token ids and scores that the reference implementations gave.

They are read from `shared/golden` beside the repository, or from SECONDPASS_SHARED, and tests skip without them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(os.environ.get("SECONDPASS_SHARED", Path(__file__).parents[2] / "shared"))


@dataclass(frozen=True)
class Golden:
    """One folder: its pairs, the ids that the reference fed to the model, and its runs."""

    name: str

    @property
    def folder(self) -> Path:
        return SHARED / "golden" / self.name

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        return [(pair["query"], pair["passage"]) for pair in self._json("pairs.json")]

    @cached_property
    def runs(self) -> list[dict[str, Any]]:
        return list(self._json("expected.json")["runs"])

    @cached_property
    def inputs(self) -> dict[str, Any]:
        return dict(self._json("inputs.json"))

    def _json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text("utf-8"))


def golden_folder(name: str) -> Path:
    """The checkpoint of a golden; the test skips where it is not here."""
    folder = SHARED / "golden" / name
    if not folder.is_dir():
        pytest.skip("no reference figures here")
    return folder


def golden_runs(*names: str) -> list[Any]:
    """Parameters (golden, run) for every run of the named goldens; one skipped parameter where they are not here."""
    if not all((SHARED / "golden" / name).is_dir() for name in names):
        return [pytest.param(None, None, marks=pytest.mark.skip(reason="no reference figures here"))]
    goldens = [Golden(name) for name in names]
    return [pytest.param(g, run, id=f"{g.name}-{run['reference']}-{run['name']}") for g in goldens for run in g.runs]
