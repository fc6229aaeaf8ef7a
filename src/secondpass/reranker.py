"""Reranker: a query and candidates in, a ranking out.

Here are only texts and numbers. Documents become texts, texts become rows (text/), rows become logits (engine/),
logits become a Ranking.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.calibration import Calibration, as_calibration
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.engine.engine import Engine, open_engine
from secondpass.scoring.deadline import Deadline, Pace, score_within, work_of
from secondpass.scoring.scoring import Scored, Scoring
from secondpass.text.documents import as_document, as_documents, clean_query, text_of
from secondpass.text.reader import Reader
from secondpass.text.recipe import Limits
from secondpass.threads import in_thread
from secondpass.types import Document, DocumentLike, EarlyExit, Hit, Progress, Ranking, Run

if TYPE_CHECKING:
    from secondpass.cascade import Cascade

LONG_DOCUMENTS = ("truncate", "chunk")


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
class Parts:
    """How a reranker reads: `reader.read(pairs, limits)` gives rows, which `engine.run(rows, run)` scores."""

    reader: Reader
    limits: Limits
    run: Run


class Reranker:
    """Reads a query and each candidate together and keeps the best few.

    model: "default" (embedded, English, offline), "multilingual" (of the package secondpass-multilingual), a folder
    in Hugging Face layout, or a hub name, pinned by `revision`.
    truncation: None (the family's rule), "longest_first" or "only_second" (FlagEmbedding's).
    long_documents: "truncate" (exactly the reference's rule) or "chunk" (overlapping windows, the best one wins).
    score_cache: a file in which scores are kept, so that a second run over the same pairs computes only what is new.
    calibration: a Calibration, or the file of one: `probability` is then its fitted map; scores stay raw logits.
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
        score_cache: str | Path | None = None,
        calibration: Calibration | str | Path | None = None,
    ) -> None:
        if long_documents not in LONG_DOCUMENTS:
            raise ValueError(f"long_documents is {long_documents!r}; give {' or '.join(map(repr, LONG_DOCUMENTS))}")
        self._calibration = as_calibration(calibration)
        self._checkpoint = open_checkpoint(
            model, revision=revision, local_files_only=local_files_only, graph=engine == "openvino"
        )
        recipe = self._checkpoint.recipe.instructed(instruction)
        tokenizer = self._checkpoint.tokenizer
        self._open_engine = partial(
            open_engine,
            self._checkpoint,
            engine=engine,
            device=device,
            dtype=dtype,
            token_budget=token_budget,
            score_cache=score_cache,
        )
        self._engine: Engine = self._open_engine()
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
        named = self._checkpoint.usual_length or recipe.default_length or self._reader.longest
        usual = min(named, self._reader.longest)
        self._limits = self._reader.limits(
            usual if max_length is None else max_length, recipe.truncation if truncation is None else truncation
        )
        self._scoring = Scoring(reader=self._reader, engine=self._engine)
        self._pace = Pace()

    @classmethod
    def cascade(cls, small: str | Path, large: str | Path, *, keep: int = 20, **options: Any) -> Cascade:
        """A small model for all candidates, a large one for the first `keep`; options are Reranker's, for both."""
        from secondpass.cascade import Cascade

        return Cascade(small=cls(small, **options), large=cls(large, **options), keep=keep)

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
        progress: Progress | None = None,
    ) -> Ranking:
        """The documents, best first; equal scores keep their input order. No documents give an empty ranking.

        rank_fields names the fields of a mapping that are read, written as `name: value` lines in that order;
        without it the field "text" is. explain fills `Hit.parts` with tokens read and cut. progress is called
        with (rows done, rows in all).

        budget_ms is the time that the call may take: documents are scored in their order, or by first_scores (the
        first stage's, higher is better), until it is over. What is then unscored follows below in that order, with
        `is_scored` False. `warm_up` lets the first such call know how fast this machine is.

        early_exit lets documents leave a layer-wise model once they can no longer be among the first top_n: how much
        a score may still change until the last layer, or that for each layer; see EarlyExit, and `exit_bounds`, which
        measures it. `parts["layer"]` is then the layer that a hit's score is from; later layers stand first.
        """
        started = time.perf_counter()
        if top_n is not None and top_n < 1:
            raise ValueError(f"top_n is {top_n}; give 1 or more, or None for all")
        query = clean_query(query)
        candidates = as_documents(documents)
        pairs = [(query, text_of(document, rank_fields, index)) for index, document in enumerate(candidates)]
        first = _first_order(first_scores, len(pairs))
        run = self._exiting(early_exit, top_n, budget_ms)
        if budget_ms is None:
            scored = self._scoring.score(pairs, self._limits, run, progress)
        else:
            deadline = Deadline.after(started, budget_ms, len(pairs), self._pace)
            scored = score_within(self._scoring, [pairs[i] for i in first], self._limits, run, deadline)
        best = scored.best()
        order = sorted(
            first if budget_ms is not None else range(len(pairs)), key=lambda i: scored.place_of(pairs[i], best)
        )
        hits = [
            self._hit((i, rank), candidates[i], scored, best.get(pairs[i]), explain=explain)
            for rank, i in enumerate(order[:top_n])
        ]
        unscored = sum(pair not in best for pair in pairs)
        return Ranking(query, tuple(hits), scored.usage(time.perf_counter() - started, unscored))

    def warm_up(self) -> None:
        """Run batches of several sizes, so that the next call is not the first and `budget_ms` knows the pace."""
        for count in (1, 2, 4, 8, 16):
            readings = self._reader.read([(f"{place} " * 8, "warm " * 64) for place in range(count)], self._limits)
            for turn in range(4):
                started = time.perf_counter()
                self._scoring.run(Scored(), readings, self._run)
                if turn > 0:
                    self._pace.learn(work_of(readings), time.perf_counter() - started)

    arank = in_thread(rank)

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
        return self._scoring.score(keys, limits, run, progress).of(keys)

    def score_layers(
        self, query: str, documents: Iterable[DocumentLike], layers: Iterable[int]
    ) -> dict[int, list[float]]:
        """Raw logits in input order for each of the layers, at the cost of the highest alone.

        For a layer-wise model; gemma2-lightweight reads the lowest layer with its first head, as its reference does.
        """
        cutoffs = tuple(sorted(set(layers)))
        keys = [_check_pair((query, document), index) for index, document in enumerate(as_documents(documents))]
        scored = self._scoring.score(keys, self._limits, replace(self._run, cutoff_layers=cutoffs))
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

    @property
    def parts(self) -> Parts:
        """What writes rows, for callers that join the rows of several calls."""
        return Parts(reader=self._reader, limits=self._limits, run=self._run)

    @property
    def engine(self) -> Engine:
        """What scores rows."""
        return self._engine

    def reopen_engine(self) -> Engine:
        """Load the engine anew, after it failed. The old one's memory is free first, so calls meanwhile fail."""
        del self._engine, self._scoring
        self._engine = self._open_engine()
        self._scoring = Scoring(reader=self._reader, engine=self._engine)
        return self._engine

    def probability(self, score: float) -> float:
        """A raw logit as a probability in 0..1, by the given calibration, else by the family's activation."""
        if self._calibration is not None:
            return self._calibration.probability(score)
        x = score - self._reader.recipe.midpoint
        return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

    def _exiting(
        self, early_exit: EarlyExit | float | Mapping[int, float] | None, top_n: int | None, budget_ms: float | None
    ) -> Run:
        """How the model is run. Raises ValueError for what early exit cannot be combined with."""
        if early_exit is None:
            return self._run
        if budget_ms is not None:
            raise ValueError("early_exit compares all documents, budget_ms may not score them all; give one of them")
        if self._reader.has_windows:
            raise ValueError("early_exit reads a document once; open the model with long_documents='truncate'")
        asked = early_exit if isinstance(early_exit, EarlyExit) else EarlyExit(early_exit)
        return replace(self._run, early_exit=replace(asked, top_n=asked.top_n or top_n))

    def _hit(
        self, place: tuple[int, int], document: Document, scored: Scored, best: int | None, *, explain: bool
    ) -> Hit:
        index, rank = place
        if best is None:
            return Hit(index=index, document=document, score=nan, probability=nan, rank=rank, is_scored=False)
        read, (score, *layer) = scored.reads[best], (each[best] for each in scored.outputs)
        parts = {"layer": int(layer[0])} if layer else {}
        if explain:
            parts |= {"tokens": read.length, "query_tokens_cut": read.cut[0], "passage_tokens_cut": read.cut[1]}
        return Hit(
            index=index,
            document=document,
            score=score,
            probability=self.probability(score),
            rank=rank,
            span=read.span,
            parts=parts or None,
        )


def _first_order(scores: Sequence[float] | None, num_documents: int) -> list[int]:
    """The documents' places by the first stage's scores, best first; their own order without scores."""
    if scores is None:
        return list(range(num_documents))
    if len(scores) != num_documents:
        raise ValueError(f"first_scores has {len(scores)} scores for {num_documents} documents; give one for each")
    return sorted(range(num_documents), key=lambda i: -scores[i])


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
