"""Reference figures for training: losses, gradients and small walks of the reference implementations.

They are read from `golden-training` beside the other reference figures; tests skip without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secondpass.training.collators import Group
from secondpass.types import Row
from tests.goldens import SHARED

FOLDER = SHARED / "golden-training"


@dataclass(frozen=True)
class TrainingGolden:
    """One folder: a checkpoint, batches, and runs on them."""

    name: str

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @cached_property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "golden.json").read_text("utf-8")))

    @property
    def checkpoint(self) -> Path:
        return (self.folder / self.facts["checkpoint"]).resolve()

    def batch(self, run: Mapping[str, Any]) -> dict[str, Any]:
        batches = self.facts["batches"]
        return dict(batches[run["settings"].get("batch", next(iter(batches)))])


def golden_runs(*names: str) -> list[Any]:
    """Parameters (golden, run) for every run; one skipped parameter where they are not here."""
    if not all((FOLDER / name).is_dir() for name in names):
        return [pytest.param(None, None, marks=pytest.mark.skip(reason="no reference figures here"))]
    goldens = [TrainingGolden(name) for name in names]
    return [pytest.param(g, run, id=f"{g.name}-{run['name']}") for g in goldens for run in g.facts["runs"]]


def groups_of(batch: Mapping[str, Any], *, has_teacher: bool) -> tuple[list[Group], list[list[Row]]]:
    """The groups of an LLM reranker's batch, and their rows."""
    size = batch["group_size"]
    rows = [
        Row(ids=row["ids"], passage=(row["query_length"], len(row["ids"]) - row["prompt_length"]))
        for row in batch["rows"]
    ]
    scores = batch["teacher_scores"]
    parts = [slice(start, start + size) for start in range(0, len(rows), size)]
    groups = [
        Group(query="", passages=("",) * size, teacher=tuple(scores[part]) if has_teacher else None) for part in parts
    ]
    return groups, [rows[part] for part in parts]


def close(found: float, expected: float) -> bool:
    return abs(found - expected) <= 1e-4 + 1e-5 * abs(expected)


def check_gradients(found: Mapping[str, Tensor], run: Mapping[str, Any]) -> None:
    """Norm, and the dot with cosines of the flattened index, of each gradient: within 1e-4 of the largest norm."""
    expected = run["gradients"]
    missing = set(expected) - set(found)
    assert not missing, sorted(missing)[:5]
    without = [name for name in found if name not in expected and float(found[name].abs().max()) > 0]
    assert not without, without[:5]
    most = 1e-4 * max(norm for norm, _ in expected.values())
    for name, (norm, dot) in expected.items():
        gradient = found[name].detach().double().flatten()
        cosines = torch.arange(len(gradient), dtype=torch.float64).cos()
        assert abs(float(gradient.norm()) - norm) <= most, name
        assert abs(float(gradient @ cosines) - dot) <= most, name


def check_walk(
    run: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], loss: Callable[[], Tensor], *, index: int = 1
) -> None:
    """Three steps of plain SGD at the small rate end at the same losses."""
    walk = run["sgd"][index]
    losses = []
    for step in range(4):
        for parameter in parameters.values():
            parameter.grad = None
        value = loss()
        losses.append(float(value.detach()))
        if step < 3:
            value.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for parameter in parameters.values():
                    if parameter.grad is not None:
                        parameter -= walk["rate"] * parameter.grad
    allowed = max(1e-4, 10 * run["float64_differs_by"][f"losses at rate {walk['rate']:g}"])
    for found, expected in zip(losses, walk["losses"], strict=True):
        assert abs(found - expected) <= allowed + 1e-5 * abs(expected), (losses, walk["losses"])
