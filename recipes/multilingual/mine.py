"""Per training set: e5's vectors and states, and for each query its positive with hard and random negatives.

`lists.npz` has candidates (Q, 16) as rows of the passages, the positive first, cosine and word matching of the same
shape, a mask of those in use; and `natural`, the first 30 by word matching of every query with its positive in them,
nothing left out, to fit the two weights of the start. `words.npy` is made first: how much each piece tells.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from encode import QUERY_LENGTH, encode, tokens_of
from lists import SOURCES, Source, WordMatch, cut, read_collection
from model import K1, MEAN_LENGTH, B, Reranker, load
from tokenizers import Tokenizer

NUM_CANDIDATES = 16
WORDS_DEPTH, DENSE_DEPTH, NATURAL_DEPTH = 50, 25, 30
DUPLICATE = 0.97  # cosine between passages
MARGIN = {True: 0.03, False: 0.01}  # above the positive's cosine: likely relevant too, left out; by people or not


def piece_weights(folder: Path) -> np.ndarray:
    """(V,) how rare a piece is, from its Unigram log probability; markers and the bare space tell nothing.

    Those of the training texts could be counted, but then the words of other languages would all seem rare.
    """
    pieces = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    logs = np.array([score for _, score in pieces])
    weights = np.clip(-logs - 4.0, 0.0, 10.0)
    weights[[logs[row] == 0 or piece == "▁" for row, (piece, _) in enumerate(pieces)]] = 0
    return weights.astype(np.float32)


def top(scores: np.ndarray, depth: int) -> np.ndarray:
    depth = min(depth, scores.shape[1] - 1)
    part = np.argpartition(-scores, depth, axis=1)[:, :depth]
    return np.take_along_axis(part, np.argsort(-np.take_along_axis(scores, part, 1), axis=1), 1)


def pick(rankings: list[np.ndarray], allowed: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Up to 15 negatives: 7 from each ranking, drawn towards its top, and the rest at random."""
    picked: list[int] = []
    for ranking in rankings:
        pool = [row for row in ranking.tolist() if allowed[row] and row not in picked]
        weights = 1 / (np.arange(len(pool)) + 5.0)
        if size := min(7, len(pool)):
            picked += rng.choice(pool, size, replace=False, p=weights / weights.sum()).tolist()
    others = [row for row in rng.integers(len(allowed), size=30).tolist() if allowed[row] and row not in picked]
    return picked + list(dict.fromkeys(others))[: NUM_CANDIDATES - 1 - len(picked)]


def mine(model: Reranker, tokenizer: Tokenizer, folder: Path, source: Source, out: Path) -> dict[str, np.ndarray]:
    collection = cut(read_collection(folder), source)
    row_of = {name: row for row, name in enumerate(collection.passages)}
    passages = tokens_of(tokenizer, "passage", list(collection.passages.values()), source.max_length)
    queries = tokens_of(tokenizer, "query", list(collection.queries.values()), QUERY_LENGTH)
    (out / "ids.json").write_text(json.dumps({"queries": queries, "passages": passages}))
    dense = encode(model, passages, out / "passages.states")
    asked = encode(model, queries, out / "queries.states")
    match = WordMatch(passages, model.words.numpy(), k1=K1, b=B, mean_length=MEAN_LENGTH)
    cosine, words = asked.vectors @ dense.vectors.T, match.scores(queries)
    close, rng, rows = dense.vectors @ dense.vectors.T > DUPLICATE, np.random.default_rng(0), []
    relevant = [[row_of[name] for name in judged] for judged in collection.qrels.values()]
    rankings = zip(top(cosine, DENSE_DEPTH), top(words, WORDS_DEPTH), strict=True)
    for query, both in enumerate(rankings):
        positive = relevant[query][int(rng.integers(len(relevant[query])))]
        allowed = ~close[positive] & (cosine[query] < cosine[query, positive] + MARGIN[source.written_by_people])
        allowed[relevant[query]] = False
        listed = [positive, *pick(list(both), allowed, rng)]
        rows.append((np.resize(listed, NUM_CANDIDATES), len(listed)))
    candidates, counts = (np.array(column) for column in zip(*rows, strict=True))
    index = np.arange(len(rows))[:, None]
    natural = top(words, NATURAL_DEPTH)
    grades = np.array([np.isin(found, judged) for found, judged in zip(natural, relevant, strict=True)])
    return {
        "candidates": candidates,
        "cosine": cosine[index, candidates],
        "words": words[index, candidates],
        "mask": np.arange(NUM_CANDIDATES) < counts[:, None],
        "natural_rows": natural,
        "natural": np.stack([cosine[index, natural], words[index, natural], grades], -1).astype(np.float32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path, help="folder of the training sets")
    parser.add_argument("encoder", type=Path, help="what prune.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", nargs="*", default=list(SOURCES))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    words = torch.from_numpy(piece_weights(arguments.encoder))
    model, tokenizer = (
        load(str(arguments.encoder), words),
        Tokenizer.from_file(str(arguments.encoder / "tokenizer.json")),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.save(arguments.out / "words.npy", words.numpy())
    for name in arguments.sets:
        source, out = SOURCES[name], arguments.out / name
        if (out / "lists.npz").exists():
            continue  # a run cut short goes on where it stopped
        out.mkdir(exist_ok=True)
        start = time.time()
        lists = mine(model, tokenizer, arguments.train / name, source, out)
        np.savez(out / "lists.npz", **lists)
        shape, found = lists["candidates"].shape, lists["natural"][..., 2].any(1).mean()
        print(name, shape, f"in the first 30: {found:.2f}, {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
