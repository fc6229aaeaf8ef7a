"""secondpass beside its peers: the same checkpoint, the same texts, taking turns on one machine.

    pip install -e ".[bench]"
    python benchmarks/peers.py --shape bge-reranker-base --passages 20 100

One query, passages of mixed length (mean about 180 tokens, 30 to 480), random weights of the named shape. Each
program runs in a process of its own, and they take turns, so that a machine whose speed drifts is fair to all; the
figure to trust is the ratio. Tokenisation is part of every time. A program may have an environment of its own:

    --python "infinity torch=/path/to/its/bin/python"

--limit adds columns: times the linear layers' arithmetic for these tokens, at the rate of bare products of the
model's own shapes on all cores, measured between the turns of the same run (the median): in the precision that "auto"
has on this processor, and of bytes where it multiplies them. A line below has the rates, on one thread and on all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rivals import RIVALS

from checkpoints import SHAPES, write_checkpoint

EXPORTED = re.compile("onnx|openvino")
BASE = "sentence-transformers float32"
STOP_SECONDS = 10
LIMIT_TOKENS = 2048
TURN_SECONDS, MAX_CALLS = 0.5, 20
QUERY = "which bridge is under the river in winter"
WORDS = (
    "the of a to in is water river retrieval model score query passage system bridge winter light engine paper "
    "market city number between under small large question answer result method history language network table which"
).split()


def passages(
    count: int, *, mean_tokens: int = 180, longest: int = 480, tokens: int | None = None, seed: int = 0
) -> list[str]:
    """Texts of log-normal length, or of `tokens`, one token a word."""
    generator = random.Random(seed)
    lengths = [int(generator.lognormvariate(-0.125, 0.5) * mean_tokens) for _ in range(count)]
    lengths = [min(max(length, 30), longest) if tokens is None else tokens for length in lengths]
    return [" ".join(generator.choice(WORDS) for _ in range(length)) for length in lengths]


@dataclass
class Process:
    """A rival in its process."""

    name: str
    process: subprocess.Popen[str]
    load_seconds: float = 0.0
    memory: int = 0

    @classmethod
    def start(cls, name: str, python: str, folder: Path) -> Process | None:
        """None where the program is not installed or cannot run the checkpoint; it says why on standard error."""
        command = [python, str(Path(__file__).with_name("rivals.py")), name, str(folder)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        found = cls(name, process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            print(f"{name}: does not run here, left out", file=sys.stderr)
            return None
        found.load_seconds = json.loads(line)["load_seconds"]
        return found

    def run(self, texts: list[str]) -> float:
        """Seconds of one call."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"query": QUERY, "texts": texts}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        if len(answer["scores"]) != len(texts):
            raise ValueError(f"{self.name}: {len(answer['scores'])} scores for {len(texts)} texts")
        self.memory = answer["memory"]
        return float(answer["seconds"])

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:  # a program with threads of its own may not end when its input does
            self.process.kill()
            self.process.wait()


def start(name: str, pythons: dict[str, str], checkpoint: Path, *, is_shown: bool = True) -> Process | None:
    rival = Process.start(name, pythons.get(name, sys.executable), checkpoint)
    if rival is not None and not is_shown:
        rival.stop()
    return rival


def environment() -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    return {**os.environ, **quiet}


def measure(found: list[Process], texts: list[str], runs: int, limit: Limit | None = None) -> dict[str, list[float]]:
    """The seconds of a call of each rival in `runs` turns; a turn before them warms up.

    A turn is one call, or as many short ones as fill half a second, whose median counts: a process that just woke
    up has its caches and cores taken by the one before.
    """
    times: dict[str, list[float]] = {rival.name: [] for rival in found}
    for turn in range(runs + 1):
        for rival in found:
            if limit is not None:
                limit.measure()
            seconds = [rival.run(texts)]
            if turn:
                seconds += [rival.run(texts) for _ in range(min(MAX_CALLS, int(TURN_SECONDS / seconds[0])))]
                times[rival.name].append(statistics.median(seconds))
    return times


class Limit:
    """The least seconds that the linear layers of a shape take on all cores, by bare products of their shapes."""

    def __init__(self, shape: str) -> None:
        import torch

        from secondpass.engine.cpu.linear_int8 import ZERO, onednn_product, quantize_weight
        from secondpass.engine.cpu.linear_onednn import fuse_layers
        from secondpass.engine.cpu.threads import this_processor
        from secondpass.engine.device import pick_dtype
        from secondpass.models.layers import Linear

        width, self._num_layers, _, mlp_width, *_ = SHAPES[shape]
        sizes = ((width, 3 * width), (width, width), (width, mlp_width), (mlp_width, width))
        self._operations = 2 * LIMIT_TOKENS * sum(size_in * size_out for size_in, size_out in sizes)
        self._num_threads = torch.get_num_threads()
        dtype, _ = pick_dtype("auto", torch.device("cpu"))
        floats, codes = [], []
        for size_in, size_out in sizes:
            weight = torch.randn(size_out, size_in)
            linear = Linear(size_in, size_out, has_bias=False).to(dtype)
            linear.weight.data.copy_(weight)
            fuse_layers([linear])  # the engine's own products: oneDNN's or MKL's
            floats.append(partial(linear, torch.randn(LIMIT_TOKENS, size_in, dtype=dtype)))
            if this_processor().int8:
                product = onednn_product(*quantize_weight(weight))
                codes.append(partial(product, torch.full((LIMIT_TOKENS, size_in), ZERO, dtype=torch.uint8), dtype))
        self._products = {str(dtype).removeprefix("torch."): floats} | ({"int8": codes} if codes else {})
        self._seconds: dict[tuple[str, int], list[float]] = {}

    def measure(self) -> None:
        """One layer of each precision, on one thread and on all, once more; the first call warms up."""
        import torch

        for precision, products in self._products.items():
            for threads in {1, self._num_threads}:
                torch.set_num_threads(threads)
                with torch.inference_mode():
                    for _ in range(2):
                        started = time.perf_counter()
                        for product in products:
                            product()
                        seconds = time.perf_counter() - started
                self._seconds.setdefault((precision, threads), []).append(seconds)
        torch.set_num_threads(self._num_threads)

    @property
    def precisions(self) -> list[str]:
        return list(self._products)

    def seconds(self, texts: list[str]) -> list[float]:
        """For the tokens of these texts beside the query, of each precision; all layers are counted in full."""
        tokens = sum(len(text.split()) + len(QUERY.split()) + 3 for text in texts)
        layers = tokens / LIMIT_TOKENS * self._num_layers
        return [layers * statistics.median(self._seconds[each, self._num_threads]) for each in self._products]

    def rates(self) -> str:
        said = []
        for (precision, threads), seconds in self._seconds.items():
            rate = self._operations / statistics.median(seconds) / 1e9
            said.append(f"{precision} on {threads} thread{'s' * (threads > 1)} {rate:.0f}")
        return "Bare products, 10^9 operations a second: " + ", ".join(said)


def table(found: list[Process], count: int, times: dict[str, list[float]], limits: list[float]) -> None:
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians.get(BASE, max(medians.values()))
    for rival in found:
        seconds, spread = medians[rival.name], times[rival.name]
        between = f"{min(spread):.3f} to {max(spread):.3f}"
        print(
            f"| {count} | {rival.name} | {seconds:.3f} | {between} | {base / seconds:.1f} "
            f"| {rival.memory / 2**20:.0f} | {rival.load_seconds:.1f} |"
            + "".join(f" {seconds / limit:.2f} |" for limit in limits),
            flush=True,
        )


def versions() -> str:
    names = ("secondpass", "torch", "openvino", "onnxruntime", "sentence-transformers", "FlagEmbedding", "FlashRank")
    found = []
    for name in (*names, "fastembed", "transformers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bge-reranker-base")
    parser.add_argument("--passages", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--tokens", type=int, metavar="N", help="of every passage; else of mixed length")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="a program's own Python")
    parser.add_argument("--limit", action="store_true", help="measure bare products too, and show times the limit")
    options = parser.parse_args()
    pythons = dict(each.split("=", 1) for each in options.python)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "checkpoint", options.shape, WORDS)
        for name in [name for name in options.rivals if EXPORTED.search(name)]:
            start(name, pythons, checkpoint, is_shown=False)  # writes its graph, so that loading is loading alone
        found = [rival for name in options.rivals if (rival := start(name, pythons, checkpoint))]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        print(f"{options.shape} shape, {processor()}, {cores} cores, {versions()}\n")
        limit = Limit(options.shape) if options.limit else None
        limited = [f" times the limit of {each} |" for each in limit.precisions] if limit else []
        head = "| passages | program | seconds | between | times sentence-transformers | peak MB | load s |"
        print(head + "".join(limited))
        print("|---" * (7 + len(limited)) + "|")
        for count in options.passages:
            texts = passages(count, tokens=options.tokens)
            times = measure(found, texts, options.runs, limit)
            table(found, count, times, limit.seconds(texts) if limit else [])
        for rival in found:
            rival.stop()
        if limit:
            print(f"\n{limit.rates()}")


if __name__ == "__main__":
    main()
