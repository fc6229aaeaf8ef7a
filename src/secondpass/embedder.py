"""Embedder: texts to vectors, for the first stage of retrieval.

One dense vector per text; for BGE-M3 also sparse weights by token id, and a vector per token. Reimers and Gurevych
2019 (pooling); Chen et al. 2024 (BGE-M3); Kusupati et al. 2022 (Matryoshka dimensions).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.sentence_transformers import SentenceSettings, read_settings
from secondpass.cognitive import Cognitive
from secondpass.colbert.maxsim import maxsim, unit
from secondpass.engine.engine import EngineFacts, Heads, Vectors
from secondpass.engine.open import open_encoder
from secondpass.public import Opened, check_kind, check_whole, for_each_query, hinted, in_thread
from secondpass.scoring.ranking import RankOptions, log_odds, one_score, ranked, unscored_hit
from secondpass.text.documents import as_documents, clean_query, is_blank, text_of
from secondpass.text.languages import unread, vectors_warning
from secondpass.text.prompts import known_prompts, single_rows
from secondpass.types import DocumentLike, EarlyExit, Info, Progress, Ranking, Row, Usage

__all__ = ["Embedder", "lexical_score"]

logger = logging.getLogger(__name__)

KINDS = ("query", "document")
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last")
# The part of a score -> the encoder's output that it needs, in the order of `weights`.
PARTS = {"dense": "pooled", "sparse": "weights", "colbert": "tokens"}
# What `score` says by its mode, in FlagEmbedding's words -> the parts that are averaged.
MODES: Mapping[str, tuple[str, ...]] = {
    "dense": ("dense",),
    "sparse": ("sparse",),
    "colbert": ("colbert",),
    "sparse+dense": ("dense", "sparse"),
    "colbert+sparse+dense": ("dense", "sparse", "colbert"),
}
# The heads that BGE-M3 has beside its backbone's weights, by the output that they make.
_HEAD_FILES = {"weights": "sparse_linear.pt", "tokens": "colbert_linear.pt"}
# Tokens that say nothing of a text; FlagEmbedding gives them no weight (but <mask> keeps its own).
_WEIGHTLESS = ("<s>", "</s>", "<pad>", "<unk>")
# These normalise over the width before they cut to a smaller dimension.
_LAYER_NORMED = ("nomic_bert",)
MIN_LENGTH = 2  # [CLS] and [SEP]
_NONE: Vectors = np.empty((0, 0), np.float32)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What is known of N texts: vectors (N, C), weights by token id, and unit vectors (T, D) that `lengths` cuts.

    A part that was not asked for is empty.
    """

    dense: Vectors
    sparse: list[dict[int, float]]
    tokens: Vectors
    lengths: NDArray[np.int64]


def lexical_score(query: Mapping[int, float], document: Mapping[int, float]) -> float:
    """The sum over shared token ids of the products of their weights."""
    return sum(weight * document[token] for token, weight in query.items() if token in document)


def _dense_scores(query: Embedded, documents: Embedded) -> Vectors:
    cosines: Vectors = unit(documents.dense) @ unit(query.dense)[0]
    return cosines


def _sparse_scores(query: Embedded, documents: Embedded) -> Vectors:
    return np.array([lexical_score(query.sparse[0], weights) for weights in documents.sparse], np.float32)


def _colbert_scores(query: Embedded, documents: Embedded) -> Vectors:
    """Means over the query's tokens, where ColBERT has sums."""
    sums = maxsim(query.tokens, documents.tokens, documents.lengths)
    means: Vectors = sums / np.float32(len(query.tokens))
    return means


_SCORES: Mapping[str, Callable[[Embedded, Embedded], Vectors]] = {
    "dense": _dense_scores,
    "sparse": _sparse_scores,
    "colbert": _colbert_scores,
}


class Embedder(Opened):
    """Vectors of texts, each read alone; a Scorer by their similarity.

    model: "default" (all-MiniLM-L6-v2, inside the embedded model: English, offline, without torch), a folder in
    Hugging Face layout, or a hub name. Pooling, normalisation, prompts and length are what the
    checkpoint's sentence-transformers files say, and prompts of well-known models come from a table; each can be
    given. prompts: by kind, {"query": ..., "document": ...}. dimension: cut vectors to it, for Matryoshka models.
    mode: what `score` says, one of MODES; None is all that the checkpoint has. weights: of dense, sparse and
    colbert in a combined mode. has_lowered_case: texts in lower case before special tokens are looked for, as
    sentence-transformers before version 6 did where do_lower_case is set; None: after that, as it does since.
    special_tokens: "text", so that "[SEP]" in a text is just letters, or "parse", as the references do.
    Safe to use from several threads. Raises CheckpointError, DownloadError, UnknownModel or MissingExtra.
    """

    @hinted
    def __init__(
        self,
        model: str | Path = "default",
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_length: int | None = None,
        max_query_length: int | None = None,
        pooling: str | None = None,
        is_normalized: bool | None = None,
        prompts: Mapping[str, str] | None = None,
        dimension: int | None = None,
        mode: str | None = None,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        has_lowered_case: bool | None = None,
        token_budget: int | None = None,
        local_files_only: bool = False,
        special_tokens: str = "text",
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        _check_options(pooling, mode, prompts or {}, weights)
        check_whole("token_budget", token_budget, 1)
        self._checkpoint = open_checkpoint(model, revision=revision, local_files_only=local_files_only)
        settings = read_settings(self._checkpoint.folder)
        files = {name: self._checkpoint.folder / file for name, file in _HEAD_FILES.items()}
        files = {name: file for name, file in files.items() if file.is_file()}
        heads = Heads(pooling=pooling or settings.pooling, dense=settings.dense, files=files)
        self._tokenizer = self._checkpoint.tokenizer.reading(special_tokens)
        self._encoder = open_encoder(self._checkpoint, heads, device=device, dtype=dtype, token_budget=token_budget)
        self._model_type = str(self._checkpoint.config.get("model_type"))
        known = known_prompts(self._checkpoint.name, self._model_type)
        self._prompts = {**known, **settings.prompts, **(prompts or {})}
        self._max_lengths = self._pick_lengths(max_length, max_query_length, settings)
        self._is_normalized = settings.is_normalized if is_normalized is None else is_normalized
        self._has_lowered_case = has_lowered_case is True
        if has_lowered_case is None and settings.has_lowered_case:
            self._tokenizer = self._tokenizer.lowered()
        self._dimension = _check_dimension(dimension, self._encoder.current.width)
        self._weights = dict(zip(PARTS, weights, strict=True))
        self._outputs = {"pooled", *files}
        everything = "colbert+sparse+dense" if len(files) == len(_HEAD_FILES) else "dense"
        self._mode = everything if mode is None else mode
        self._check_parts(MODES[self._mode])
        self._has_warned = False

    def encode(self, texts: Iterable[DocumentLike], *, kind: str = "document") -> Vectors:
        """Dense vectors (N, C) of the texts, as a "query" or as a "document", with the model's prompt for it."""
        return self.embed(texts, kind, ("dense",)).dense

    def rows(self, texts: Iterable[DocumentLike], *, kind: str = "document") -> list[Row]:
        """What `encode` reads of the texts, as token ids, for callers that join the rows of several calls."""
        _check_choice("kind", kind, KINDS)
        return self._rows(_texts(texts), kind)

    def encode_rows(self, rows: Sequence[Row]) -> Vectors:
        """Dense vectors (N, C) of `rows`."""
        return self._finished(self._encoder.current.run(rows, ["pooled"])["pooled"] if rows else _NONE)

    def sparse(self, texts: Iterable[DocumentLike], *, kind: str = "document") -> list[dict[int, float]]:
        """Weights above 0 by token id, as BGE-M3 has them. Raises ValueError for a model that has none."""
        return self.embed(texts, kind, ("sparse",)).sparse

    def multi_vector(self, texts: Iterable[DocumentLike], *, kind: str = "document") -> list[Vectors]:
        """Unit vectors (L, D) of each text's tokens but the first, as BGE-M3 has them.

        Raises ValueError for a model that has none.
        """
        found = self.embed(texts, kind, ("colbert",))
        return np.split(found.tokens, np.cumsum(found.lengths)[:-1]) if len(found.lengths) else []

    def embed(self, texts: Iterable[DocumentLike], kind: str, parts: Collection[str]) -> Embedded:
        """Several parts of what is known of texts, "dense", "sparse" and "colbert", in one pass over them."""
        _check_choice("kind", kind, KINDS)
        self._check_parts(parts)
        rows = self._rows(_texts(texts), kind)
        found = self._encoder.current.run(rows, [PARTS[part] for part in parts]) if rows else {}
        lengths = np.array([len(row) - 1 for row in rows], np.int64)
        ids = [row.ids for row in rows]
        is_first = np.zeros(int(lengths.sum()) + len(rows), np.bool_)
        is_first[np.cumsum(lengths + 1) - lengths - 1] = True
        return Embedded(
            dense=self._finished(found.get("pooled", _NONE)),
            sparse=self._weights_by_id(ids, found["weights"][:, 0]) if "weights" in found else [],
            tokens=unit(found["tokens"][~is_first]) if "tokens" in found else _NONE,
            lengths=lengths,
        )

    @hinted
    def rank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        *,
        top_n: int | None = None,
        rank_fields: Sequence[str] | None = None,
        explain: bool = False,
        budget_ms: float | None = None,
        first_scores: Sequence[float] | None = None,
        early_exit: EarlyExit | float | Mapping[int, float] | None = None,
        cognitive: Cognitive | Mapping[str, Any] | bool | None = None,
        progress: Progress | None = None,
    ) -> Ranking:
        """The documents by similarity, best first; equal scores keep their input order.

        A hit's probability is its similarity moved from -1..1 to 0..1: it compares, but is not calibrated. progress
        is called once, with all. explain, budget_ms, first_scores and early_exit are refused.
        """
        started = time.perf_counter()
        options = RankOptions(
            top_n=top_n,
            rank_fields=rank_fields,
            explain=explain,
            budget_ms=budget_ms,
            first_scores=first_scores,
            early_exit=early_exit,
            cognitive=cognitive,
            progress=progress,
        )
        why = "compares whole vectors"
        options.refuse("an embedder", explain=why, budget_ms=why, early_exit=why)
        candidates = as_documents(documents, rank_fields)
        texts = [text_of(document, rank_fields, index) for index, document in enumerate(candidates)]
        scores = self.score(query, texts)
        if progress is not None:
            progress(len(scores), len(scores))
        hits = []
        for i in sorted(range(len(texts)), key=lambda i: (is_blank(texts[i]), -scores[i])):
            read_text = None if rank_fields is None else texts[i]
            hit = unscored_hit(i, candidates[i], read_text)
            if not is_blank(texts[i]):
                hit = replace(hit, score=scores[i], probability=self.probability(scores[i]), is_scored=True)
            hits.append(hit)
        usage = Usage(
            rows=len(scores),
            tokens=0,
            truncated=0,
            seconds=time.perf_counter() - started,
            unscored=sum(not hit.is_scored for hit in hits),
        )
        cleaned = clean_query(query)
        warning = self.unread(cleaned, texts)
        warnings = () if warning is None else (warning,)
        return Ranking(cleaned, ranked(cleaned, hits, options, log_odds), usage, warnings=warnings)

    arank = in_thread(rank)
    rank_many = for_each_query(rank)

    def probability(self, score: float) -> float:
        """A similarity moved from -1..1 to 0..1; not calibrated."""
        return min(max((one_score(score) + 1) / 2, 0.0), 1.0)

    def score(self, query: str, documents: Iterable[DocumentLike], *, mode: str | None = None) -> list[float]:
        """Similarities in input order: cosines, or what `mode` says where BGE-M3 has more; None is as constructed."""
        mode = self._mode if mode is None else mode
        _check_choice("mode", mode, tuple(MODES))
        texts = _texts(documents)
        indices = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        asked = self.embed([clean_query(query)], "query", MODES[mode])
        found = self.embed(list(indices), "document", MODES[mode])
        if not indices:
            return []
        scores = self._combined({part: _SCORES[part](asked, found) for part in MODES[mode]})
        return [float(scores[indices[text]]) for text in texts]

    @property
    def facts(self) -> EngineFacts:
        """What runs it."""
        return self._encoder.facts

    @property
    def fingerprint(self) -> str:
        """Names what the vectors of documents depend on: weights, lengths and prompts."""
        made = (self._max_lengths["document"], self._prompts.get("document", ""), self._has_lowered_case)
        return f"{self._encoder.current.fingerprint} {made} {self._arguments['special_tokens']}"

    def check_part(self, part: str) -> None:
        """Raises ValueError where the model has no such part."""
        self._check_parts((part,))

    def close(self) -> None:
        """Give the memory of the model back; calls after that raise EngineError."""
        self._encoder.close()

    def reopen(self) -> None:
        """Load the model anew, after it failed; may be tried again. The memory of the old one is free before."""
        self._encoder.reopen()

    def unread(self, query: str, documents: Sequence[str] = ()) -> str | None:
        """The warning for texts in a script that the model is known not to read; None otherwise."""
        found = unread(query, documents, self._checkpoint.config.get("scripts"))
        return None if found is None else vectors_warning(found, self._checkpoint.name)

    def info(self) -> Info:
        """What this embedder runs on, and why."""
        return self._encoder.facts.info(
            model=self._checkpoint.name,
            revision=self._checkpoint.revision,
            family=self._model_type,
            max_length=self._max_lengths["document"],
            truncation="end",
        )

    def _rows(self, texts: Sequence[str], kind: str) -> list[Row]:
        if not self._has_warned and (warning := self.unread("", texts)) is not None:
            self._has_warned = True
            logger.warning("%s", warning)
        prompted = [self._prompts.get(kind, "") + text for text in texts]
        if self._has_lowered_case:
            prompted = [text.lower() for text in prompted]
        return single_rows(self._tokenizer, prompted, max_length=self._max_lengths[kind])

    def _finished(self, pooled: Vectors) -> Vectors:
        """Pooled vectors cut and normalised as asked; all of them (0, C) where there are none."""
        if not len(pooled):
            return np.empty((0, self._dimension or self._encoder.current.width), np.float32)
        if self._dimension is None:
            return unit(pooled) if self._is_normalized else pooled
        if self._model_type in _LAYER_NORMED:
            pooled = _layer_normed(pooled)
        return unit(pooled[:, : self._dimension])

    def _weights_by_id(self, rows: Sequence[Sequence[int]], weights: Vectors) -> list[dict[int, float]]:
        """Of each row the greatest weight of every token id."""
        found: list[dict[int, float]] = []
        values = iter(weights.tolist())
        for ids in rows:
            best: dict[int, float] = {}
            for token, weight in zip(ids, values):  # noqa: B905 -- the iterator goes on with the next row
                best[token] = max(weight, best.get(token, 0.0))
            found.append({t: w for t, w in best.items() if w > 0 and t not in self._weightless})
        return found

    @cached_property
    def _weightless(self) -> frozenset[int]:
        found = (self._tokenizer.token_id(token) for token in _WEIGHTLESS)
        return frozenset(token for token in found if token is not None)

    def _combined(self, scores: Mapping[str, Vectors]) -> Vectors:
        """The weighted mean of the parts; one part is itself, whatever its weight."""
        if len(scores) == 1:
            return next(iter(scores.values()))
        total = sum(self._weights[part] for part in scores)
        mean: Vectors = np.sum([self._weights[part] * values for part, values in scores.items()], axis=0) / total
        return mean

    def _check_parts(self, parts: Collection[str]) -> None:
        absent = [part for part in parts if PARTS[part] not in self._outputs]
        if absent:
            raise ValueError(
                f"{self._checkpoint.name} has no {_HEAD_FILES[PARTS[absent[0]]]}, which {absent[0]!r} needs; "
                "BAAI/bge-m3 has"
            )
        if len(parts) > 1 and not sum(self._weights[part] for part in parts):
            raise ValueError(f"weights {tuple(self._weights.values())} leave nothing of {' and '.join(parts)}")

    def _pick_lengths(
        self, max_length: int | None, max_query_length: int | None, settings: SentenceSettings
    ) -> dict[str, int]:
        """The longest row of each kind; what is asked for may be longer than the checkpoint's own choice."""
        known = [self._tokenizer.max_length, self._encoder.facts.max_length]
        longest = min(length for length in known if length is not None)
        usual = min(longest, settings.max_length or longest)
        for name, length in (("max_length", max_length), ("max_query_length", max_query_length)):
            check_kind(name, length, Integral, "a whole number of tokens")
            if length is not None and not MIN_LENGTH <= length <= longest:
                raise ValueError(
                    f"{name} is {length}; {self._checkpoint.name} reads {MIN_LENGTH} to {longest} tokens"
                )
        document = max_length or usual
        return {"query": max_query_length or document, "document": document}


def _texts(documents: Iterable[DocumentLike]) -> list[str]:
    return [text_of(document, None, index) for index, document in enumerate(as_documents(documents))]


def _layer_normed(vectors: Vectors) -> Vectors:
    """Mean 0 and variance 1 over the width, with the epsilon of torch."""
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    normed: Vectors = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + np.float32(1e-5))
    return normed


def _check_options(
    pooling: str | None, mode: str | None, prompts: Mapping[str, str], weights: Sequence[float]
) -> None:
    if pooling is not None:
        _check_choice("pooling", pooling, POOLINGS)
    if mode is not None:
        _check_choice("mode", mode, tuple(MODES))
    for kind in prompts:
        _check_choice("a kind of prompts", kind, KINDS)
    if len(weights) != len(PARTS) or not all(isinstance(w, Real) and math.isfinite(w) and w >= 0 for w in weights):
        raise ValueError(f"weights is {tuple(weights)}; give three of 0 or more, for {', '.join(PARTS)}")


def _check_dimension(dimension: int | None, width: int) -> int | None:
    check_kind("dimension", dimension, Integral, "a whole number, or None for all")
    if dimension is not None and not 1 <= dimension <= width:
        raise ValueError(f"dimension is {dimension}; vectors have {width}")
    return dimension


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; give {' or '.join(map(repr, choices))}")
