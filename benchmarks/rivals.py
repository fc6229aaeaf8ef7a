"""One reranker in a process of its own: `python rivals.py NAME FOLDER`, driven by peers.py over standard input.

A line {"query": ..., "texts": [...]} in, a line {"seconds": ..., "scores": [...], "memory": ...} out. Each program is
used as its documentation says, on the same checkpoint folder. The time is that of the call, inside of this process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rival = Callable[[str, list[str]], list[float]]


def sentence_transformers(folder: Path, **options: Any) -> Rival:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", **options)
    return lambda query, texts: model.predict([(query, text) for text in texts], show_progress_bar=False).tolist()


def st_bfloat16(folder: Path) -> Rival:
    import torch

    return sentence_transformers(folder, model_kwargs={"torch_dtype": torch.bfloat16})


def st_onnx(folder: Path) -> Rival:
    _onnx(folder)
    return sentence_transformers(folder, backend="onnx")


def st_onnx_int8(folder: Path) -> Rival:
    """Dynamic int8 for AVX512-VNNI, made by sentence-transformers' own function."""
    from sentence_transformers import CrossEncoder, export_dynamic_quantized_onnx_model

    if not (folder / "onnx" / "model_qint8_avx512_vnni.onnx").is_file():
        model = CrossEncoder(str(folder), device="cpu", backend="onnx")
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", str(folder))
    return sentence_transformers(
        folder, backend="onnx", model_kwargs={"file_name": "onnx/model_qint8_avx512_vnni.onnx"}
    )


def st_openvino(folder: Path) -> Rival:
    if not (folder / "openvino" / "openvino_model.xml").is_file():
        from sentence_transformers import CrossEncoder

        CrossEncoder(str(folder), device="cpu", backend="openvino").save_pretrained(str(folder))
    return sentence_transformers(folder, backend="openvino")


def flag_embedding(folder: Path) -> Rival:
    from FlagEmbedding import FlagReranker

    model = FlagReranker(str(folder), use_fp16=False, devices="cpu")
    return lambda query, texts: model.compute_score([(query, text) for text in texts])


def flashrank(folder: Path) -> Rival:
    """FlashRank with an ONNX export of this checkpoint in place of one of its own."""
    from flashrank import Ranker, RerankRequest
    from flashrank.Config import model_file_map

    name = "ms-marco-MiniLM-L-12-v2"
    home = folder / "flashrank" / name
    home.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.suffix in (".json", ".txt"):
            (home / file.name).write_bytes(file.read_bytes())
    (home / model_file_map[name]).write_bytes(_onnx(folder).read_bytes())
    ranker = Ranker(model_name=name, cache_dir=str(home.parent), max_length=512)

    def score(query: str, texts: list[str]) -> list[float]:
        passages = [{"id": index, "text": text} for index, text in enumerate(texts)]
        results = ranker.rerank(RerankRequest(query=query, passages=passages))
        return [each["score"] for each in sorted(results, key=lambda each: each["id"])]

    return score


def fastembed(folder: Path) -> Rival:
    """fastembed with an ONNX export of this checkpoint added as a model of the user's own."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    _onnx(folder)
    TextCrossEncoder.add_custom_model(
        model="local/shape", model_file="onnx/model.onnx", sources=ModelSource(hf="local/shape")
    )
    model = TextCrossEncoder("local/shape", specific_model_path=str(folder))
    return lambda query, texts: list(model.rerank(query, texts))


def infinity(folder: Path) -> Rival:
    """infinity's engine on torch, as its server uses it; one call is one request."""
    import asyncio

    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=str(folder), engine="torch", device="cpu", bettertransformer=False)
    )
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.astart())

    def score(query: str, texts: list[str]) -> list[float]:
        results, _ = loop.run_until_complete(engine.rerank(query=query, docs=texts, raw_scores=True))
        return [each.relevance_score for each in sorted(results, key=lambda each: each.index)]

    return score


def secondpass(folder: Path, dtype: str = "auto", engine: str = "torch") -> Rival:
    from secondpass import Reranker

    return Reranker(folder, engine=engine, dtype=dtype).score


def secondpass_openvino(folder: Path, dtype: str) -> Rival:
    """Our engine for machines without torch, on a graph that `secondpass export` wrote."""
    out = folder.parent / f"{folder.name}-openvino-{dtype}"
    if not out.is_dir():
        from subprocess import run

        export = ["export", str(folder), "--output", str(out), "--format", "openvino", "--dtype", dtype]
        run([sys.executable, "-m", "secondpass", *export], check=True, stdout=sys.stderr)
    return secondpass(out, engine="openvino")


def _onnx(folder: Path) -> Path:
    """The export that sentence-transformers makes, which the ONNX programs share."""
    file = folder / "onnx" / "model.onnx"
    if not file.is_file():
        from sentence_transformers import CrossEncoder

        CrossEncoder(str(folder), device="cpu", backend="onnx").save_pretrained(str(folder))
    return file


RIVALS: dict[str, Callable[[Path], Rival]] = {
    "sentence-transformers float32": sentence_transformers,
    "sentence-transformers bfloat16": st_bfloat16,
    "sentence-transformers onnx": st_onnx,
    "sentence-transformers onnx int8": st_onnx_int8,
    "sentence-transformers openvino": st_openvino,
    "FlagEmbedding float32": flag_embedding,
    "FlashRank onnx": flashrank,
    "fastembed onnx": fastembed,
    "infinity torch": infinity,
    "secondpass float32": lambda folder: secondpass(folder, "float32"),
    "secondpass bfloat16": lambda folder: secondpass(folder, "bfloat16"),
    "secondpass int8": lambda folder: secondpass(folder, "int8"),
    "secondpass auto": secondpass,
    "secondpass openvino": lambda folder: secondpass_openvino(folder, "float32"),
    "secondpass openvino int8": lambda folder: secondpass_openvino(folder, "int8"),
}


def peak() -> int:
    """Bytes of memory at the most; what getrusage says would include the process that started this one."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    warnings.filterwarnings("ignore")
    name, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    started = time.perf_counter()
    rival = RIVALS[name](folder)
    print(json.dumps({"load_seconds": time.perf_counter() - started}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        started = time.perf_counter()
        scores = [float(score) for score in rival(task["query"], task["texts"])]
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "scores": scores, "memory": peak()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
