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
from secondpass.text.documents import as_document, as_documents, clean_query, text_of
from secondpass.text.reader import Pair, Reader, Reading
from secondpass.text.recipes import recipe_for
from secondpass.text.tokenizer import Tokenizer
from secondpass.types import Document, DocumentLike, Hit, Ranking, Run, Usage

LONG_DOCUMENTS = ("truncate", "chunk")
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


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Readings with their scores, one list per output of the model, and the best reading of each pair by output."""

    readings: list[Reading]
    outputs: list[list[float]]

    def of(self, pairs: Sequence[Pair], output: int = 0) -> list[float]:
        """Each pair's score, which is that of its best reading."""
        scores, best = self.outputs[output], self.best(output)
        return [scores[best[pair]] for pair in pairs]

    def best(self, output: int = 0) -> dict[Pair, int]:
        """For each pair the place of its best reading; the first of equals."""
        scores = self.outputs[output]
        best: dict[Pair, int] = {}
        for place, reading in enumerate(self.readings):
            if reading.pair not in best or scores[place] > scores[best[reading.pair]]:
                best[reading.pair] = place
        return best


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
        if long_documents not in LONG_DOCUMENTS:
            raise ValueError(f"long_documents is {long_documents!r}; give {' or '.join(map(repr, LONG_DOCUMENTS))}")
        self._checkpoint = open_checkpoint(
            model, revision=revision, local_files_only=local_files_only, graph=engine == "openvino"
        )
        recipe = recipe_for(self._checkpoint.config, self._checkpoint.name).instructed(instruction)
        tokenizer = Tokenizer.from_folder(self._checkpoint.folder)
        self._engine: Engine = open_engine(
            self._checkpoint, tokenizer, engine=engine, device=device, dtype=dtype, token_budget=token_budget
        )
        self._run = _changed(Run(), cutoff_layer, compress_ratio, compress_layers)
        self._engine.run([], self._run)  # refuses at once what the model does not have
        known = (recipe.max_length, tokenizer.max_length, self._engine.max_length)
        self._reader = Reader(
            recipe=recipe,
            tokenizer=tokenizer,
            longest=min(length for length in known if length is not None),
            max_query_length=max_query_length,
            has_windows=long_documents == "chunk",
        )
        named = named_length(self._checkpoint.folder) or recipe.default_length or self._reader.longest
        usual = min(named, self._reader.longest)
        self._limits = self._reader.limits(
            usual if max_length is None else max_length, recipe.truncation if truncation is None else truncation
        )

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
        query = clean_query(query)
        candidates = as_documents(documents)
        pairs = [(query, text_of(document, rank_fields, index)) for index, document in enumerate(candidates)]
        readings = self._reader.read(pairs, self._limits)
        tokenized = time.perf_counter()
        scored = self._score(readings, self._run, progress)
        best, scores = scored.best(), scored.outputs[0]
        order = sorted(range(len(pairs)), key=lambda i: -scores[best[pairs[i]]])
        hits = [
            self._hit((i, rank), candidates[i], readings[best[pairs[i]]], scores[best[pairs[i]]], explain=explain)
            for rank, i in enumerate(order[:top_n])
        ]
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
        limits = self._reader.limits(
            self._limits.max_length if max_length is None else max_length,
            self._limits.truncation if truncation is None else truncation,
        )
        run = _changed(self._run, cutoff_layer, compress_ratio, compress_layers)
        keys = [_check_pair(pair, index) for index, pair in enumerate(pairs)]
        return self._score(self._reader.read(keys, limits), run, progress).of(keys)

    def score_layers(
        self, query: str, documents: Iterable[DocumentLike], layers: Iterable[int]
    ) -> dict[int, list[float]]:
        """Raw logits in input order for each of the layers, at the cost of the highest alone.

        For a layer-wise model; gemma2-lightweight reads the lowest layer with its first head, as its reference does.
        """
        cutoffs = tuple(sorted(set(layers)))
        keys = [_check_pair((query, document), index) for index, document in enumerate(as_documents(documents))]
        readings = self._reader.read(keys, self._limits)
        scored = self._score(readings, replace(self._run, cutoff_layers=cutoffs), None)
        return {layer: scored.of(keys, place) for place, layer in enumerate(cutoffs)}

    def info(self) -> Info:
        """What this reranker runs on, and why."""
        return Info(
            model=self._checkpoint.name,
            revision=self._checkpoint.revision,
            family=self._reader.recipe.family,
            engine=self._engine.name,
            device=self._engine.device,
            dtype=self._engine.dtype,
            reason=self._engine.reason,
            max_length=self._limits.max_length,
            truncation=self._limits.truncation,
        )

    def probability(self, score: float) -> float:
        """A raw logit as a probability in 0..1, by the family's activation."""
        x = score - self._reader.recipe.midpoint
        return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

    def _score(self, readings: list[Reading], run: Run, progress: Progress | None) -> Scored:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            if progress is not None:
                progress(done, len(readings))

        scores = self._engine.run([reading.row for reading in readings], run, count)
        return Scored(readings=readings, outputs=scores.T.tolist())

    def _hit(
        self, place: tuple[int, int], document: Document, reading: Reading, score: float, *, explain: bool
    ) -> Hit:
        index, rank = place
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


def _changed(
    run: Run, cutoff_layer: int | None, compress_ratio: int | None, compress_layers: Sequence[int] | None
) -> Run:
    """`run` with the options that are given."""
    return Run(
        cutoff_layers=run.cutoff_layers if cutoff_layer is None else (cutoff_layer,),
        compress_ratio=run.compress_ratio if compress_ratio is None else compress_ratio,
        compress_layers=run.compress_layers if compress_layers is None else tuple(compress_layers),
    )


def _check_pair(pair: tuple[str, DocumentLike], index: int) -> tuple[str, str]:
    if isinstance(pair, str) or len(pair) != 2:
        raise TypeError(f"pairs[{index}] is not a (query, document) pair")
    query, document = pair
    return clean_query(query), text_of(as_document(document, index), None, index)
