"""Two or more checkouts of secondpass beside each other, taking turns: did a change make it faster, or slower?

    git worktree add /tmp/before HEAD~20
    python benchmarks/checkouts.py before=/tmp/before after=. --shape ms-marco-MiniLM-L6 --passages 1 20 100
    python benchmarks/checkouts.py before=/tmp/before after=. --shape bge-reranker-base --passages 1 20 --new-texts

--new-texts: other passages at every turn, as in real use, so that what is compiled for their lengths counts. The
ratio is of the medians of CPU time of the process, which is steadier than wall time where other programs run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import WORDS

from checkpoints import SHAPES, write_checkpoint

RUN = """
import json, sys, time
from peers import QUERY, passages
from secondpass import Reranker

folder, count, is_new, engine, dtype = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "new", sys.argv[4], sys.argv[5]
reranker = Reranker(folder, engine=engine, dtype=dtype)
reranker.score(QUERY, passages(count))
print("ready", flush=True)
for turn, line in enumerate(sys.stdin):
    texts = passages(count, seed=1 + turn if is_new else 0)
    wall, cpu = time.perf_counter(), time.process_time()
    reranker.score(QUERY, texts)
    print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]), flush=True)
"""


def start(root: Path, arguments: list[str]) -> subprocess.Popen[str]:
    paths = os.pathsep.join((str(root / "src"), str(Path(__file__).parent)))
    command = [sys.executable, "-W", "ignore", "-c", RUN, *arguments]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def measured(processes: dict[str, subprocess.Popen[str]], turns: int) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of each turn."""
    for process in processes.values():
        line_of(process)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    for _ in range(turns):
        for name, process in processes.items():
            assert process.stdin is not None
            process.stdin.write("\n")
            found[name].append(json.loads(line_of(process)))
    for process in processes.values():
        process.communicate()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="ms-marco-MiniLM-L6")
    parser.add_argument("--passages", type=int, nargs="+", default=[20])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--new-texts", action="store_true")
    parser.add_argument("checkouts", nargs="+", metavar="NAME=PATH")
    options = parser.parse_args()
    roots = {name: Path(path).resolve() for name, path in (each.split("=", 1) for each in options.checkouts)}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(write_checkpoint(Path(folder, "checkpoint"), options.shape, WORDS))
        print("| passages | checkout | CPU ms, median | wall ms, median | times the first |\n|---|---|---|---|---|")
        for count in options.passages:
            texts = "new" if options.new_texts else "same"
            arguments = [checkpoint, str(count), texts, options.engine, options.dtype]
            found = measured({name: start(root, arguments) for name, root in roots.items()}, options.turns)
            table(count, found)


def table(count: int, found: dict[str, list[tuple[float, float]]]) -> None:
    medians = {name: [statistics.median(each) for each in zip(*turns, strict=True)] for name, turns in found.items()}
    first = next(iter(medians.values()))[0]
    for name, (cpu, wall) in medians.items():
        print(f"| {count} | {name} | {cpu * 1e3:.1f} | {wall * 1e3:.1f} | {first / cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
