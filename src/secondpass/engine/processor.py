"""What the processor multiplies fast: the instructions that make bfloat16 and 8 bits worth it, and its cores."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secondpass.engine.cores import num_cores

CPUINFO = Path("/proc/cpuinfo")
TOPOLOGY = Path("/sys/devices/system/cpu")
ARM = ("aarch64", "arm64")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Its architecture, such as x86_64 or aarch64, and its features by torch's names, such as avx512_vnni."""

    architecture: str
    features: frozenset[str]

    @property
    def bf16(self) -> str | None:
        """The instructions that make bfloat16 matrix products faster than float32; None where they are emulated.

        AVX512 without BF16, AVX2 and Arm before its BF16 extension convert each number, which takes several times
        as long as float32.
        """
        if self.architecture in ARM:
            return "Arm's BF16 extension" if "bf16" in self.features else None
        return self._first({"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"})

    @property
    def int8(self) -> str | None:
        """The instructions that make products of bytes faster than float32."""
        if self.architecture in ARM:
            return None  # oneDNN there has no product of unsigned bytes with signed ones
        return self._first({"amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI"})

    def _first(self, names: Mapping[str, str]) -> str | None:
        return next((said for name, said in names.items() if name in self.features), None)


def this_processor() -> Processor:
    """From torch where it says, else from the kernel; unknown features count as absent."""
    found = _from_torch()
    return from_cpuinfo(_text(CPUINFO), platform.machine()) if found is None else found


def _from_torch() -> Processor | None:
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)  # older torch has none
    return None if capabilities is None else from_capabilities(capabilities())


def from_capabilities(capabilities: Mapping[str, Any]) -> Processor:
    """From torch.cpu.get_capabilities()."""
    features = frozenset(name for name, value in capabilities.items() if value is True)
    architecture = str(capabilities.get("architecture", platform.machine()))
    return Processor(architecture=architecture.lower(), features=features)


def from_cpuinfo(text: str, architecture: str) -> Processor:
    """From the text of /proc/cpuinfo, whose names of the features that count are torch's; no text gives none."""
    words: set[str] = set()
    for line in text.splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            words |= set(values.split())
    return Processor(architecture=architecture.lower(), features=frozenset(words))


def num_threads(current: int, *, is_chosen: bool, usable: int, physical: int) -> int:
    """Threads to compute with: no more than cores, unless somebody chose a number.

    current is torch's number, usable the cores that the process may use, physical those that are not the second
    thread of another.
    """
    return current if is_chosen else max(1, min(current, usable, physical))


def usable_threads(current: int) -> int:
    """`num_threads` on this machine; OMP_NUM_THREADS, or any number that torch does not start with, is a choice."""
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
