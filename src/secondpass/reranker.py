"""Reranker: a query and candidates in, a ranking out.

Here are only texts and numbers. Documents become texts, texts become rows (text/), rows become logits (engine/),
logits become a Ranking (scoring/).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from secondpass.calibration import Calibration
from secondpass.cognitive import Cognitive
from secondpass.public import Opened, check_lists, hinted, in_thread
from secondpass.scoring.open import ModelOptions, changed, open_scoring
from secondpass.scoring.ranking import RankOptions, one_score
from secondpass.scoring.scoring import part_of
from secondpass.text.documents import as_documents, check_pair
from secondpass.text.reader import Pair
from secondpass.types import DocumentLike, EarlyExit, Info, Progress, Ranking


class Reranker(Opened):
    """Reads a query and each candidate together and keeps the best few.

    model: "auto", "default" (embedded, English, offline), "multilingual" (of the package secondpass-multilingual), a
    folder in Hugging Face layout, or a hub name, pinned by `revision`.
    "auto" is "default", and where secondpass-multilingual is installed, "multilingual" for a query that is not in
    English or most of whose passages are not, as far as that can be told, or one of whose passages is not in Latin
    script: one model reads all passages of a query, and `Ranking.info` says which. It is opened when first needed, or
    by `warm_up`. With a calibration, which is of one model, "auto" is "default".
    truncation: None (the family's rule), "longest_first" or "only_second" (FlagEmbedding's).
    long_documents: "truncate" (exactly the reference's rule) or "chunk" (overlapping windows, the best one wins).
    score_cache: a file in which scores are kept, so that a second run over the same pairs computes only what is new.
    calibration: a Calibration, or the file of one: `probability` is then its fitted map; scores stay raw logits.
    special_tokens: "text", so that "[SEP]" in a document is just letters, or "parse", as the references do.
    passage_cache_bytes: the memory in which the embedded model keeps what it read of passages, so that another
    query over the same ones costs a fraction; None is 48 MiB, 0 keeps nothing.
    Pickles open the model anew. `close`, or `with`, gives its memory back.
    Safe to use from several threads. Raises CheckpointError, DownloadError, UnknownModel or MissingExtra.
    """

    @hinted
    def __init__(
        self,
        model: str | Path = "auto",
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
        special_tokens: str = "text",
        passage_cache_bytes: int | None = None,
    ) -> None:
        self._options = ModelOptions(
            model=model,
            revision=revision,
            engine=engine,
            device=device,
            dtype=dtype,
            max_length=max_length,
            max_query_length=max_query_length,
            truncation=truncation,
            long_documents=long_documents,
            instruction=instruction,
            token_budget=token_budget,
            local_files_only=local_files_only,
            cutoff_layer=cutoff_layer,
            compress_ratio=compress_ratio,
            compress_layers=compress_layers,
            score_cache=score_cache,
            calibration=calibration,
            special_tokens=special_tokens,
            passage_cache_bytes=passage_cache_bytes,
        )
        self._scoring = open_scoring(self._options)

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
        """The documents, best first; equal scores keep their input order. No documents give an empty ranking.

        rank_fields names the fields of a mapping that are read, written as `name: value` lines in that order;
        without it the field "text" is. explain fills `Hit.parts` with tokens read and cut. progress is called
        with (rows done, rows in all).

        budget_ms is the time that the call may take: documents are scored in their order, or by first_scores (the
        first stage's, higher is better), until it is over. What is then unscored follows below in that order, with
        `is_scored` False. The first document is scored in any case. How fast this machine is, is learned from every
        call; `warm_up` lets the first one know.

        early_exit lets documents leave a layer-wise model once they can no longer be among the first top_n: how much
        a score may still change until the last layer, or that for each layer; see EarlyExit, and `exit_bounds`, which
        measures it. `parts["layer"]` is then the layer that a hit's score is from; later layers stand first.

        cognitive adds what is known of the documents by their fields `created`, `accessed`, `confidence`, `entities`
        and others to their relevance, as bounded evidence; True is its defaults. See secondpass.cognitive.
        """
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
        return self.rank_with(query, documents, options)

    arank = in_thread(rank)

    def rank_with(self, query: str, documents: Iterable[DocumentLike], options: RankOptions) -> Ranking:
        """`rank`, with its keywords as one value."""
        return self._scoring.rank(query, documents, options)

    @hinted
    def rank_many(
        self,
        queries: Sequence[str],
        documents: Sequence[Iterable[DocumentLike]],
        *,
        top_n: int | None = None,
        rank_fields: Sequence[str] | None = None,
        explain: bool = False,
        cognitive: Cognitive | Mapping[str, Any] | bool | None = None,
        progress: Progress | None = None,
    ) -> list[Ranking]:
        """A ranking for each query and its list of documents, all scored together; options as of `rank`."""
        check_lists(queries, documents)
        options = RankOptions(
            top_n=top_n, rank_fields=rank_fields, explain=explain, cognitive=cognitive, progress=progress
        )
        return self._scoring.rank_many(queries, documents, options)

    def warm_up(self) -> None:
        """Run batches of several sizes, so that the next call is not the first and `budget_ms` knows the pace."""
        self._scoring.warm_up()

    def store_passages(self, documents: Iterable[DocumentLike]) -> bool:
        """Read passages before they are asked about, so that the first query costs no more than later ones.

        They are kept in memory, the least lately used forgotten first; see `passage_cache_bytes`. Scores are the same
        with it and without. False, and nothing done, for a model that reads query and passage together.
        """
        if not self._scoring.engine.facts.keeps_passages:
            return False
        self.score_pairs([("", document) for document in as_documents(documents)])
        return True

    @property
    def states_mark(self) -> str | None:
        """Names what the states of passages depend on: model, precision, processor; None where there are none."""
        engine = self._scoring.passage_engine
        return None if engine is None else engine.states_mark

    def states(self, passages: Sequence[str]) -> list[bytes]:
        """What is read of passages, to be kept on disk: of 180 tokens some 140 kB. Empty for what is not read.

        Raises ValueError for a model that reads query and passage together.
        """
        return self._scoring.states(passages)

    def keep_states(self, states: Iterable[bytes]) -> None:
        """Have states of passages at hand, as `states` of this `states_mark` gave them. Scores stay the same."""
        if (engine := self._scoring.passage_engine) is not None:
            engine.keep(states)

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
        if not isinstance(pairs, Iterable):
            raise TypeError(f"pairs is a {type(pairs).__name__}; give a list of (query, document) pairs")
        keys = [check_pair(pair, index) for index, pair in enumerate(pairs)]
        scores: dict[Pair, float] = {}
        for scoring, part in self._scoring.split(keys):
            limits = scoring.reader.limits(
                scoring.limits.max_length if max_length is None else max_length,
                scoring.limits.truncation if truncation is None else truncation,
            )
            run = changed(scoring.run, cutoff_layer, compress_ratio, compress_layers)
            told = part_of(progress, len(scores), len(set(keys)) - len(scores) - len(set(part)))
            found = scoring.score(part, limits=limits, run=run, progress=told).of(part)
            scores |= zip(part, found, strict=True)
        return [scores[key] for key in keys]

    def score_layers(
        self, query: str, documents: Iterable[DocumentLike], layers: Iterable[int]
    ) -> dict[int, list[float]]:
        """Raw logits in input order for each of the layers, at the cost of the highest alone.

        For a layer-wise model; gemma2-lightweight reads the lowest layer with its first head, as its reference does.
        """
        cutoffs = tuple(sorted(set(layers)))
        keys = [check_pair((query, document), index) for index, document in enumerate(as_documents(documents))]
        scored = self._scoring.score(keys, run=replace(self._scoring.run, cutoff_layers=cutoffs))
        return {layer: scored.of(keys, output) for output, layer in enumerate(cutoffs)}

    def unread(self, query: str) -> str | None:
        """The warning that a ranking for this query would carry, where its script cannot be read; None otherwise."""
        return self._scoring.warning(query)

    def info(self) -> Info:
        """What this reranker runs on, and why."""
        return self._scoring.info()

    def probability(self, score: float) -> float:
        """A raw logit as a probability in 0..1, by the given calibration, else by the family's activation."""
        return self._scoring.probability(one_score(score))

    def close(self) -> None:
        """Give the memory of the model back; calls after that raise EngineError."""
        self._scoring.close()

    def _opened_with(self) -> Mapping[str, Any]:
        return {field.name: getattr(self._options, field.name) for field in fields(self._options)}
