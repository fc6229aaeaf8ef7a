"""First stages beside words and vectors: sparse weights, and late interaction by token vectors.

Both read each passage once and the index keeps what they read. Chen et al. 2024 (BGE-M3); Khattab and Zaharia 2020
(ColBERT); Santhanam et al. 2022 (PLAID), whose centroids choose here what is scored by its own vectors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from secondpass.colbert.colbert import ColBERT
from secondpass.colbert.maxsim import maxsim, unit
from secondpass.embedder import Embedded, Embedder
from secondpass.errors import UnknownModel
from secondpass.search.stores.gathered import Gathered, Parts
from secondpass.search.stores.store import Vectors
from secondpass.search.stores.vectors import greatest

CENTROIDS, PER_ROOT = 4096, 2  # at most, and for each square root of the number of token vectors
SAMPLED, ROUNDS = 32, 6  # token vectors for each centroid, and rounds of k-means
# Only tokens near the question are compared: those of the nearest centroids of each of its tokens, and of this share
# of the centroids, by their best token. Up to so many tokens all are.
ALL_COMPARED, PROBED, SHARE = 200_000, 4, 0.1
BLOCK_TOKENS = 1 << 15  # that are compared at a time: they stay in the cache
_HEAD = 4  # bytes before the rows of a reading of token vectors: the width


def open_retriever(
    stage: str, model: str | ColBERT | Embedder, encoder: object = None, encoder_name: str = ""
) -> SparseRetriever | LateRetriever:
    """The retriever of a stage, "sparse" or "colbert", by the name of its model, or with it.

    encoder: the index's own embedder, which is not opened twice where the model has its name. Raises ValueError
    where the model has no such part.
    """
    if isinstance(encoder, Embedder) and model == encoder_name:
        model = encoder
    if stage == "colbert":
        return LateRetriever(_late(model) if isinstance(model, str) else model)
    if isinstance(model, ColBERT):
        raise ValueError("retrievers: a ColBERT has no sparse weights; give an Embedder, of BGE-M3")
    return SparseRetriever(Embedder(model) if isinstance(model, str) else model)


def _late(name: str) -> ColBERT | Embedder:
    try:
        return ColBERT(name)
    except UnknownModel as refused:  # in neither layout of ColBERT's
        with suppress(UnknownModel):
            return Embedder(name)
        raise refused


class SparseRetriever:
    """Finds texts by their weights of tokens, exactly: the sum over shared tokens of the products."""

    stage = "sparse"
    least = 0.0

    def __init__(self, embedder: Embedder) -> None:
        embedder.check_part("sparse")
        self.source = embedder
        self.name = embedder.info().model
        self.mark = _mark(self.stage, embedder.fingerprint)

    def read(self, passages: Sequence[str]) -> list[bytes]:
        return self.values(self.source.embed(passages, "document", ("sparse",)))

    def values(self, embedded: Embedded) -> list[bytes]:
        """Tokens (int32) and their weights (float16) of each text, ascending."""
        found = []
        for weights in embedded.sparse:
            tokens = np.array(sorted(weights), np.int32)
            said = np.array([weights[token] for token in tokens.tolist()], np.float16)
            found.append(tokens.tobytes() + said.tobytes())
        return found

    def ask(self, query: str) -> Mapping[int, float]:
        return self.source.sparse([query], kind="query")[0]

    def gathered(self, values: Sequence[bytes], num_readings: int) -> Gathered:
        none: Parts = {"tokens": np.empty(0, np.int32), "weights": np.empty(0, np.float32)}
        return Gathered(ids=_NO_IDS, lengths=_NO_IDS, parts=none, learnt={}, learnt_of=0)

    def parts(self, values: Sequence[bytes], learnt: Parts) -> tuple[NDArray[np.int64], Parts]:
        read = [_weights(value) for value in values]
        read = [each if len(each[0]) else _WEIGHTLESS for each in read]  # each has one part or more
        lengths = np.array([len(tokens) for tokens, _ in read], np.int64)
        tokens, weights = (np.concatenate(each) for each in zip(*read, strict=True))
        return lengths, {"tokens": tokens, "weights": weights.astype(np.float32)}

    def nearest(
        self, asked: Mapping[int, float], gathered: Gathered, limit: int, allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        if not len(gathered) or not asked:
            return _NO_IDS
        scores = np.empty(len(gathered), np.float32)
        tokens, weights, starts = gathered.parts["tokens"], gathered.parts["weights"], gathered.starts
        by_token = _by_token(asked)
        for first in range(0, len(gathered), BLOCK_TOKENS):
            begin, stop = starts[first], starts[first + BLOCK_TOKENS] if first + BLOCK_TOKENS < len(starts) else None
            products = np.take(by_token, tokens[begin:stop], mode="clip")
            products *= weights[begin:stop]
            scores[first : first + BLOCK_TOKENS] = np.add.reduceat(
                products, starts[first : first + BLOCK_TOKENS] - begin
            )
        if allowed is not None:
            scores[~allowed] = -np.inf
        return greatest(scores, limit)

    def scores(self, asked: Mapping[int, float], values: Sequence[bytes]) -> list[float]:
        by_token = _by_token(asked)
        read = map(_weights, values)
        return [
            float(np.take(by_token, tokens, mode="clip") @ weights.astype(np.float32)) for tokens, weights in read
        ]


class LateRetriever:
    """Finds texts by late interaction: each token of the question's best token of the text, summed.

    Each token vector is kept as int8, and in memory as the nearest of up to 4,096 centroids: by those the texts are
    chosen that are scored by their vectors. Scores are means over the question's tokens for an Embedder's, sums for
    ColBERT's, as those say them.
    """

    stage = "colbert"
    least = -math.inf

    def __init__(self, model: ColBERT | Embedder) -> None:
        if isinstance(model, Embedder):
            model.check_part("colbert")
        self.source = model
        self.name = model.info().model
        self.mark = _mark(self.stage, model.fingerprint)

    def read(self, passages: Sequence[str]) -> list[bytes]:
        if isinstance(self.source, Embedder):
            return self.values(self.source.embed(passages, "document", ("colbert",)))
        found = self.source.encode(passages)
        return _rows(found.vectors, found.lengths)

    def values(self, embedded: Embedded) -> list[bytes]:
        """Of each text the width, then of each token the vector (int8)."""
        return _rows(embedded.tokens, embedded.lengths)

    def ask(self, query: str) -> Vectors:
        if isinstance(self.source, ColBERT):
            found: Vectors = self.source.encode_queries([query])[0]
            return found
        return self.source.multi_vector([query], kind="query")[0]

    def gathered(self, values: Sequence[bytes], num_readings: int) -> Gathered:
        learnt, learnt_of = {}, 0
        if values:
            vectors = np.concatenate([_vectors(value) for value in values])
            learnt_of = max(1, len(vectors) * num_readings // len(values))
            learnt = {"centroids": _centroids(vectors, min(CENTROIDS, math.ceil(PER_ROOT * math.sqrt(learnt_of))))}
        return Gathered(
            ids=_NO_IDS,
            lengths=_NO_IDS,
            parts={"codes": np.empty(0, np.uint16)},
            learnt=learnt,
            learnt_of=learnt_of,
        )

    def parts(self, values: Sequence[bytes], learnt: Parts) -> tuple[NDArray[np.int64], Parts]:
        read = [_vectors(value) for value in values]
        owners = np.repeat(np.arange(len(read)), [len(each) for each in read])
        codes = _nearest_centroids(np.concatenate(read), learnt["centroids"])
        pairs = np.unique(owners * CENTROIDS + codes)  # a text's centroids, each once
        lengths = np.bincount(pairs // CENTROIDS, minlength=len(read))
        return lengths, {"codes": (pairs % CENTROIDS).astype(np.uint16)}

    def nearest(
        self, asked: Vectors, gathered: Gathered, limit: int, allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        if not len(gathered):
            return _NO_IDS
        codes = gathered.parts["codes"]
        similar = gathered.learnt["centroids"] @ asked.T  # (K, L): a token's row lies together
        is_compared = np.ones(len(codes), np.bool_) if allowed is None else np.repeat(allowed, gathered.lengths)
        if np.count_nonzero(is_compared) > ALL_COMPARED:
            is_compared &= _near(similar)[codes]
        counts = np.add.reduceat(is_compared, gathered.starts, dtype=np.int64)
        compared = codes[is_compared]
        found = np.flatnonzero(counts)
        starts = np.cumsum(counts[found]) - counts[found]
        # in whole numbers of a byte: four times as quick, and it only chooses
        rough = np.rint((similar.clip(-1, 1) + 1) * 127).astype(np.uint8)
        scores = np.empty(len(found), np.float32)
        step = max(1, BLOCK_TOKENS * len(found) // max(1, len(compared)))
        for first in range(0, len(found), step):
            stop = starts[first + step] if first + step < len(found) else len(compared)
            rows = rough[compared[starts[first] : stop]]
            best = np.maximum.reduceat(rows, starts[first : first + step] - starts[first], axis=0)
            scores[first : first + step] = best.sum(axis=1, dtype=np.int64)
        return found[greatest(scores, limit)]

    def scores(self, asked: Vectors, values: Sequence[bytes]) -> list[float]:
        if not values:
            return []
        read = [_vectors(value) for value in values]
        sums = maxsim(asked, np.concatenate(read), np.array([len(each) for each in read], np.int64))
        if isinstance(self.source, Embedder):
            sums = sums / np.float32(len(asked))
        return [float(each) for each in sums]


_NO_IDS: NDArray[np.int64] = np.empty(0, np.int64)
_WEIGHTLESS = np.zeros(1, np.int32), np.zeros(1, np.float16)


def _mark(stage: str, fingerprint: str) -> str:
    return hashlib.sha256(f"1 {stage} {fingerprint}".encode()).hexdigest()[:16]


def _weights(value: bytes) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    count = len(value) // 6
    return np.frombuffer(value, np.int32, count), np.frombuffer(value, np.float16, count, 4 * count)


def _by_token(asked: Mapping[int, float]) -> Vectors:
    """The question's weight of each token; the last one, 0, is that of all beyond."""
    found = np.zeros(max(asked, default=0) + 2, np.float32)
    found[list(asked)] = list(asked.values())
    return found


def _rows(vectors: Vectors, lengths: NDArray[np.int64]) -> list[bytes]:
    """Readings of unit vectors (T, D): in int8, whose length says nothing."""
    greatest = np.abs(vectors).max(axis=1, keepdims=True, initial=1e-12)
    rows = np.rint(vectors * (127 / greatest)).astype(np.int8)
    stops = np.cumsum(lengths)
    head = vectors.shape[1].to_bytes(_HEAD, "little")
    return [head + rows[stop - length : stop].tobytes() for stop, length in zip(stops, lengths, strict=True)]


def _vectors(value: bytes) -> Vectors:
    """Unit vectors (L, D) of a reading."""
    width = int.from_bytes(value[:_HEAD], "little")
    return unit(np.frombuffer(value, np.int8, offset=_HEAD).reshape(-1, width).astype(np.float32))


def _centroids(vectors: Vectors, count: int) -> Vectors:
    """k-means of unit vectors by their cosines (Dhillon and Modha 2001)."""
    generator = np.random.default_rng(0)
    sample = vectors[np.sort(generator.permutation(len(vectors))[: SAMPLED * count])]
    found = sample[np.sort(generator.permutation(len(sample))[:count])]
    for _ in range(ROUNDS):
        nearest = _nearest_centroids(sample, found)
        order = np.argsort(nearest, kind="stable")
        filled, starts = np.unique(nearest[order], return_index=True)
        found = found.copy()
        found[filled] = unit(np.add.reduceat(sample[order], starts, axis=0))
    return found


def _near(similar: Vectors) -> NDArray[np.bool_]:
    """Which centroids (K,) are near a question, by their similarities (K, L) with its tokens."""
    best = similar.max(axis=1)
    is_near: NDArray[np.bool_] = best >= np.quantile(best, 1 - SHARE)
    if len(similar) > PROBED:
        is_near[np.argpartition(-similar, PROBED, axis=0)[:PROBED]] = True
    return is_near


def _nearest_centroids(vectors: Vectors, centroids: Vectors) -> NDArray[np.int64]:
    blocks = range(0, len(vectors), BLOCK_TOKENS // 8)
    nearest = [(vectors[at : at + BLOCK_TOKENS // 8] @ centroids.T).argmax(axis=1) for at in blocks]
    return np.concatenate(nearest) if nearest else _NO_IDS
