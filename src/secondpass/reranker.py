"""Reranker: a query and candidates in, a ranking out.

Here are only texts and numbers. Documents become texts, texts become rows (text/), rows become logits (engine/),
logits become a Ranking.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from secondpass.checkpoint.files import open_checkpoint
from secondpass.checkpoint.sentence import named_length
from secondpass.engine.engine import Engine, open_engine
from secondpass.text.chunks import windows
from secondpass.text.documents import as_document, as_documents, clean_query, text_of
from secondpass.text.recipe import TRUNCATIONS, Limits, Recipe
from secondpass.text.recipes import recipe_for
from secondpass.text.tokenizer import Tokenizer
from secondpass.types import Document, DocumentLike, Hit, Ranking, Row, Run, Usage

LONG_DOCUMENTS = ("truncate", "chunk")
# Windows over a long document share this part of their length with the next one.
OVERLAP = 1 / 8

Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True, kw_only=True)
class Info:
    """What a reranker runs on; readable as attributes or as a mapping."""

    model: str
    revision: str | None
    family: str
    engine: str
    device: str
    dtype: str
    reason: str
    max_length: int
    truncation: str

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> list[str]:
        return [field.name for field in fields(self)]


@dataclass(frozen=True, slots=True)
class Reading:
    """One row of a document: all of it, or the window `span` of its characters."""

    text: int
    span: tuple[int, int] | None
    row: Row


class Reranker:
    """Reads a query and each candidate together and keeps the best few.

    model: "default" (embedded, offline), a folder in Hugging Face layout, or a hub name, pinned by `revision`.
    truncation: None (the family's rule), "longest_first" or "only_second" (FlagEmbedding's).
    long_documents: "truncate" (exactly the reference's rule) or "chunk" (overlapping windows, the best one wins).
    Safe to use from several threads. Raises CheckpointError, DownloadError, UnknownModel or MissingExtra.
    """

    def __init__(
        self,
        model: str | Path = "default",
        *,
        revision: str | None = None,
        engine: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        max_length: int | None = None,
        max_query_length: int | None = None,
        truncation: str | None = None,
        long_documents: str = "truncate",
        instruction: str | None = None,
        token_budget: int | None = None,
        local_files_only: bool = False,
        cutoff_layer: int | None = None,
        compress_ratio: int | None = None,
        compress_layers: Sequence[int] | None = None,
    ) -> None:
        _check_choice("long_documents", long_documents, LONG_DOCUMENTS)
        self._checkpoint = open_checkpoint(
            model, revision=revision, local_files_only=local_files_only, graph=engine == "openvino"
        )
        self._recipe: Recipe = recipe_for(self._checkpoint.config, self._checkpoint.name).instructed(instruction)
        self._tokenizer = Tokenizer.from_folder(self._checkpoint.folder)
        self._engine: Engine = open_engine(
            self._checkpoint, engine=engine, device=device, dtype=dtype, token_budget=token_budget
        )
        self._run = Run(
            cutoff_layers=None if cutoff_layer is None else (cutoff_layer,),
            compress_ratio=compress_ratio,
            compress_layers=None if compress_layers is None else tuple(compress_layers),
        )
        self._engine.run([], self._run)  # refuses at once what the model does not have
        self._chunks = long_documents == "chunk"
        self._max_query_length = max_query_length
        known = [self._recipe.max_length, self._tokenizer.max_length, self._engine.max_length]
        self._longest = min(length for length in known if length is not None)
        named = named_length(self._checkpoint.folder) or self._recipe.default_length
        usual = min(self._longest, named or self._longest)
        longest = usual if max_length is None else max_length
        self._limits = self._limits_of(longest, truncation or self._recipe.truncation)

    def rank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        *,
        top_n: int | None = None,
        rank_fields: Sequence[str] | None = None,
        explain: bool = False,
        progress: Progress | None = None,
    ) -> Ranking:
        """The documents, best first; equal scores keep their input order. No documents give an empty ranking.

        rank_fields names the fields of a mapping that are read, written as `name: value` lines in that order;
        without it the field "text" is. explain fills `Hit.parts` with tokens read and cut. progress is called
        with (rows done, rows in all).
        """
        started = time.perf_counter()
        if top_n is not None and top_n < 1:
            raise ValueError(f"top_n is {top_n}; give 1 or more, or None for all")
        candidates = as_documents(documents)
        texts = [text_of(document, rank_fields, index) for index, document in enumerate(candidates)]
        unique = list(dict.fromkeys(texts))
        readings = self._read(clean_query(query), unique, self._limits)
        tokenized = time.perf_counter()
        scores = self._score([reading.row for reading in readings], self._run, progress)[0]
        best = _best_readings(readings, scores)
        place = {text: index for index, text in enumerate(unique)}
        winners = [best[place[text]] for text in texts]
        order = sorted(range(len(texts)), key=lambda i: -scores[winners[i]])
        hits = (
            self._hit(i, rank, candidates[i], readings[winners[i]], scores[winners[i]], explain)
            for rank, i in enumerate(order[:top_n])
        )
        usage = Usage(
            rows=len(readings),
            tokens=sum(len(reading.row) for reading in readings),
            truncated=sum(any(reading.row.cut) for reading in readings),
            seconds=time.perf_counter() - started,
            tokenize_seconds=tokenized - started,
        )
        return Ranking(query, tuple(hits), usage)

    async def arank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        *,
        top_n: int | None = None,
        rank_fields: Sequence[str] | None = None,
        explain: bool = False,
    ) -> Ranking:
        """`rank` for asyncio: computed in a thread, so that the loop goes on."""
        return await asyncio.to_thread(
            self.rank, query, documents, top_n=top_n, rank_fields=rank_fields, explain=explain
        )

    def score(
        self,
        query: str,
        documents: Sequence[DocumentLike],
        *,
        max_length: int | None = None,
        truncation: str | None = None,
        cutoff_layer: int | None = None,
        compress_ratio: int | None = None,
        compress_layers: Sequence[int] | None = None,
    ) -> list[float]:
        """Raw logits in input order. An option that is None is as constructed."""
        return self.score_pairs(
            [(query, document) for document in as_documents(documents)],
            max_length=max_length,
            truncation=truncation,
            cutoff_layer=cutoff_layer,
            compress_ratio=compress_ratio,
            compress_layers=compress_layers,
        )

    def score_pairs(
        self,
        pairs: Iterable[tuple[str, DocumentLike]],
        *,
        max_length: int | None = None,
        truncation: str | None = None,
        cutoff_layer: int | None = None,
        compress_ratio: int | None = None,
        compress_layers: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> list[float]:
        """Raw logits of (query, document) pairs in input order, many queries in one packed run."""
        limits = self._limits_of(max_length, truncation)
        run = Run(
            cutoff_layers=self._run.cutoff_layers if cutoff_layer is None else (cutoff_layer,),
            compress_ratio=self._run.compress_ratio if compress_ratio is None else compress_ratio,
            compress_layers=self._run.compress_layers if compress_layers is None else tuple(compress_layers),
        )
        keys = [_check_pair(pair, index) for index, pair in enumerate(pairs)]
        return self._score_keys(keys, limits, run, progress)[0]

    def score_layers(
        self, query: str, documents: Iterable[DocumentLike], layers: Iterable[int]
    ) -> dict[int, list[float]]:
        """Raw logits in input order for each of the layers, at the cost of the highest alone.

        For a layer-wise model; gemma2-lightweight reads the lowest layer with its first head, as its reference does.
        """
        cutoffs = tuple(sorted(set(layers)))
        keys = [_check_pair((query, document), index) for index, document in enumerate(as_documents(documents))]
        outputs = self._score_keys(keys, self._limits, replace(self._run, cutoff_layers=cutoffs), None)
        return dict(zip(cutoffs, outputs, strict=True))

    def _score_keys(
        self, keys: Sequence[tuple[str, str]], limits: Limits, run: Run, progress: Progress | None
    ) -> list[list[float]]:
        """For each output of the model the logits of the (query, text) pairs."""
        by_query: dict[str, list[str]] = {}
        for query, text in dict.fromkeys(keys):
            by_query.setdefault(query, []).append(text)
        readings: list[Reading] = []
        places: dict[tuple[str, str], int] = {}
        for query, texts in by_query.items():
            start = len(places)
            readings += [replace(r, text=start + r.text) for r in self._read(query, texts, limits)]
            places.update({(query, text): start + i for i, text in enumerate(texts)})
        outputs = self._score([reading.row for reading in readings], run, progress)
        winners = [_best_readings(readings, scores) for scores in outputs]
        return [[s[best[places[key]]] for key in keys] for s, best in zip(outputs, winners, strict=True)]

    def info(self) -> Info:
        """What this reranker runs on, and why."""
        return Info(
            model=self._checkpoint.name,
            revision=self._checkpoint.revision,
            family=self._recipe.family,
            engine=self._engine.name,
            device=self._engine.device,
            dtype=self._engine.dtype,
            reason=self._engine.reason,
            max_length=self._limits.max_length,
            truncation=self._limits.truncation,
        )

    def probability(self, score: float) -> float:
        """A raw logit as a probability in 0..1, by the family's activation."""
        x = score - self._recipe.midpoint
        return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

    def _limits_of(self, max_length: int | None, truncation: str | None) -> Limits:
        length = self._limits.max_length if max_length is None else max_length
        rule = self._limits.truncation if truncation is None else truncation
        _check_choice("truncation", rule, tuple(TRUNCATIONS))
        if not 1 <= length <= self._longest:
            raise ValueError(f"max_length is {length}; {self._checkpoint.name} reads 1 to {self._longest} tokens")
        return Limits(max_length=length, max_query_length=self._max_query_length, truncation=rule)

    def _read(self, query: str, texts: Sequence[str], limits: Limits) -> list[Reading]:
        """Rows of the texts, in order; several for a text that is read in windows."""
        rows = self._recipe.rows(self._tokenizer, query, texts, limits)
        room = self._recipe.room(self._tokenizer, query, limits) if self._chunks else 0
        readings: list[Reading] = []
        for index, row in enumerate(rows):
            if not room or not row.cut[1]:
                readings.append(Reading(index, (0, len(texts[index])) if self._chunks else None, row))
                continue
            spans = windows(texts[index], self._tokenizer, max_tokens=room, overlap=int(room * OVERLAP))
            parts = [texts[index][start:end] for start, end in spans]
            found = self._recipe.rows(self._tokenizer, query, parts, limits)
            readings += [Reading(index, span, part) for span, part in zip(spans, found, strict=True)]
        return readings

    def _score(self, rows: Sequence[Row], run: Run, progress: Progress | None) -> list[list[float]]:
        """For each output of the model the logits of the rows."""
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            if progress is not None:
                progress(done, len(rows))

        outputs: list[list[float]] = self._engine.run(rows, run, count).T.tolist()
        return outputs

    def _hit(self, index: int, rank: int, document: Document, reading: Reading, score: float, explain: bool) -> Hit:
        row = reading.row
        parts = {"tokens": len(row), "query_tokens_cut": row.cut[0], "passage_tokens_cut": row.cut[1]}
        return Hit(
            index=index,
            document=document,
            score=score,
            probability=self.probability(score),
            rank=rank,
            span=reading.span,
            parts=parts if explain else None,
        )


def _check_pair(pair: tuple[str, DocumentLike], index: int) -> tuple[str, str]:
    if isinstance(pair, str) or len(pair) != 2:
        raise TypeError(f"pairs[{index}] is not a (query, document) pair")
    query, document = pair
    return clean_query(query), text_of(as_document(document, index), None, index)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; give {' or '.join(map(repr, choices))}")


def _best_readings(readings: Sequence[Reading], scores: Sequence[float]) -> dict[int, int]:
    """For each text the place of its best reading; the first of equals."""
    best: dict[int, int] = {}
    for place, reading in enumerate(readings):
        if reading.text not in best or scores[place] > scores[best[reading.text]]:
            best[reading.text] = place
    return best
