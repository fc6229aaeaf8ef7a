"""oneDNN's caches are bounded and waiting is finite, unless the user said otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from secondpass.engine.cpu.threads import KEPT_KERNELS, SAME, WAITING, suit_torch
from tests.checkpoints import tiny_bert

NAMES = {*KEPT_KERNELS, *WAITING, *(other for others in SAME.values() for other in others)}
GROWTH = """
import json, sys
from pathlib import Path
from secondpass import Reranker

def megabytes():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

reranker = Reranker(sys.argv[1], engine="torch", device="cpu")
reranker.score("bridge", ["river " * 120] * 16)
before = megabytes()
for length in range(1, 120):
    for count in range(1, 6):
        reranker.score("bridge", ["river " * length] * count)
print(json.dumps(megabytes() - before))
"""


def test_nothing_that_the_user_said_is_changed() -> None:
    environment = {"OMP_WAIT_POLICY": "ACTIVE", "DNNL_PRIMITIVE_CACHE_CAPACITY": "8", "LRU_CACHE_CAPACITY": "9"}
    before = dict(environment)
    suit_torch(environment)
    assert environment == before


def test_what_the_user_left_open_is_set() -> None:
    environment = {"GOMP_SPINCOUNT": "7"}
    suit_torch(environment)
    assert environment == {"GOMP_SPINCOUNT": "7", **KEPT_KERNELS}


def test_it_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    code = """
import os, sys
from secondpass import Reranker
class Watch:
    def find_spec(self, name, *_):
        if name == "torch.version":
            print(os.environ["GOMP_SPINCOUNT"])
sys.meta_path.insert(0, Watch())
Reranker(sys.argv[1], engine="torch", device="cpu")
"""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-W", "ignore", "-c", code, str(tiny_bert(tmp_path))]
    said = subprocess.check_output(command, text=True, env=environment)
    assert said.split() == [WAITING["GOMP_SPINCOUNT"]]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_shapes(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-W", "ignore", "-c", GROWTH, str(tiny_bert(tmp_path))]
    bounded = json.loads(subprocess.check_output(command, text=True, env=environment))
    many = {name: "1024" for name in KEPT_KERNELS}
    unbounded = json.loads(subprocess.check_output(command, text=True, env=environment | many))
    assert bounded < 250
    assert bounded < 0.6 * unbounded
