"""Weights are in memory once: neither the file beside its cast, nor a matrix beside its reordered form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import tiny_bert

STATUS = Path("/proc/self/status")
MEASURED = """
import json, sys
from pathlib import Path
from secondpass import Reranker

def status(name):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024

texts = ["the river is old and the bridge is new"] * 4
Reranker(sys.argv[1], engine="torch", device="cpu", dtype=sys.argv[3]).score("bridge", texts)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
Reranker(sys.argv[2], engine="torch", device="cpu", dtype=sys.argv[3]).score("bridge", texts)
print(json.dumps(status("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.is_file(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_loading_holds_the_weights_once(tmp_path: Path, dtype: str, size: int) -> None:
    small, large = tiny_bert(tmp_path / "small"), tiny_bert(tmp_path / "large", width=1024, num_layers=16)
    num_weights = (large / "model.safetensors").stat().st_size / 4
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, str(small), str(large), dtype]
    peak = json.loads(subprocess.check_output(command, text=True))
    # int8 is made from bfloat16 or float32, layer by layer: at first all layers have that form
    weights = num_weights * (size if dtype != "int8" else 4)
    assert num_weights * size * 0.9 < peak < 1.3 * weights + 50e6
