"""Batches one after the other, each on all threads, beside batches in streams (`secondpass/engine/streams.py`).

    python benchmarks/streams.py --shape ms-marco-MiniLM-L6 --passages 20 100 400

The two take turns in one process; the first turn of each warms up.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from peers import QUERY, WORDS, passages

from checkpoints import SHAPES, write_checkpoint
from secondpass.engine.batches import in_batches
from secondpass.engine.torch import TorchEngine
from secondpass.reranker import Reranker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="ms-marco-MiniLM-L6")
    parser.add_argument("--passages", type=int, nargs="+", default=[20, 100, 400])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--turns", type=int, default=6)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), options.shape, WORDS)
        print(f"{options.shape} shape, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
        print("| precision | passages | one after the other, ms | in streams, ms | least of each |")
        print("|---|---|---|---|---|")
        for dtype in options.dtypes:
            reranker = Reranker(checkpoint, engine="torch", dtype=dtype, device="cpu")
            for count in options.passages:
                compare(reranker, dtype, passages(count), options.turns)


def compare(reranker: Reranker, dtype: str, texts: list[str], turns: int) -> None:
    engine = reranker._scoring.engine.current
    assert isinstance(engine, TorchEngine)
    ways = {"one after the other": in_batches, "in streams": engine._in_batches}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            engine._in_batches = way
            started = time.perf_counter()
            reranker.score(QUERY, texts)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    median = [f"{statistics.median(each) * 1e3:.0f}" for each in seconds.values()]
    least = [f"{min(each) * 1e3:.0f}" for each in seconds.values()]
    print(f"| {dtype} | {len(texts)} | {' | '.join(median)} | {' and '.join(least)} |", flush=True)


if __name__ == "__main__":
    main()
