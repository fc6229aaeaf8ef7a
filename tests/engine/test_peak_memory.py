"""Weights are in memory once: neither the file beside its cast, nor a matrix beside its reordered form.

Nor does the number of candidates count.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import WORDS, tiny_bert

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

SCORED = """
import json, random, sys
from pathlib import Path
from secondpass import Reranker

def status(name):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024

draw = random.Random(0)
words = sys.argv[2].split()
texts = [" ".join(draw.choices(words, k=draw.randint(200, 1000))) for _ in range(int(sys.argv[3]))]
reranker = Reranker(sys.argv[1], engine="torch", device="cpu")
reranker.score("bridge", texts[:200])
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
scores = reranker.score("bridge", texts)
print(json.dumps([status("VmHWM") - before, len(scores)]))
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


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.is_file(), reason="the peak is read from Linux's /proc")
def test_a_large_table_of_words_is_not_beside_its_cast(tmp_path: Path) -> None:
    small, large = tiny_bert(tmp_path / "small"), tiny_bert(tmp_path / "large", width=512)
    tensors = load_file(large / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    tensors[name] = torch.randn(200_000, 512)
    save_file(tensors, large / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((large / "config.json").read_text())
    (large / "config.json").write_text(json.dumps(config | {"vocab_size": 200_000}))
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, str(small), str(large), "bfloat16"]
    peak = json.loads(subprocess.check_output(command, text=True))
    weights = tensors[name].numel() * 2
    assert 0.9 * weights < peak < 1.2 * weights + 100e6  # 3 times where it is cast at once


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.is_file(), reason="the peak is read from Linux's /proc")
def test_scoring_10_000_long_candidates_takes_no_more_memory_than_500(tmp_path: Path) -> None:
    def growth(count: int) -> float:
        command = [sys.executable, "-W", "ignore", "-c", SCORED, str(checkpoint), WORDS, str(count)]
        grown, scores = json.loads(subprocess.check_output(command, text=True))
        assert scores == count
        return float(grown)

    checkpoint = tiny_bert(tmp_path)
    assert growth(10_000) - growth(500) < 40e6  # ids remembered: 8 MB, what was read: 3 MB, the allocator's own play
