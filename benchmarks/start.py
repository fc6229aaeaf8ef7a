"""From nothing to the first result: a fresh process that ranks 10 passages, its wall time and its peak memory.

    python benchmarks/start.py --shape ms-marco-MiniLM-L6
    python benchmarks/start.py --shape bge-reranker-v2-m3 --dtype bfloat16

Processes take turns. Weights are in the file cache, since they were just written. The last row ranks the same by the
command line with the model that the package carries, which needs no torch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
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


def run(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak megabytes of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:3]} failed with exit code {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


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
        commands = {name: [sys.executable, "-c", code.format(**facts)] for name, code in PROGRAMS.items()}
        spoken = [part for text in texts for part in ("--passage", text)]
        commands["secondpass rank (embedded)"] = [sys.executable, "-m", "secondpass", "rank", QUERY, *spoken]
        print(f"{options.shape} shape in {options.dtype}, {size / 2**20:.0f} MB of float32 on disk, {processor()}")
        print(f"{versions()}\n")
        print("| program | seconds | peak MB |")
        print("|---|---|---|")
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.runs):
            for name, command in commands.items():
                figures[name].append(run(command))
        for name, values in figures.items():
            seconds, memory = (statistics.median(column) for column in zip(*values, strict=True))
            print(f"| {name} | {seconds:.2f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
