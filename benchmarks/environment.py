"""What secondpass sets in the environment for torch's libraries, beside other values: time and memory.

    python benchmarks/environment.py waiting --shape ms-marco-MiniLM-L6 --passages 20 --busy 1
    python benchmarks/environment.py kernels --shape ms-marco-MiniLM-L6 --passages 20 --turns 40

Processes with different values take turns. `waiting` runs the same passages again and again, on cores as they are and
then beside so many busy processes; `kernels` runs other passages at every turn, on one thread, and counts CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from peers import WORDS

from checkpoints import SHAPES, write_checkpoint

SPINS, ONEDNN, IDEEP = "GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", SPINS: "0"}
VALUES: dict[str, dict[str, dict[str, str]]] = {
    "waiting": {
        "OpenMP's own (300,000)": {SPINS: "300000"},
        "never actively": PASSIVE,
        **{f"{count:,} looks": {SPINS: str(count)} for count in (1000, 2000, 4000)},
    },
    "kernels": {
        f"{onednn:,} by oneDNN, {ideep:,} by torch": {ONEDNN: str(onednn), IDEEP: str(ideep)}
        for onednn, ideep in ((1024, 1024), (256, 256), (256, 16), (16, 16))
    },
}
RUN = """
import json, sys, time
from pathlib import Path
from peers import QUERY, passages
from secondpass import Reranker

def megabytes():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

folder, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
clock = time.thread_time if kind == "kernels" else time.perf_counter
reranker = Reranker(folder, engine="torch")
reranker.score(QUERY, passages(count))
before = megabytes()
print("ready", flush=True)
for turn, line in enumerate(sys.stdin):
    texts = passages(count, seed=1 + turn if kind == "kernels" else 0)
    started = clock()
    reranker.score(QUERY, texts)
    print(json.dumps([clock() - started, megabytes() - before]), flush=True)
"""


def start(checkpoint: Path, kind: str, count: int, values: Mapping[str, str]) -> subprocess.Popen[str]:
    one = {"OMP_NUM_THREADS": "1"} if kind == "kernels" else {}
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(checkpoint), kind, str(count)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **one, **values}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def take_turns(processes: Mapping[str, subprocess.Popen[str]], turns: int, title: str) -> None:
    found: dict[str, list[list[float]]] = {name: [] for name in processes}
    for _ in range(turns):
        for name, process in processes.items():
            assert process.stdin is not None
            process.stdin.write("\n")
            found[name].append(json.loads(line_of(process)))
    for name, measured in found.items():
        times = [seconds * 1e3 for seconds, _ in measured]
        spread = f"{min(times):.0f} to {max(times):.0f}"
        print(f"| {title} | {name} | {statistics.median(times):.0f} | {spread} | {measured[-1][1]:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=VALUES)
    parser.add_argument("--shape", choices=SHAPES, default="ms-marco-MiniLM-L6")
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--busy", type=int, default=0, help="processes that keep cores busy")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder, "checkpoint"), options.shape, WORDS)
        processes = {
            name: start(checkpoint, options.kind, options.passages, values)
            for name, values in VALUES[options.kind].items()
        }
        for process in processes.values():
            line_of(process)
        print("| cores | values | median ms | from, to | MB more at the end |\n|---|---|---|---|---|")
        take_turns(processes, options.turns, "as they are")
        if options.busy:
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
            take_turns(processes, options.turns, f"{options.busy} busy processes")
            for each in busy:
                each.kill()
        for process in processes.values():
            process.communicate()


if __name__ == "__main__":
    main()
