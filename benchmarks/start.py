"""From nothing to the first result: a fresh process that ranks 10 passages, its time and its peak memory.

    python benchmarks/start.py --shape ms-marco-MiniLM-L6
    python benchmarks/start.py --shape bge-reranker-v2-m3 --dtype bfloat16

Processes take turns, and their modules are compiled, as an installation's are. Weights are in the file cache, since
they were just written. The last rows rank the same, and the README's example, by the command line with the model that
the package carries, which needs no torch. CPU seconds say more than wall seconds where the machine is busy. A program
that is not installed is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from peers import QUERY, WORDS, environment, passages, processor, versions

from checkpoints import SHAPES, write_checkpoint

PROGRAMS = {
    "sentence-transformers": "import torch; from sentence_transformers import CrossEncoder; "
    "m = CrossEncoder({folder!r}, device='cpu', model_kwargs=dict(torch_dtype=torch.{dtype})); "
    "m.predict([({query!r}, t) for t in {texts!r}])",
    "secondpass": "from secondpass import Reranker; "
    "Reranker({folder!r}, engine='torch', dtype={dtype!r}).rank({query!r}, {texts!r})",
}


README = ["the tap keeps dripping, what can I do", str(Path(__file__).parents[1] / "examples" / "handbook.md")]


def run(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak megabytes of a process."""
    own = {name: value for name, value in environment().items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:3]} failed with exit code {process.returncode}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="ms-marco-MiniLM-L6")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    texts = passages(10)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "checkpoint", options.shape, WORDS)
        size = (Path(folder) / "checkpoint" / "model.safetensors").stat().st_size
        facts = {"folder": f"{folder}/checkpoint", "dtype": options.dtype, "query": QUERY, "texts": texts}
        commands = {
            name: [sys.executable, "-c", code.format(**facts)]
            for name, code in PROGRAMS.items()
            if find_spec(name.replace("-", "_")) is not None
        }
        spoken = [part for text in texts for part in ("--passage", text)]
        ranked = [sys.executable, "-m", "secondpass", "rank"]
        commands["secondpass rank (embedded)"] = [*ranked, QUERY, *spoken]
        commands["secondpass rank (the README's example)"] = [*ranked, *README]
        print(f"{options.shape} shape in {options.dtype}, {size / 2**20:.0f} MB of float32 on disk, {processor()}")
        print(f"{versions()}\n")
        print("| program | seconds | CPU seconds, least | peak MB |")
        print("|---|---|---|---|")
        figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for _ in range(options.runs):
            for name, command in commands.items():
                figures[name].append(run(command))
        for name, values in figures.items():
            walls, computed, memory = zip(*values, strict=True)
            print(
                f"| {name} | {statistics.median(walls):.2f} | {min(computed):.2f} | {statistics.median(memory):.0f} |"
            )


if __name__ == "__main__":
    main()
