"""The number of cores follows the process's binding and its control group's quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secondpass.engine.cpu.threads import cpu_quota, num_cores


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu.max": "what is this\n"}, None),
        ({}, None),
    ],
)
def test_quota_of_both_versions(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound here")
def test_cores_are_bound_and_limited(tmp_path: Path) -> None:
    bound = os.sched_getaffinity(0)
    assert num_cores(tmp_path) == len(bound)
    (tmp_path / "cpu.max").write_text("10000 100000")
    assert num_cores(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    os.sched_setaffinity(0, {min(bound)})
    try:
        assert num_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, bound)
