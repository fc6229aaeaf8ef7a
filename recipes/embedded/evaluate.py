"""nDCG@10 and MRR@10 of a cross-encoder reranking BM25's first passages, beside BM25, a bi-encoder and both together.

Differences come with 95% intervals of the paired bootstrap over queries. `--model` is a float32 folder (`final/`), or
an OpenVINO graph (.xml) with the tokenizer in the folder above. Texts are cut at `--max-length` tokens.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from biencoder import BiEncoder
from collection import Bm25, Collection, by_hash, read_collection
from model import load
from tokenizers import Tokenizer
from train import logits_of

SETS = (
    "selqa-rerank",
    "squad-dev-sentences",
    "cosqa",
    "xquad-en",
    "nq-qed",
    "cranfield",
    "docs-en-dev",
    "medquad-dev",
    "selqa-test",
    "cisi",
)
HYBRID_WEIGHTS = (0.6, 0.4)  # of the bi-encoder's and BM25's z-scores within a query's candidates
Score = Callable[[list[tuple[str, str]]], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    query: str
    passages: list[str]
    bm25: np.ndarray


def read_candidates(folder: Path, depth: int, max_queries: int) -> list[Candidates]:
    found: dict[str, list[tuple[str, float]]] = {}
    with gzip.open(folder / "bm25-top100.tsv.gz", "rt", encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            query, passage, rank, score = line.split("\t")
            if int(rank) <= depth:
                found.setdefault(query, []).append((passage, float(score)))
    return [
        Candidates(query=query, passages=[name for name, _ in rows], bm25=np.array([score for _, score in rows]))
        for query, rows in sorted(found.items())[:max_queries]
    ]


def own_candidates(collection: Collection, depth: int, max_queries: int) -> list[Candidates]:
    """The same for a set without a BM25 run, such as a training set held out; `max_queries` are drawn by hash."""
    queries = by_hash(sorted(name for name, judged in collection.qrels.items() if any(judged.values())), max_queries)
    names = list(collection.passages)
    scores = Bm25(list(collection.passages.values())).scores([collection.queries[name] for name in queries])
    tops = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return [
        Candidates(query=query, passages=[names[row] for row in rows], bm25=values[rows])
        for query, rows, values in zip(queries, tops, scores, strict=True)
    ]


def measure(scores: np.ndarray, grades: np.ndarray, ideal: np.ndarray) -> tuple[float, float]:
    """nDCG@10 with linear gains, and MRR@10, of one query; `ideal` are the grades of all relevant passages."""
    ranked = grades[np.argsort(-scores, kind="stable")][:10]
    best = np.sort(ideal)[::-1][:10]
    gain = (ranked / np.log2(np.arange(len(ranked)) + 2)).sum() / (best / np.log2(np.arange(len(best)) + 2)).sum()
    hits = np.flatnonzero(ranked > 0)
    return float(gain), 1 / (hits[0] + 1) if len(hits) else 0.0


def z_scores(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 1e-6)


def cosines(encoder: BiEncoder, collection: Collection, candidates: list[Candidates]) -> list[np.ndarray]:
    names = sorted({name for one in candidates for name in one.passages})
    row_of = {name: row for row, name in enumerate(names)}
    passages = encoder.encode([collection.passages[name] for name in names])
    queries = encoder.encode([collection.queries[one.query] for one in candidates])
    return [
        passages[[row_of[name] for name in one.passages]] @ query
        for one, query in zip(candidates, queries, strict=True)
    ]


def torch_score(folder: Path, max_length: int) -> Score:
    model = load(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    @torch.inference_mode()
    def score(pairs: list[tuple[str, str]]) -> np.ndarray:
        queries = tokenizer.encode_batch([query for query, _ in pairs], add_special_tokens=False)
        passages = tokenizer.encode_batch([passage for _, passage in pairs], add_special_tokens=False)
        tokens = [
            (query.ids[: max_length // 2], passage.ids[: max_length - 3 - min(len(query.ids), max_length // 2)])
            for query, passage in zip(queries, passages, strict=True)
        ]
        return logits_of(model, tokens).numpy()

    return score


def openvino_score(graph: Path, max_length: int) -> Score:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    tokenizer = Tokenizer.from_file(str(graph.parent.parent / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding()

    def score(pairs: list[tuple[str, str]]) -> np.ndarray:
        order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))
        logits = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            encoded = tokenizer.encode_batch([pairs[row] for row in rows])
            inputs = {
                "input_ids": np.array([one.ids for one in encoded]),
                "attention_mask": np.array([one.attention_mask for one in encoded]),
                "token_type_ids": np.array([one.type_ids for one in encoded]),
            }
            logits[rows] = compiled(inputs)["logits"][:, 0]
        return logits

    return score


def evaluate(
    folder: Path, encoder: BiEncoder, score: Score, *, depth: int, max_queries: int
) -> dict[str, np.ndarray]:
    """Per method (queries, 2): nDCG@10 and MRR@10."""
    collection = read_collection(folder)
    if (folder / "bm25-top100.tsv.gz").exists():
        candidates = read_candidates(folder, depth, max_queries)
    else:
        candidates = own_candidates(collection, depth, max_queries)
    candidates = [one for one in candidates if any(collection.qrels.get(one.query, {}).values())]
    listed = [(one.query, passage) for one in candidates for passage in one.passages]
    pairs = [(collection.queries[query], collection.passages[passage]) for query, passage in listed]
    ends = np.cumsum([len(one.passages) for one in candidates])[:-1]
    ours = np.split(score(pairs), ends)
    rows: dict[str, list[tuple[float, float]]] = {"BM25": [], "bi-encoder": [], "hybrid": [], "ours": []}
    for one, cosine, logits in zip(candidates, cosines(encoder, collection, candidates), ours, strict=True):
        judged = collection.qrels[one.query]
        grades = np.array([judged.get(name, 0) for name in one.passages], dtype=float)
        hybrid = HYBRID_WEIGHTS[0] * z_scores(cosine) + HYBRID_WEIGHTS[1] * z_scores(one.bm25)
        by_method = {"BM25": one.bm25, "bi-encoder": cosine, "hybrid": hybrid, "ours": logits}
        for method, scores in by_method.items():
            rows[method].append(measure(scores, grades, np.array(list(judged.values()), dtype=float)))
    return {method: np.array(values) for method, values in rows.items()}


def interval(difference: np.ndarray) -> list[float]:
    """Mean of a per-query difference and its 95% interval, from 2,000 resamples."""
    draws = np.random.default_rng(0).integers(len(difference), size=(2000, len(difference)))
    low, high = np.percentile(difference[draws].mean(1), [2.5, 97.5])
    return [round(float(value), 4) for value in (difference.mean(), low, high)]


def summary(found: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Means of both measures by method, differences in nDCG@10 with intervals, and the number of queries."""
    means = {method: [round(float(value), 4) for value in values.mean(0)] for method, values in found.items()}
    gains = {
        f"ours - {other}": interval(found["ours"][:, 0] - found[other][:, 0])
        for other in ("BM25", "bi-encoder", "hybrid")
    }
    return means | gains | {"queries": [len(found["ours"])]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dev", type=Path, help="folder of the development sets")
    parser.add_argument("bi_encoder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="JSON with all figures")
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--depth", type=int, default=30)
    parser.add_argument("--max-queries", type=int, default=1_000_000)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = openvino_score if arguments.model.suffix == ".xml" else torch_score
    score, encoder = chosen(arguments.model, arguments.max_length), BiEncoder(arguments.bi_encoder, 256)
    figures = {}
    for name in arguments.sets:
        start = time.time()
        found = evaluate(
            arguments.dev / name, encoder, score, depth=arguments.depth, max_queries=arguments.max_queries
        )
        figures[name] = summary(found)
        print(name, json.dumps(figures[name]), f"{time.time() - start:.0f} s", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    means = {
        method: round(float(np.mean([one[method][0] for one in figures.values()])), 4)
        for method in ("BM25", "bi-encoder", "hybrid", "ours")
    }
    print("mean nDCG@10", means)


if __name__ == "__main__":
    main()
