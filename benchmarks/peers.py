"""secondpass beside sentence-transformers' CrossEncoder and FlagEmbedding's FlagReranker.

    pip install -e ".[bench]" FlagEmbedding
    python benchmarks/peers.py --shape bge-reranker-base --passages 20 100

One query, passages of mixed length (mean about 180 tokens, 30 to 480), the same random weights of the named shape
for all. The rivals take turns in one process, so that a machine whose speed drifts is fair to them; the figure to
trust is the ratio. Tokenisation is part of every time.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from checkpoints import SHAPES, write_xlm_roberta

Rival = Callable[[str, list[str]], list[float]]
WORDS = (
    "the of a to in is water river retrieval model score query passage system bridge winter light engine paper "
    "market city number between under small large question answer result method history language network table"
).split()


def passages(count: int, *, mean_tokens: int = 180, seed: int = 0) -> list[str]:
    """Texts of log-normal length, one token a word."""
    generator = random.Random(seed)
    lengths = [int(generator.lognormvariate(-0.125, 0.5) * mean_tokens) for _ in range(count)]
    return [" ".join(generator.choice(WORDS) for _ in range(min(max(length, 30), 480))) for length in lengths]


def rivals(folder: Path) -> dict[str, Rival]:
    found: dict[str, Rival] = {}
    from sentence_transformers import CrossEncoder

    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = CrossEncoder(str(folder), device="cpu", max_length=512, model_kwargs={"torch_dtype": dtype})
        found[f"sentence-transformers {name}"] = lambda q, d, m=model: m.predict([(q, x) for x in d]).tolist()
    try:
        from FlagEmbedding import FlagReranker
    except ImportError:
        pass
    else:
        flag = FlagReranker(str(folder), use_fp16=False, devices="cpu")
        found["FlagEmbedding float32"] = lambda q, d: flag.compute_score([(q, x) for x in d])
    from secondpass import Reranker

    for name in ("float32", "bfloat16"):
        ours = Reranker(folder, engine="torch", dtype=name)
        found[f"secondpass {name}"] = lambda q, d, m=ours: m.score(q, d)
    return found


def measure(found: dict[str, Rival], texts: list[str], runs: int) -> dict[str, float]:
    """The median seconds of each rival over `runs` turns."""
    query = "which bridge is under the river in winter"
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(runs + 1):
        for name, rival in found.items():
            started = time.perf_counter()
            rival(query, texts)
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def versions() -> str:
    names = ("secondpass", "torch", "sentence-transformers", "FlagEmbedding", "transformers")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bge-reranker-base")
    parser.add_argument("--passages", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        found = rivals(write_xlm_roberta(Path(folder), options.shape, WORDS))
        print(f"{options.shape} shape, {torch.get_num_threads()} threads, {platform.machine()}, {versions()}\n")
        print("| passages | program | seconds | times sentence-transformers' default |")
        print("|---|---|---|---|")
        for count in options.passages:
            medians = measure(found, passages(count), options.runs)
            base = medians["sentence-transformers float32"]
            for name, seconds in medians.items():
                print(f"| {count} | {name} | {seconds:.2f} | {base / seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
