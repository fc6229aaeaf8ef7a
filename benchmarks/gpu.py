"""The figures of a GPU: latency of short lists, throughput against the matrix rate, training, and the peers beside.

    pip install -e ".[bench,train,qlora]" FlagEmbedding
    python benchmarks/gpu.py --goldens ../shared/golden
    python benchmarks/gpu.py --only training
    python benchmarks/gpu.py --device cpu   # the same code on the CPU with tiny shapes; its figures mean nothing

The part `training` first compares losses of a few steps with those of the CPU, method by method, and the script fails
where one lies elsewhere; then it measures steps of a decoder of a real shape.

Random weights of real shapes: scores mean nothing, costs are real. Tokenisation is part of every time, and no text
comes twice. Programs of one table take turns in one process; a program that is not installed is left out.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peers import QUERY, WORDS, passages, versions

from checkpoints import SHAPES, write_checkpoint
from secondpass import Reranker
from secondpass.engine.cuda.graphs import open_graphs
from secondpass.errors import SecondpassError
from secondpass.models.attention import pick_kernel
from secondpass.training import CompressionSettings, EmbedderSettings, LoraSettings, TrainingSettings
from secondpass.training.collators import Group
from secondpass.training.learner import Learner
from secondpass.training.processes import Processes
from secondpass.training.settings import PretrainingSettings
from secondpass.training.trainer import OPENERS

Score = Callable[[list[str]], list[float]]
MATRIX = 8192  # of the bare product
# Real sizes of decoder rerankers; the tokenizer and prompt come from the reference checkpoint that is named.
DECODERS = {
    "Qwen3-Reranker-0.6B": (
        "qwen3-llm-reranker",
        {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8}
        | {"head_dim": 128, "num_hidden_layers": 28},
    ),
    "bge-reranker-v2-gemma": (
        "gemma-llm-reranker",
        {"hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8, "num_key_value_heads": 1}
        | {"head_dim": 256, "num_hidden_layers": 18},
    ),
}
LORA = LoraSettings(rank=16, targets="q_proj,k_proj,v_proj,o_proj")
# What is trained, of which reference checkpoint, how
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "encoder": ("reranker", "xlm-roberta-cross-encoder", {}),
    "LoRA": ("reranker", "gemma-llm-reranker", {"lora": LORA}),
    "whole decoder, recomputed": ("reranker", "qwen3-llm-reranker", {"has_gradient_checkpointing": True}),
    "layer-wise": ("reranker", "minicpm-layerwise", {}),
    "compressed": (
        "reranker",
        "gemma2-lightweight",
        {"compression": CompressionSettings(layers=(2, 4), ratios=(2,), is_fixed=True)},
    ),
    "BGE-M3": (
        "embedder",
        "bge-m3",
        {"embedder": EmbedderSettings(parts=("dense", "sparse", "colbert"), self_distillation_from=0)},
    ),
    "RetroMAE": ("pretraining", "bert-cross-encoder", {"pretraining": PretrainingSettings()}),
}
STEPS = 3  # that are compared
NEAR = {"float32": 1e-4, "bfloat16": 0.1}  # of losses, relative
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What is measured: shapes, numbers of passages, and how often."""

    device: str
    dtype: str
    shapes: tuple[str, ...]  # for short lists
    long_shape: str
    short: int
    long: int
    turns: int


FULL = Scale(
    device="cuda",
    dtype="bfloat16",
    shapes=("bge-reranker-base", "bge-reranker-v2-m3"),
    long_shape="bge-reranker-v2-m3",
    short=20,
    long=1000,
    turns=30,
)
SMOKE = Scale(device="cpu", dtype="float32", shapes=("smoke",), long_shape="smoke", short=3, long=8, turns=2)


def matrix_rate(device: str, dtype: torch.dtype, size: int = MATRIX) -> float:
    """Operations per second of one bare product, the best of ten."""
    x, y = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    times = [_timed(lambda: torch.matmul(x, y), device) for _ in range(11)]
    return 2 * size**3 / min(times[1:])


def _timed(compute: Callable[[], object], device: str) -> float:
    _wait(device)
    started = time.perf_counter()
    compute()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def operations(shape: str, lengths: list[int]) -> float:
    """Operations of the products of a forward pass: twice the weights a token, and attention's two products.

    All layers are counted in full, though the last computes one token a row after its keys and values.
    """
    width, num_layers, _, mlp_width, _, _ = SHAPES[shape]
    weights = num_layers * (4 * width * width + 2 * width * mlp_width)
    return 2.0 * weights * sum(lengths) + 4.0 * num_layers * width * sum(length**2 for length in lengths)


def ours(folder: Path, scale: Scale, *, has_graphs: bool = False) -> Score:
    reranker = Reranker(folder, device=scale.device, dtype=scale.dtype)
    engine: Any = reranker._scoring.engine.current
    if has_graphs:
        kernel = pick_kernel(engine._device, engine._dtype, engine.model.backbone.config.head_width)
        engine._graphs = open_graphs(engine.model, kernel, engine._device, engine._budget)
    print(f"  secondpass: {reranker.info().reason}", file=sys.stderr)
    return lambda texts: reranker.score(QUERY, texts)


def sentence_transformers(folder: Path, scale: Scale) -> Score:
    """float16 and sorted by length; the size of batches that was fastest of three, found beforehand."""
    from sentence_transformers import CrossEncoder

    half = torch.float16 if scale.device == "cuda" else torch.float32
    model = CrossEncoder(str(folder), device=scale.device, model_kwargs={"torch_dtype": half})

    def score(texts: list[str], batch_size: int) -> list[float]:
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        pairs = [(QUERY, texts[place]) for place in order]
        found = model.predict(pairs, batch_size=batch_size, show_progress_bar=False).tolist()
        return [value for _, value in sorted(zip(order, found, strict=True))]

    tried = passages(scale.long, seed=1)
    score(tried[:4], 4)
    best = min((32, 128, 512), key=lambda size: _timed(lambda: score(tried, size), scale.device))
    return lambda texts: score(texts, best)


def flag_embedding(folder: Path, scale: Scale) -> Score:
    from FlagEmbedding import FlagReranker

    is_gpu = scale.device == "cuda"
    model = FlagReranker(str(folder), use_fp16=is_gpu, devices="cuda:0" if is_gpu else "cpu")
    return lambda texts: list(model.compute_score([(QUERY, text) for text in texts]))


PROGRAMS: dict[str, Callable[[Path, Scale], Score]] = {
    "secondpass": ours,
    "secondpass with graphs": lambda folder, scale: ours(folder, scale, has_graphs=True),
    "sentence-transformers float16, sorted": sentence_transformers,
    "FlagEmbedding float16": flag_embedding,
}


def opened(folder: Path, scale: Scale, programs: dict[str, Callable[[Path, Scale], Score]]) -> dict[str, Score]:
    found = {}
    for name, open_program in programs.items():
        try:
            found[name] = open_program(folder, scale)
        except ImportError as error:
            print(f"{name}: not installed, left out ({error})", file=sys.stderr)
    return found


def measure(
    programs: dict[str, Score], texts: Iterator[list[str]], scale: Scale, turns: int
) -> dict[str, list[float]]:
    """Seconds of each program over turns; as many before them warm up, and record graphs of the sizes that come."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(2 * turns):
        batch = next(texts)
        for name, score in programs.items():
            seconds = _timed(lambda score=score, batch=batch: score(batch), scale.device)  # type: ignore[misc]
            if turn >= turns:
                times[name].append(seconds)
    return times


def lists(count: int) -> Iterator[list[str]]:
    """Lists of passages, about 180 tokens each, new ones every time."""
    seed = 0
    while True:
        seed += 1
        yield passages(count, seed=seed)


def show(what: str, times: dict[str, list[float]], note: Callable[[float], str] = lambda seconds: "") -> None:
    slowest = statistics.median(times["secondpass"])
    print(f"\n{what}\n\n| program | median ms | 90th percentile ms | times secondpass's | |\n|---|---|---|---|---|")
    for name, values in times.items():
        median = statistics.median(values)
        tail = sorted(values)[min(int(0.9 * len(values)), len(values) - 1)]
        print(
            f"| {name} | {1000 * median:.2f} | {1000 * tail:.2f} | {median / slowest:.2f} | {note(median)} |",
            flush=True,
        )


def encoders(scale: Scale, home: Path) -> None:
    for shape in scale.shapes:
        folder = write_checkpoint(home / shape, shape, WORDS)
        times = measure(opened(folder, scale, PROGRAMS), lists(scale.short), scale, scale.turns)
        show(f"{shape}, {scale.short} passages, tokenisation included", times)
        _free()
    rate = matrix_rate(scale.device, getattr(torch, scale.dtype), MATRIX if scale.device == "cuda" else 256)
    print(f"\nOne bare {scale.dtype} product: {rate / 1e12:.2f} TFLOP/s")
    folder = write_checkpoint(home / f"{scale.long_shape}-long", scale.long_shape, WORDS)
    programs = opened(folder, scale, {name: PROGRAMS[name] for name in PROGRAMS if name != "secondpass with graphs"})
    times = measure(programs, lists(scale.long), scale, max(scale.turns // 6, 2))
    lengths = [len(text.split()) + len(QUERY.split()) + 4 for text in passages(scale.long, seed=4)]
    work = operations(scale.long_shape, lengths)
    show(
        f"{scale.long_shape}, {scale.long} passages, {sum(lengths)} tokens",
        times,
        lambda seconds: f"{work / seconds / rate:.0%} of the bare product",
    )
    _free()


def decoders(scale: Scale, home: Path, goldens: Path) -> None:
    from decoders import write

    for name, (golden, shape) in DECODERS.items():
        if not (goldens / golden).is_dir():
            print(f"\n{name}: no {goldens / golden}, left out", file=sys.stderr)
            continue
        changes = shape if scale.device == "cuda" else TINY | {"head_dim": 16, "num_hidden_layers": 2}
        folder = write(goldens / golden, home / name, **changes)
        programs = opened(folder, scale, {"secondpass": ours, "transformers, sdpa, padded": transformers_sdpa})
        for count in (scale.short, scale.long // 5):
            times = measure(programs, lists(count), scale, max(scale.turns // 6, 2))
            show(f"{name}, {count} passages of about 180 words", times)
        _free()


def transformers_sdpa(folder: Path, scale: Scale) -> Score:
    """The rows that secondpass reads, sorted, padded on the left, 32 at a time; logits of the last token alone."""
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, scale.dtype)
    model = AutoModelForCausalLM.from_pretrained(str(folder), torch_dtype=dtype, attn_implementation="sdpa")
    model = model.to(scale.device).eval()
    reader: Any = Reranker(folder, device="cpu", dtype=scale.dtype)

    @torch.inference_mode()
    def score(texts: list[str]) -> list[float]:
        readings = reader._scoring.reader.read([(QUERY, text) for text in texts], reader._scoring.limits)
        rows = [reading.row.ids for reading in readings]
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
        found = [0.0] * len(rows)
        for start in range(0, len(order), 32):
            places = order[start : start + 32]
            longest = len(rows[places[0]])
            ids = torch.tensor([[0] * (longest - len(rows[p])) + rows[p] for p in places]).to(scale.device)
            mask = torch.tensor([[0] * (longest - len(rows[p])) + [1] * len(rows[p]) for p in places])
            given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
            given = {name: values.to(scale.device) for name, values in given.items()}
            out = model(ids, **given, logits_to_keep=1, use_cache=False)
            for place, value in zip(places, out.logits[:, -1, 0].float().tolist(), strict=True):
                found[place] = value
        return found

    return score


def training(scale: Scale, home: Path, goldens: Path) -> list[str]:
    """What does not agree with the CPU."""
    wrong: list[str] = []
    print("\n| method | losses on the CPU | float32 apart | bfloat16 apart |\n|---|---|---|---|")
    for name, (kind, golden, options) in METHODS.items():
        if not (goldens / golden).is_dir():
            print(f"\n{name}: no {goldens / golden}, left out", file=sys.stderr)
            continue
        known = losses(goldens / golden, kind, options, "cpu", "float32")
        apart = {}
        for dtype, near in NEAR.items():
            found = losses(goldens / golden, kind, options, scale.device, dtype)
            apart[dtype] = max(abs(a - b) / abs(a) for a, b in zip(known, found, strict=True))
            wrong += [f"{name} in {dtype}: {found}, on the CPU {known}"] if apart[dtype] > near else []
        told = ", ".join(f"{loss:.4f}" for loss in known)
        print(f"| {name} | {told} | {apart['float32']:.1e} | {apart['bfloat16']:.1e} |", flush=True)
    training_speed(scale, home, goldens)
    return wrong


def losses(folder: Path, kind: str, options: dict[str, Any], device: str, dtype: str) -> list[float]:
    """Of STEPS steps."""
    settings = TrainingSettings(device=device, max_length=256, **options)
    objective = OPENERS[kind](folder, settings, torch.device(device), getattr(torch, dtype))
    learner = Learner(objective, settings, Processes())
    texts = passages(8 * STEPS, seed=7)
    found = []
    for step in range(STEPS):
        own = texts[8 * step : 8 * step + 8]
        items: list[Any] = [Group(query=QUERY, passages=tuple(own[start : start + 4])) for start in (0, 4)]
        if kind == "pretraining":
            items = [objective.drawn(text, index, 0) for index, text in enumerate(own)]  # type: ignore[attr-defined]
        found.append(learner.step(items, rate=1e-4, index=step).loss)
    return found


def training_speed(scale: Scale, home: Path, goldens: Path) -> None:
    """Steps of the small decoder, its base in bfloat16 or four bits, blocks kept or recomputed."""
    from decoders import write

    name, (golden, shape) = next(iter(DECODERS.items()))
    if not (goldens / golden).is_dir():
        return
    is_gpu = scale.device == "cuda"
    folder = write(
        goldens / golden, home / "trained", **shape if is_gpu else TINY | {"head_dim": 16, "num_hidden_layers": 2}
    )
    print(f"\n{name}'s shape, LoRA of rank 16\n\n| base | blocks | tokens/s | peak GB |\n|---|---|---|---|")
    for base, is_recomputed in [("bfloat16", False), ("bfloat16", True), ("4 bits", False), ("4 bits", True)]:
        lora = replace(LORA, has_four_bits=base == "4 bits")
        settings = TrainingSettings(
            device=scale.device, lora=lora, has_gradient_checkpointing=is_recomputed, token_budget=16384
        )
        try:
            speed = steps_speed(folder, settings, scale)
        except (ValueError, ImportError, SecondpassError) as error:  # four bits without a GPU, or bitsandbytes
            print(f"{base}: left out ({error})", file=sys.stderr)
            continue
        peak = torch.cuda.max_memory_allocated() / 2**30 if is_gpu else 0.0
        print(f"| {base} | {'recomputed' if is_recomputed else 'kept'} | {speed:,.0f} | {peak:.1f} |", flush=True)
        _free()


def steps_speed(folder: Path, settings: TrainingSettings, scale: Scale) -> float:
    """Tokens a second of the steps behind the first two."""
    if scale.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    objective = OPENERS["reranker"](folder, settings, torch.device(scale.device), torch.bfloat16)
    learner = Learner(objective, settings, Processes())
    size, rates = (8, 10) if scale.device == "cuda" else (2, 3)
    for step in range(rates):
        if step == 2:
            _wait(scale.device)
            began, tokens = time.perf_counter(), 0
        texts = passages(size * size, seed=step)
        groups = [Group(query=QUERY, passages=tuple(texts[i : i + size])) for i in range(0, len(texts), size)]
        moved = learner.step(groups, rate=1e-5, index=step)
        tokens = tokens + moved.num_tokens if step >= 2 else 0
    _wait(scale.device)
    return tokens / (time.perf_counter() - began)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goldens", type=Path, default=Path("../shared/golden"), help="reference checkpoints")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny shapes, to see it run")
    parser.add_argument("--only", choices=("encoders", "decoders", "training"))
    options = parser.parse_args()
    is_smoke = options.device == "cpu"
    if not is_smoke and not torch.cuda.is_available():
        parser.exit(
            1, "torch finds no CUDA device here: there is nothing to measure; --device cpu runs the code without\n"
        )
    SHAPES["smoke"] = (64, 2, 4, 128, 300, 514)
    scale = SMOKE if is_smoke else FULL
    device = "the CPU, tiny shapes: no figures" if is_smoke else torch.cuda.get_device_name()
    print(f"{device}, {versions()}")
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as home:
        if options.only in (None, "encoders"):
            encoders(scale, Path(home))
        if options.only in (None, "decoders"):
            decoders(scale, Path(home), options.goldens)
        if options.only in (None, "training"):
            wrong = training(scale, Path(home), options.goldens)
    if wrong:
        parser.exit(1, "\n".join(["not as on the CPU:", *wrong]) + "\n")


if __name__ == "__main__":
    main()
