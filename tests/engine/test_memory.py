"""Memory does not grow with the lengths that an engine has seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from secondpass.engine.cpu.threads import KEPT_KERNELS

STATUS = Path("/proc/self/status")
SCORED = """
import json, random, sys
from pathlib import Path
from secondpass import Reranker

def megabytes(name):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) / 1024

draw = random.Random(0)
words = "river bridge water winter light market paper city number between under small large old new".split()

def score(count):
    while count > 0:
        part = min(draw.choice((1, 2, 3, 5, 8, 20, 50)), count)
        texts = [" ".join(draw.choices(words, k=draw.randint(1, 500))) for _ in range(part)]
        reranker.score("which river is long", texts)
        count -= part

reranker = Reranker("default", engine=sys.argv[1], device="cpu")
score(int(sys.argv[2]) // 2)
before = megabytes("VmRSS")
score(int(sys.argv[2]))
print(json.dumps([megabytes("VmRSS") - before, megabytes("VmHWM")]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.is_file(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize(("engine", "peak"), [("openvino", 400), ("torch", 800)])
def test_memory_is_bounded_whatever_the_lengths(engine: str, peak: int) -> None:
    unset = {name: value for name, value in os.environ.items() if name not in KEPT_KERNELS}
    num_pairs = os.environ.get("MEMORY_PAIRS", "1000")
    command = [sys.executable, "-W", "ignore", "-c", SCORED, engine, num_pairs]
    grown, most = json.loads(subprocess.check_output(command, text=True, env=unset))
    assert grown < 100
    assert most < peak
