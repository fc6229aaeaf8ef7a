"""How many cores this process may use: those it is bound to, and no more than its control group's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def num_cores(groups: Path = ROOT) -> int:
    """At least 1. A quota of 1.5 cores counts as 2: more threads would only be stopped by the scheduler."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(groups)
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def cpu_quota(groups: Path = ROOT) -> float | None:
    """Cores' worth of time that the control group (version 2, else 1) may use; None where it is not limited."""
    unified = _words(groups / "cpu.max")
    if len(unified) == 2:
        return _ratio(unified[0], unified[1])
    old = _words(groups / "cpu" / "cpu.cfs_quota_us") + _words(groups / "cpu" / "cpu.cfs_period_us")
    return _ratio(old[0], old[1]) if len(old) == 2 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").split()
    except OSError:
        return []


def _ratio(quota: str, period: str) -> float | None:
    """None for "max" and for -1, which both say that there is no limit."""
    is_limit = quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0
    return int(quota) / int(period) if is_limit else None
