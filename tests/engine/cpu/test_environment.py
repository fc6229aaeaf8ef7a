"""oneDNN's caches are bounded and waiting is finite, unless the user said otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from secondpass.engine.cpu.threads import KEPT_KERNELS, SAME, WAITING, suit_environment
from tests.checkpoints import tiny_bert

NAMES = {*KEPT_KERNELS, *WAITING, *(other for others in SAME.values() for other in others)}
GROWTH = """
import sys
from pathlib import Path
from secondpass.engine.cpu.threads import suit_environment
suit_environment()
from secondpass import Reranker

def megabytes():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

reranker = Reranker(sys.argv[1], engine="torch", device="cpu")
reranker.score("bridge", ["river " * 120] * 16)
for counts in (range(1, 6), range(6, 9)):
    before = megabytes()
    for length in range(1, 120):
        for count in counts:
            reranker.score("bridge", ["river " * length] * count)
    print(megabytes() - before)
"""


def test_nothing_that_the_user_said_is_changed() -> None:
    environment = {"OMP_WAIT_POLICY": "ACTIVE", "DNNL_PRIMITIVE_CACHE_CAPACITY": "8", "LRU_CACHE_CAPACITY": "9"}
    environment["OPENBLAS_THREAD_TIMEOUT"] = "20"
    before = dict(environment)
    suit_environment(environment)
    assert environment == before


def test_what_the_user_left_open_is_set() -> None:
    environment = {"GOMP_SPINCOUNT": "7"}
    suit_environment(environment)
    assert environment == {**WAITING, "GOMP_SPINCOUNT": "7", **KEPT_KERNELS}


@pytest.mark.slow
def test_a_command_says_it_before_torch_is_imported(tmp_path: Path) -> None:
    code = """
import os, sys
from secondpass.cli import main
class Watch:
    def find_spec(self, name, *_):
        if name == "torch.version":
            print(os.environ["GOMP_SPINCOUNT"])
sys.meta_path.insert(0, Watch())
sys.argv[1:] = ["rank", "river", "-", "--model", sys.argv[1], "--engine", "torch", "--json"]
main()
"""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-W", "ignore", "-c", code, str(tiny_bert(tmp_path))]
    said = subprocess.check_output(command, text=True, env=environment, input="the river")
    assert said.split()[0] == WAITING["GOMP_SPINCOUNT"]


@pytest.mark.slow
def test_a_library_call_changes_neither_the_environment_nor_the_threads(tmp_path: Path) -> None:
    code = """
import json, os, sys
import torch
from secondpass.engine.cpu import threads
threads._bound_cores = lambda: frozenset(range(4))  # torch has more threads than the process may use
threads.num_cores = lambda: 2
torch.set_num_threads(4)
before = dict(os.environ), torch.get_num_threads()
from secondpass import Reranker
reranker = Reranker(sys.argv[1], engine="torch", device="cpu")
reranker.score("bridge", ["river " * 50] * 40)
reranker.score("bridge", ["river"])
print(json.dumps([(dict(os.environ), torch.get_num_threads()) == before, reranker.info().reason]))
"""
    environment = {name: value for name, value in os.environ.items() if name not in {*NAMES, "OMP_NUM_THREADS"}}
    command = [sys.executable, "-W", "ignore", "-c", code, str(tiny_bert(tmp_path))]
    is_same, reason = json.loads(subprocess.check_output(command, text=True, env=environment))
    assert is_same
    assert "2 threads" in reason


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_shapes(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-W", "ignore", "-c", GROWTH, str(tiny_bert(tmp_path))]
    first, later = map(float, subprocess.check_output(command, text=True, env=environment).split())
    assert first < 120 and later < 10  # AMX's kernels take half of what those of AVX512-BF16 take
