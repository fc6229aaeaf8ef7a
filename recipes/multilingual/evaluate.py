"""nDCG@10 of BM25's first passages reranked by e5's cosine, with word matching, and with the joint layers.

Differences come with 95% intervals of the paired bootstrap over queries. States of the texts are kept in --cache.
"""

import argparse
import gzip
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from encode import QUERY_LENGTH, Encoded, encode, tokens_of
from lists import Collection, read_collection
from model import Reranker, load
from tokenizers import Tokenizer
from train import joint_scores

SETS = (
    "cmrc2018-sentences",
    "docs-zh-dev",
    "xquad-zh",
    "cmrc2018-dev",
    "jaquad-dev",
    "xquad-es",
    "xquad-de",
    "xquad-ar",
)
METHODS = ("BM25", "e5", "e5 + words", "ours")


@dataclass(frozen=True, kw_only=True)
class Candidates:
    query: str
    passages: list[str]
    bm25: np.ndarray


def read_candidates(folder: Path, collection: Collection, depth: int, max_queries: int) -> list[Candidates]:
    """BM25's first of the first queries by identifier that have a relevant passage at all."""
    found: dict[str, list[tuple[str, float]]] = {}
    with gzip.open(folder / "bm25-top100.tsv.gz", "rt", encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            query, passage, rank, score = line.split("\t")
            if int(rank) <= depth:
                found.setdefault(query, []).append((passage, float(score)))
    listed = sorted((query, rows) for query, rows in found.items() if query in collection.qrels)
    return [
        Candidates(query=query, passages=[name for name, _ in rows], bm25=np.array([score for _, score in rows]))
        for query, rows in listed[:max_queries]
    ]


def gain(scores: np.ndarray, grades: np.ndarray, ideal: np.ndarray) -> float:
    """nDCG@10 with linear gains of one query; `ideal` are the grades of all relevant passages."""
    ranked = grades[np.argsort(-scores, kind="stable")][:10]
    best = np.sort(ideal)[::-1][:10]
    discount = np.log2(np.arange(10) + 2)
    return float((ranked / discount[: len(ranked)]).sum() / (best / discount[: len(best)]).sum())


def encoded(
    model: Reranker,
    tokenizer: Tokenizer,
    collection: Collection,
    candidates: list[Candidates],
    cache: Path,
    length: int,
) -> tuple[Encoded, Encoded, dict[str, int]]:
    names = sorted({name for one in candidates for name in one.passages})
    texts = [collection.passages[name] for name in names]
    cache.mkdir(parents=True, exist_ok=True)
    tag = f"{len(candidates)}-{len(names)}-{length}"
    passages = encode(model, tokens_of(tokenizer, "passage", texts, length), cache / f"passages-{tag}.states")
    asked = [collection.queries[one.query] for one in candidates]
    queries = encode(model, tokens_of(tokenizer, "query", asked, QUERY_LENGTH), cache / f"queries-{tag}.states")
    return queries, passages, {name: row for row, name in enumerate(names)}


@torch.inference_mode()
def evaluate(
    model: Reranker, tokenizer: Tokenizer, folder: Path, cache: Path, *, depth: int, max_queries: int, length: int
) -> dict[str, np.ndarray]:
    """nDCG@10 per query, by method."""
    collection = read_collection(folder)
    candidates = read_candidates(folder, collection, depth, max_queries)
    queries, passages, row_of = encoded(model, tokenizer, collection, candidates, cache, length)
    found: dict[str, list[float]] = {method: [] for method in METHODS}
    for query, one in enumerate(candidates):
        rows = [row_of[name] for name in one.passages]
        cosine = passages.vectors[rows] @ queries.vectors[query]
        words = matched(model, queries.ids[query], [passages.ids[row] for row in rows])
        base = model.scales[0].item() * cosine + model.scales[1].item() * words
        added = joint_scores(model.joint, [(queries, query, passages, row) for row in rows]).numpy()
        judged = collection.qrels[one.query]
        grades = np.array([judged.get(name, 0) for name in one.passages], dtype=float)
        ideal = np.array(list(judged.values()), dtype=float)
        for method, scores in zip(METHODS, (one.bm25, cosine, base, base + added), strict=True):
            found[method].append(gain(scores, grades, ideal))
    return {method: np.array(values) for method, values in found.items()}


def matched(model: Reranker, query: list[int], passages: list[list[int]]) -> np.ndarray:
    rows = [torch.tensor(query + passage) for passage in passages]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    places = torch.arange(ids.shape[1])
    first = (places < len(query)).expand(len(rows), -1)
    second = ~first & (places < torch.tensor([len(row) for row in rows])[:, None])
    return model.matched(ids, first.float(), second.float()).numpy()


def interval(difference: np.ndarray) -> list[float]:
    """Mean of a per-query difference and its 95% interval, from 2,000 resamples."""
    draws = np.random.default_rng(0).integers(len(difference), size=(2000, len(difference)))
    low, high = np.percentile(difference[draws].mean(1), [2.5, 97.5])
    return [round(float(value), 4) for value in (difference.mean(), low, high)]


def summary(found: dict[str, np.ndarray]) -> dict[str, float | list[float]]:
    means = {method: round(float(values.mean()), 4) for method, values in found.items()}
    return means | {f"ours - {other}": interval(found["ours"] - found[other]) for other in METHODS[:-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dev", type=Path, help="folder of the development sets")
    parser.add_argument("encoder", type=Path, help="what prune.py wrote")
    parser.add_argument("cache", type=Path)
    parser.add_argument("--words", type=Path, required=True, help="words.npy of mine.py")
    parser.add_argument("--joint", type=Path, help="joint.pt as fit.py wrote it, with the scales")
    parser.add_argument("--out", type=Path, help="JSON with all figures")
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--depth", type=int, default=30)
    parser.add_argument("--max-queries", type=int, default=100)
    parser.add_argument("--max-length", type=int, default=256, help="of a passage")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load(str(arguments.encoder), torch.from_numpy(np.load(arguments.words)))
    if arguments.joint:
        model.load_state_dict(torch.load(arguments.joint, weights_only=True), strict=False)
    tokenizer = Tokenizer.from_file(str(arguments.encoder / "tokenizer.json"))
    limits = {"depth": arguments.depth, "max_queries": arguments.max_queries, "length": arguments.max_length}
    figures = {}
    for name in arguments.sets:
        start = time.time()
        found = evaluate(model, tokenizer, arguments.dev / name, arguments.cache / name, **limits)
        figures[name] = summary(found)
        print(name, json.dumps(figures[name]), f"{time.time() - start:.0f} s", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    means = {method: round(float(np.mean([one[method] for one in figures.values()])), 4) for method in METHODS}
    print("mean nDCG@10", means)


if __name__ == "__main__":
    main()
