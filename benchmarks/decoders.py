"""What sharing, cutting off, compressing and leaving early save, on random weights of a middling shape.

    python benchmarks/decoders.py [folder of the reference checkpoints]

Scores of random weights mean nothing; the tokenizers and prompts are the real families'.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from secondpass import Reranker
from secondpass.models import build_backbone
from secondpass.models.decoder import DecoderConfig

SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
DEEP = {"num_hidden_layers": 42, "start_layer": 8, "query_pre_attn_scalar": 64, "sliding_window": 4096}
QUERY = "which river is the longest of the old world and how long is it"
PASSAGE = "the river is long and the bridge over the water is old and stands in the city since the cold winter "
NUM_DOCUMENTS = 40


def write(golden: Path, folder: Path, **changes: Any) -> Path:
    """The checkpoint at `golden` with random weights of another shape."""
    shutil.copytree(golden, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    config = json.loads((golden / "config.json").read_text("utf-8")) | SHAPE | changes
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        backbone: Any = build_backbone(config).backbone
    settings, shapes = backbone.config, {name: p.shape for name, p in backbone.named_parameters()}
    tensors = {f"backbone.{name}": torch.randn(shape) * 0.02 for name, shape in shapes.items()}
    save_file(hf_names(tensors, settings), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def hf_names(tensors: dict[str, torch.Tensor], settings: DecoderConfig) -> dict[str, torch.Tensor]:
    """Our tensors under the names of Hugging Face, joined matrices in their parts."""
    named: dict[str, torch.Tensor] = {}
    kv = settings.num_kv_heads * settings.head_width
    parts = {
        "qkv": (("q_proj", "k_proj", "v_proj"), (settings.num_heads * settings.head_width, kv, kv), "self_attn"),
        "up": (("gate_proj", "up_proj"), (settings.mlp_width,) * 2, "mlp"),
    }
    plain = {
        "out": "self_attn.o_proj",
        "down": "mlp.down_proj",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
        "attention_norm": "input_layernorm",
        "middle_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    }
    named["model.embed_tokens.weight"] = tensors.pop("backbone.word.weight")
    named["model.norm.weight"] = tensors.pop("backbone.norm.weight")
    for name, tensor in tensors.items():
        place, kind, what = name.removeprefix("backbone.layers.").split(".")
        if kind in parts:
            names, widths, where = parts[kind]
            for part, block in zip(names, tensor.split(widths), strict=True):
                named[f"model.layers.{place}.{where}.{part}.{what}"] = block.contiguous()
        else:
            named[f"model.layers.{place}.{plain[kind]}.{what}"] = tensor
    heads = torch.randn(len(settings.layers), 1, settings.width)
    return named | {f"lm_head.{index}.linear_head.weight": head for index, head in enumerate(heads)}


def seconds(reranker: Reranker, documents: list[str], **options: Any) -> float:
    return fastest(lambda some: reranker.score(QUERY, some, **options), documents)


def fastest(call: Callable[[list[str]], object], documents: list[str]) -> float:
    call(documents[:4])
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call(documents)
        times.append(time.perf_counter() - start)
    return min(times)


def show(what: str, plain: float, faster: float) -> None:
    print(f"{what:58} {plain:7.2f} s -> {faster:6.2f} s, saves {1 - faster / plain:4.0%}")


def sharing(goldens: Path, temporary: Path, documents: list[str]) -> None:
    for name in ("qwen3-llm-reranker", "qwen2-llm-reranker", "gemma-llm-reranker"):
        folder = write(goldens / name, temporary / name, num_hidden_layers=8)
        reranker = Reranker(folder, device="cpu", dtype="float32")
        engine: Any = reranker._scoring.engine.current
        shared = seconds(reranker, documents)
        engine.shares = False
        show(f"{name}, shared beginning", seconds(reranker, documents), shared)


def depth(goldens: Path, temporary: Path, documents: list[str]) -> None:
    folder = write(goldens / "gemma2-lightweight", temporary / "light", **DEEP)
    reranker = Reranker(folder, device="cpu", dtype="float32")
    whole = seconds(reranker, documents)
    for cutoff in (8, 25):
        faster = seconds(reranker, documents, cutoff_layer=cutoff)
        show(f"gemma2-lightweight, cutoff_layer={cutoff} of 42", whole, faster)
    for ratio in (2, 4):
        options = {"compress_ratio": ratio, "compress_layers": [8]}
        show(f"gemma2-lightweight, compress_ratio={ratio} at layer 8", whole, seconds(reranker, documents, **options))
    options = {"compress_ratio": 2, "compress_layers": [8], "cutoff_layer": 25}
    show("gemma2-lightweight, ratio 2 at layer 8, cutoff 25", whole, seconds(reranker, documents, **options))
    start = time.perf_counter()
    reranker.score_layers(QUERY, documents, range(8, 43))
    show("gemma2-lightweight, one layer -> all 35 in one pass", whole, time.perf_counter() - start)


def early_exit(goldens: Path, temporary: Path, documents: list[str]) -> None:
    """How many leave is chosen here: random weights have no bound. What is left to run is then known too."""
    folder = write(goldens / "gemma2-lightweight", temporary / "exits", **DEEP)
    reranker = Reranker(folder, device="cpu", dtype="float32")
    for layer in (8, 16):
        for left in (len(documents) // 2, 8 * len(documents) // 10):
            bounds = {layer: bound_for(reranker, documents, layer, left)}
            whole = seconds(reranker, documents)
            faster = fastest(lambda some, at=bounds: reranker.rank(QUERY, some, top_n=1, early_exit=at), documents)
            expected = left / len(documents) * (1 - layer / DEEP["num_hidden_layers"])
            what = f"gemma2-lightweight, {left} of {len(documents)} leave at layer {layer}"
            show(f"{what} (arithmetic {expected:.0%})", whole, faster)


def bound_for(reranker: Reranker, documents: list[str], layer: int, left: int) -> float:
    """The bound with which so many documents leave at a layer, when the first is wanted."""
    scores = sorted(reranker.score(QUERY, documents, cutoff_layer=layer), reverse=True)
    last_in, first_out = scores[-left - 1 :][:2]
    return (scores[0] - (last_in + first_out) / 2) / 2


def main() -> None:
    goldens = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/golden")
    torch.manual_seed(0)
    documents = [f"{PASSAGE} {index} {PASSAGE}" for index in range(NUM_DOCUMENTS)]
    with tempfile.TemporaryDirectory() as temporary:
        sharing(goldens, Path(temporary), documents)
        depth(goldens, Path(temporary), documents[: NUM_DOCUMENTS // 4])
        early_exit(goldens, Path(temporary), documents[: NUM_DOCUMENTS // 4])


if __name__ == "__main__":
    main()
