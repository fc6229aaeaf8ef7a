"""docs/serving.md names every setting, metric and address that there is, and none that there is not."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from secondpass.server.dialects import DIALECTS
from secondpass.server.metrics import Metrics
from secondpass.server.settings import ModelSource, Settings
from secondpass.wire.apis import APIS as FORMS

FILE = Path(__file__).parents[2] / "docs" / "serving.md"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="needs the folder docs")


@pytest.fixture(scope="module")
def text() -> str:
    return FILE.read_text("utf-8")


def first_cells(text: str, heading: str) -> set[str]:
    """The names in the first column of the last table below a heading."""
    part = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return {name for line in part.splitlines() if line.startswith("| `") for name in _names(line.split("|")[1])}


def _names(cell: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", cell)


def test_settings(text: str) -> None:
    assert first_cells(text, "Settings") == {field.name for field in fields(Settings)}
    of_models = text.split("Of a model, in `[models.NAME]`:")[1]
    assert {field.name for field in fields(ModelSource)} - {"name"} <= set(_names(of_models))


def test_metrics(text: str) -> None:
    there = set()
    for metric in Metrics().registry.collect():
        there.add(f"{metric.name}_total" if metric.type == "counter" else metric.name)
    assert first_cells(text, "Watch") == there


def test_addresses(text: str) -> None:
    for dialect in DIALECTS:
        for route in dialect.routes:
            if route.kind in ("rerank", "score") and dialect.name not in ("vllm", "nim", "llamacpp", "tei"):
                assert f"`{route.documented}`" in text, route.documented


def test_dialects_of_the_client(text: str) -> None:
    part = text.split("## From Python: RemoteReranker")[1]
    assert set(FORMS) <= set(_names(part))
