"""Where the time of one forward pass goes on one core, and the least that its arithmetic alone would take.

    python benchmarks/profile_cpu.py --shape bge-reranker-base --passages 20

CPU time of one thread, so that what else the machine does counts little. Each of torch's
operators is timed by itself; the rest is Python and torch's own dispatch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peers import QUERY, WORDS, passages
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints import SHAPES, write_checkpoint
from secondpass import Reranker

KINDS = {
    "linear layers": ("linear", "addmm"),
    "attention: products": ("bmm", "scaled_dot_product"),
    "attention: exp and sums": ("exp", "softmax", "sum", "aminmax", "div"),
    "layer norms": ("layer_norm",),
    "to and from bytes": ("abs", "amax", "round", "xor", "reciprocal", "addcmul", "clamp"),
    "GELU by itself": ("gelu",),
}
ROUNDS = 3


class Clock(TorchDispatchMode):
    """Seconds of CPU time by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        started = time.thread_time()
        result = func(*args, **(kwargs or {}))
        self.seconds[str(func)] += time.thread_time() - started
        return result


def kind_of(operator: str) -> str:
    name = operator.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other operators")


def best(compute: Callable[[], object]) -> float:
    """The least CPU seconds of one thread over some rounds; the first warms up."""
    times = []
    for _ in range(ROUNDS + 1):
        started = time.thread_time()
        compute()
        times.append(time.thread_time() - started)
    return min(times[1:])


def parts_of(reranker: Reranker, texts: list[str]) -> tuple[float, dict[str, float]]:
    """CPU seconds of scoring in all, and of each kind of operator."""
    whole = best(lambda: reranker.score(QUERY, texts))
    clock = Clock()
    with clock:
        for _ in range(ROUNDS):
            reranker.score(QUERY, texts)
    parts: defaultdict[str, float] = defaultdict(float)
    for operator, seconds in clock.seconds.items():
        parts[kind_of(operator)] += seconds / ROUNDS
    return whole, dict(parts)


def least(shape: str, dtype: str, lengths: list[int]) -> float:
    """Seconds of the linear layers at the rate of one product of the up-projection's shape, and of nothing else."""
    width, num_layers, _, mlp_width, *_ = SHAPES[shape]
    tokens, rows = sum(lengths), len(lengths)
    attention, perceptron = 8 * width * width, 4 * width * mlp_width
    flops = (num_layers - 1) * tokens * (attention + perceptron)
    flops += tokens * 4 * width * width + rows * (4 * width * width + perceptron)  # last block: one token a row
    return flops / rate(dtype, width, mlp_width)


def rate(dtype: str, width: int, mlp_width: int) -> float:
    """Floating-point operations a second of the bare product, without bias or activation."""
    from secondpass.engine.cpu.linear_int8 import onednn_product, quantize_tokens, quantize_weight
    from secondpass.engine.cpu.linear_onednn import OneDnnLinear

    x, weight = torch.randn(1024, width), torch.randn(mlp_width, width)
    if dtype == "int8":
        product, codes = onednn_product(*quantize_weight(weight)), quantize_tokens(x)[0]
        seconds = best(lambda: product(codes, torch.bfloat16))
    else:
        linear = OneDnnLinear(weight.to(getattr(torch, dtype)), None)
        seconds = best(lambda: linear(x.to(getattr(torch, dtype)), None, None))
    return 2 * 1024 * width * mlp_width / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bge-reranker-base")
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8"])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), options.shape, WORDS)
        for dtype in options.dtypes:
            report(checkpoint, options.shape, dtype, passages(options.passages))


def report(checkpoint: Path, shape: str, dtype: str, texts: list[str]) -> None:
    reranker = Reranker(checkpoint, engine="torch", dtype=dtype)
    whole, parts = parts_of(reranker, texts)
    lengths = [int(hit.parts["tokens"]) for hit in reranker.rank(QUERY, texts, explain=True) if hit.parts]
    print(
        f"\n{shape}, {dtype}, {len(texts)} passages, {sum(lengths)} tokens, one thread, torch {torch.__version__}\n"
    )
    print("| part | CPU ms | share |\n|---|---|---|")
    parts["Python, dispatch, tokenising"] = max(whole - sum(parts.values()), 0.0)
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"| {name} | {seconds * 1e3:.1f} | {seconds / whole:.0%} |")
    arithmetic = least(shape, dtype, lengths)
    print(f"| all | {whole * 1e3:.1f} | |")
    print(f"| the linear layers' arithmetic alone | {arithmetic * 1e3:.1f} | {arithmetic / whole:.0%} |", flush=True)


if __name__ == "__main__":
    main()
