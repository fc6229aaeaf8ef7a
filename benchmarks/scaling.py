"""Cost against the number of candidates and against their length; as tables, and as plots with --plot FOLDER.

    python benchmarks/scaling.py --shape bge-reranker-base --counts 1 10 100 1000 --lengths 16 64 256 512
    python benchmarks/scaling.py --shape bge-reranker-v2-m3 --counts --lengths 512 2048 8192 --each 2

The programs of peers.py, taking turns. Candidates have 180 tokens on average where their number is varied; as many as
`--each` says are scored where their length is. A cell is the median of the seconds of a call.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from datetime import date
from pathlib import Path

from peers import WORDS, Process, passages, processor, start, versions
from rivals import RIVALS

from checkpoints import SHAPES, write_checkpoint

# Tokens of the query and the special ones, which a candidate leaves room for.
AROUND = 20
USUAL = [
    "sentence-transformers float32",
    "sentence-transformers bfloat16",
    "secondpass float32",
    "secondpass bfloat16",
]


def medians(rival: Process, texts: list[str], runs: int) -> float:
    rival.run(texts)
    return statistics.median(rival.run(texts) for _ in range(runs))


def measure(found: list[Process], cases: dict[int, list[str]], runs: int) -> dict[str, dict[int, float]]:
    """Seconds by rival and case; the rivals take turns at each case."""
    seconds: dict[str, dict[int, float]] = {rival.name: {} for rival in found}
    for size, texts in cases.items():
        for rival in found:
            seconds[rival.name][size] = medians(rival, texts, runs)
    return seconds


def table(title: str, seconds: dict[str, dict[int, float]]) -> None:
    sizes = list(next(iter(seconds.values())))
    print(f"\n| {title} | " + " | ".join(f"{size:,}" for size in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for name, row in seconds.items():
        print(f"| {name} | " + " | ".join(f"{row[size]:.3g}" for size in sizes) + " |", flush=True)


def plot(file: Path, title: str, label: str, seconds: dict[str, dict[int, float]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "secondpass"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, row in seconds.items():
        axes.plot(list(row), list(row.values()), marker="o", label=name, linewidth=2 if "secondpass" in name else 1)
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds of a call", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bge-reranker-base")
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 10, 100, 1000])
    parser.add_argument("--lengths", type=int, nargs="*", default=[16, 64, 256, 512])
    parser.add_argument("--each", type=int, default=10, help="candidates where the length is varied")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=USUAL, metavar="NAME")
    parser.add_argument("--plot", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "checkpoint", options.shape, WORDS)
        found = [rival for name in options.rivals if (rival := start(name, {}, checkpoint))]
        print(f"{options.shape} shape, {date.today()}, {processor()}, {versions()}")
        tables = {
            "candidates": {count: passages(count) for count in options.counts},
            "tokens": {length: _texts(length, options.each) for length in options.lengths},
        }
        for title, cases in tables.items():
            if not cases:
                continue
            seconds = measure(found, cases, options.runs)
            table(title, seconds)
            if options.plot is not None:
                label = {"candidates": "candidates", "tokens": f"tokens of each of {options.each} candidates"}[title]
                plot(options.plot / f"{options.shape}-{title}.svg", f"{options.shape} shape", label, seconds)
        for rival in found:
            rival.stop()


def _texts(length: int, count: int) -> list[str]:
    """Different texts of one length."""
    words = max(length - AROUND, 1)
    return [" ".join(WORDS[(place + start) % len(WORDS)] for place in range(words)) for start in range(count)]


if __name__ == "__main__":
    main()
