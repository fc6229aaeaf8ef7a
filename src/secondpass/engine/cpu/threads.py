"""Cores, the processor, threads, and what torch's libraries read from the environment when they are loaded."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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


CPUINFO = Path("/proc/cpuinfo")
TOPOLOGY = Path("/sys/devices/system/cpu")
ARM = ("aarch64", "arm64")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Its architecture, such as x86_64 or aarch64, and its features by torch's names, such as avx512_vnni."""

    architecture: str
    features: frozenset[str]
    is_intel: bool = False

    @property
    def bf16(self) -> str | None:
        """The instructions that make bfloat16 matrix products faster than float32; None where they do not.

        AVX512 without BF16, AVX2 and Arm before its BF16 extension convert each number, which takes several times
        as long as float32.
        """
        if self.architecture in ARM:
            return "Arm's BF16 extension" if "bf16" in self.features else None
        found = self._first({"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"})
        return None if found == "AVX512-BF16" and self.hides_amx else found

    @property
    def hides_amx(self) -> bool:
        """Whether a virtual machine hides the AMX of an Intel processor (Sapphire Rapids or later).

        Its AVX512-BF16 multiplies at half of float32's rate: 80 and 170 GFLOP/s of one thread. Older ones of Intel
        with AVX512-BF16 have no AVX512-FP16.
        """
        return self.is_intel and "avx512_fp16" in self.features and "amx_bf16" not in self.features

    @property
    def has_amx(self) -> bool:
        """Whether tiles of bfloat16 are multiplied."""
        return self.bf16 == "AMX"

    @property
    def int8(self) -> str | None:
        """The instructions that make products of bytes faster than float32."""
        if self.architecture in ARM:
            return None  # oneDNN there has no product of unsigned bytes with signed ones
        return self.vnni or self._first({"avx2": "AVX2"})

    @property
    def vnni(self) -> str | None:
        """The instructions that add products of bytes in 32 bits; others add two of them in 16 bits before that."""
        return self._first({"amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI"})

    def _first(self, names: Mapping[str, str]) -> str | None:
        return next((said for name, said in names.items() if name in self.features), None)


def this_processor() -> Processor:
    """From torch where it says, else from the kernel; unknown features count as absent."""
    found = _from_torch()
    return processor_of_kernel() if found is None else found


def processor_of_kernel() -> Processor:
    """As Linux says, without torch; without features elsewhere."""
    return from_cpuinfo(_text(CPUINFO), platform.machine())


def _from_torch() -> Processor | None:
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)  # older torch has none
    return None if capabilities is None else from_capabilities(capabilities())


def from_capabilities(capabilities: Mapping[str, Any]) -> Processor:
    """From torch.cpu.get_capabilities()."""
    features = frozenset(name for name, value in capabilities.items() if value is True)
    architecture = str(capabilities.get("architecture", platform.machine()))
    name = str(capabilities.get("cpu_name", ""))
    is_intel = "Intel" in name or ("AMD" not in name and processor_of_kernel().is_intel)  # all cores are read there
    return Processor(architecture=architecture.lower(), features=features, is_intel=is_intel)


def from_cpuinfo(text: str, architecture: str) -> Processor:
    """From the text of /proc/cpuinfo, whose names of the features that count are torch's; no text gives none."""
    words: set[str] = set()
    for line in text.splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            words |= set(values.split())
    return Processor(architecture=architecture.lower(), features=frozenset(words), is_intel="GenuineIntel" in text)


def num_threads(current: int, *, is_chosen: bool, usable: int, physical: int) -> int:
    """Threads to compute with: no more than cores, unless somebody chose a number.

    current is torch's number, usable the cores that the process may use, physical those that are not the second
    thread of another.
    """
    return current if is_chosen else max(1, min(current, usable, physical))


@cache
def usable_threads(current: int) -> int:
    """`num_threads` on this machine, as it was at first.

    OMP_NUM_THREADS, or any number that torch does not start with, is a choice.
    """
    bound = _bound_cores()
    physical = num_physical_cores(TOPOLOGY, bound)
    is_chosen = "OMP_NUM_THREADS" in os.environ or current not in (len(bound), physical, os.cpu_count())
    return num_threads(current, is_chosen=is_chosen, usable=num_cores(), physical=physical)


def num_physical_cores(topology: Path, cores: frozenset[int]) -> int:
    """How many of `cores` are not the second thread of another; all of them where the system does not say."""
    siblings = {_text(topology / f"cpu{core}" / "topology" / "thread_siblings_list").strip() for core in cores}
    return len(cores) if "" in siblings else len(siblings)


def _bound_cores() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError:
        return ""


# oneDNN keeps the kernels that it made for the last 1,024 shapes, half a megabyte each, and torch as many again in
# every thread. A forward pass needs two for each length among its rows and five for its layers: a batch of 4,096
# tokens in 80 short rows 165. oneDNN's alone are found as quickly as torch's, and all threads share them.
KEPT_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "16"}
# OpenMP's threads look so often whether the others are ready, some 30 us, before they sleep. By default they look
# 300,000 times, and where another program has the core of one, the others burn theirs meanwhile.
# NumPy's OpenBLAS's look for 2 ** 26 ticks, some 30 ms: when numpy is imported, and after each product.
WAITING = {"GOMP_SPINCOUNT": "2000", "OPENBLAS_THREAD_TIMEOUT": "4"}
# What says the same in other words.
SAME = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": ("DNNL_PRIMITIVE_CACHE_CAPACITY",),
    "GOMP_SPINCOUNT": ("OMP_WAIT_POLICY",),
}


def suit_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Bound what oneDNN keeps, and how long threads wait actively, where the user has said nothing.

    For programs that own their process, such as the commands; a library call leaves the environment as it is.
    Without effect on a torch that has been imported (waiting) or has multiplied on the CPU (kernels) before.
    """
    for name, value in (KEPT_KERNELS | WAITING).items():
        if not any(other in environment for other in (name, *SAME.get(name, ()))):
            environment[name] = value


def give_back() -> None:
    """Return memory that was freed in small pieces, which glibc keeps: 350 MB of v2-m3's weights in int8."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
