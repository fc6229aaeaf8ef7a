"""Index: folders of files, searchable by meaning and by words, in one file of this machine."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.atomic import lasting
from secondpass.checkpoint.checkpoint import MULTILINGUAL, has_multilingual, open_checkpoint
from secondpass.cognitive import Cognitive, end_of, seconds_of
from secondpass.errors import CheckpointError, MissingExtra, NoSuchChunk, StoreError
from secondpass.public import Closing, opened_once
from secondpass.retrieval.vectors import ScriptReader, TextEmbedder
from secondpass.scoring.ranking import check_budget
from secondpass.search.pipeline import PairReader, Pipeline, Question, StateReader, figures_of, winning_sentences
from secondpass.search.stores.open import open_store
from secondpass.search.stores.store import KINDS, STAGES, Event, Filter, Stored
from secondpass.text.languages import checked_language, suits
from secondpass.types import Hit, Progress, Ranking, Scorer, Usage

if TYPE_CHECKING:
    from secondpass.colbert.colbert import ColBERT
    from secondpass.embedder import Embedder
    from secondpass.reranker import Reranker
    from secondpass.search.indexing import Indexing, IndexReport
    from secondpass.search.retrievers import LateRetriever, SparseRetriever

NO_EMBEDDER = "none"
FOREIGN_SHARE = 0.1  # of the texts, from which on the multilingual embedder is chosen
_NAME = re.compile(r"\w[\w.-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class IndexStatus:
    """What is in an index, and what it is searched with."""

    name: str
    file: str
    files: int
    chunks: int
    vectors: int
    bytes: int
    embedder: str
    roots: tuple[str, ...]
    retrievers: Mapping[str, str]


class Index(Closing):
    """Files of this machine, searched in two stages.

    name: of the index; folder: where indexes are kept, else the user's data folder, or the address of a database,
    postgresql://user:password@host/database (extra `postgres`), which several machines may share, or lancedb:///folder
    (extra `lancedb`).
    embedder: "auto" is the embedded one where there is one, or that of secondpass-multilingual, where it is installed
    and a tenth of what is added first is in other languages than the embedded one's; "none" leaves words alone,
    else a name or folder as of Embedder, or anything with `encode`; None is what the index was made with.
    reranker: as of Reranker, or anything with `rank` and `score_pairs`; None for the fused order alone. A question in
    a script that the embedder cannot read is searched for by words alone, one that the reranker cannot read keeps
    the fused order, and `Ranking.warnings` says so. rescorer: scores all that the first stages found anew, before the
    best are reranked: a ColBERT, or an Embedder of BGE-M3 for its sparse and multi-vector parts. Safe to use from
    several threads and processes.
    retrievers: first stages beside words and vectors: a model, opened or named, for "sparse" (an Embedder of BGE-M3)
    and for "colbert" (a ColBERT, or an Embedder of BGE-M3); None forgets one, what is not named is as before. The
    index keeps what they read of each chunk: some 600 bytes of weights, a vector in int8 for each token.
    keeps_states: keep what the embedded reranker reads of each chunk on disk, some 140 kB a chunk, so that a question
    whose candidates were never asked for costs no more than one again; False forgets it, None is as the index was.
    create: make the index where there is none. Raises StoreError where there is none, or it cannot be used.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        folder: str | Path | None = None,
        embedder: str | TextEmbedder | None = None,
        reranker: str | PairReader | None = "auto",
        rescorer: Scorer | None = None,
        retrievers: Mapping[str, str | ColBERT | Embedder | None] | None = None,
        keeps_states: bool | None = None,
        create: bool = False,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"the name of an index is {name!r}; give letters, digits, '-', '_' and '.', at most 64")
        self.name = name
        self.store = open_store(name, folder, create=create)
        self._asked_embedder = lasting(embedder) if isinstance(embedder, str) else embedder
        self._reranker, self._rescorer = reranker, rescorer
        self._asked_retrievers = {
            stage: lasting(model) if isinstance(model, str) else model for stage, model in (retrievers or {}).items()
        }
        self._opened_retrievers: tuple[Mapping[str, Any], Sequence[SparseRetriever | LateRetriever]] = {}, ()
        self._opening = threading.Lock()
        if any(stage not in STAGES for stage in self._asked_retrievers):
            raise ValueError(f"retrievers is for {', '.join(retrievers or ())}; give {' and '.join(STAGES)}")
        self._keeps_states = keeps_states
        if self.store.states is not None and keeps_states is not None:
            self.store.states.switch(keeps_states)
        elif keeps_states:
            raise ValueError("keeps_states: only an index in a folder of this machine, or in LanceDB, keeps states")

    def add(self, *paths: str | Path, progress: Progress | None = None) -> IndexReport:
        """Index files and folders, and remember them for `update`. What is there already is only brought up to date.

        Raises StoreError for a path that is not there.
        """
        from secondpass.search.folder import is_below, placed  # with readers of all formats, which a search needs not
        from secondpass.search.indexing import sampled

        roots = list(dict.fromkeys(map(placed, paths)))
        for root in roots:
            if not root.exists():
                raise StoreError(f"{root}: there is no such file or folder")
        self.choose_embedder(sampled(roots))
        indexing = self._indexing()
        left_out = [path for path in self._left_out if not any(is_below(path, root) for root in roots)]
        known = [Path(root) for root in self.roots]
        self._remember([*known, *(root for root in roots if root not in known)], left_out)
        return indexing.update(roots, left_out=left_out, progress=progress)

    def update(self, *, progress: Progress | None = None) -> IndexReport:
        """Bring the index up to what now lies at all its paths."""
        roots = [Path(root) for root in self.roots]
        return self._indexing().update(roots, left_out=self._left_out, progress=progress)

    def remove(self, *paths: str | Path) -> int:
        """Forget files, or folders with all below them; `update` leaves them out, until they are added again.

        Returns how many chunks went. Raises StoreError for a path that is neither in the index nor below what was
        added.
        """
        from secondpass.search.folder import is_below, placed

        asked, files = list(map(placed, paths)), self.store.files()
        known = [*files, *self.roots]
        for path in asked:
            is_left_out = os.path.lexists(path) and any(is_below(path, root) for root in self.roots)
            if not is_left_out and not any(is_below(each, path) for each in known):
                there = ", ".join(self.roots) or "nothing"
                raise StoreError(f"{path}: there is nothing of it in the index {self.name!r}; added was {there}")
        gone = [file for file in files if any(is_below(file, path) for path in asked)]
        left = [Path(root) for root in self.roots if not any(is_below(placed(root), path) for path in asked)]
        out = [str(path) for path in asked if any(is_below(path, root) for root in left)]
        kept = [path for path in self._left_out if any(is_below(path, root) for root in left)]
        self._remember(left, sorted({*kept, *out}))
        return self.store.remove(gone)

    def search(
        self,
        query: str,
        top_n: int = 5,
        *,
        path: str | Path | None = None,
        since: float | date | str | None = None,
        until: float | date | str | None = None,
        language: str | None = None,
        fields: Mapping[str, str | int | float | bool] | None = None,
        cognitive: Cognitive | Mapping[str, Any] | bool | None = None,
        diversity: str | None = None,
        depth: int = 100,
        candidates: int = 30,
        fusion: str = "convex",
        rerank: bool = True,
        budget_ms: float | None = None,
        explain: bool = False,
    ) -> Ranking:
        """The best chunks for a question; of a hit, `document` has the text, and where it stands as fields.

        path (a glob, or a part of the path), since, until, language (zh, zh-TW, Chinese or 中文) and fields
        filter, an `until` without a time with all of its day; cognitive weighs what is known of the chunks; see
        Question for the others. `Hit.index` is the chunk's id, for `get` and `feedback`.
        """
        only = Filter(
            path=None if path is None else os.fspath(path),
            since=None if since is None else seconds_of(since, "since"),
            until=None if until is None else end_of(until, "until"),
            fields={**(fields or {}), **({} if language is None else {"language": checked_language(language)})},
        )
        check_budget(budget_ms)
        started = time.perf_counter()
        is_reranked = rerank and self.is_reranked
        if is_reranked and "_chosen_embedder" not in vars(self):  # both models take a while, at the first question
            with ThreadPoolExecutor(1, "secondpass-opening") as threads:
                threads.submit(self.reranker_for, query)
                _ = self.pipeline
        if budget_ms is not None:
            budget_ms = max(1.0, budget_ms - 1000 * (time.perf_counter() - started))
        return self.pipeline.search(
            Question(
                text=query,
                top_n=top_n,
                depth=depth,
                candidates=candidates,
                only=only,
                cognitive=self._settings(cognitive),
                diversity=diversity,
                fusion=fusion,
                is_reranked=is_reranked,
                budget_ms=budget_ms,
                explain=explain,
            )
        )

    def get(self, id: int) -> Stored:
        """A chunk by its id. Raises StoreError where it is gone."""
        found = self.store.fetch([id])
        if not found:
            raise NoSuchChunk(f"{self.name}: there is no chunk {id}; it may have changed since the search")
        return found[0]

    def feedback(self, ranking: Ranking, hit: Hit, kind: str, *, now: float | None = None) -> None:
        """Record that a hit was "opened", "kept", "used" or "rejected". What was merely shown is not recorded.

        The ranking's figures are kept too, for `secondpass feedback --fit`.
        """
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; give {', '.join(map(repr, KINDS))}")
        moment = time.time() if now is None else now
        event = Event(digest=self.get(hit.index).chunk.digest, time=moment, kind=kind)
        with self.store.together():
            self.store.record([event])
            shown = figures_of(self.store, ranking, moment)
            self.store.add_judgement(
                {"query": ranking.query, "time": moment, "hit": hit.index, "kind": kind, "shown": shown}
            )

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """The weights that `cognitive=True` has from now on."""
        Cognitive.of(weights)
        self.store.set_meta({"weights": json.dumps(dict(weights))})

    def winning_sentence(self, query: str, hit: Hit) -> tuple[int, int]:
        """The range of characters of the hit's text that answers best."""
        return self.winning_sentences(Ranking(query, (hit,), Usage(rows=0, tokens=0, truncated=0, seconds=0.0)))[0]

    def winning_sentences(self, ranking: Ranking) -> list[tuple[int, int]]:
        """Of each hit the range of characters of its text that answers best; of all hits at once."""
        reranker, _ = self.reranker_for(ranking.query)
        texts = [hit.document.text for hit in ranking]
        if reranker is None:
            return [(0, len(text)) for text in texts]
        return winning_sentences(reranker, ranking.query, texts)

    def status(self) -> IndexStatus:
        counts = asdict(self.store.counts())
        embedder = self.store.meta("embedder") or "not chosen yet"
        return IndexStatus(
            name=self.name,
            file=self.store.location,
            embedder=embedder,
            roots=tuple(self.roots),
            retrievers=json.loads(self.store.meta("retrievers") or "{}"),
            **counts,
        )

    def close(self) -> None:
        """Close the store; models that were opened for it go with it."""
        self.store.close()

    def choose_embedder(self, texts: Iterable[str]) -> None:
        """Of an index that has no embedder yet, by the script and language of what it is to hold."""
        if self._asked_embedder not in (None, "auto") or self.store.meta("embedder") is not None:
            return
        if not has_multilingual():
            return
        known = open_checkpoint("default").config
        are_foreign = [not suits(text, (), known.get("scripts"), known.get("languages")) for text in texts]
        if are_foreign and sum(are_foreign) >= FOREIGN_SHARE * len(are_foreign):
            self.store.set_meta({"embedder": MULTILINGUAL})

    def _settings(self, cognitive: Cognitive | Mapping[str, Any] | bool | None) -> Cognitive | None:
        """What is asked for, over the weights that were learnt for this index."""
        if cognitive is not True and not isinstance(cognitive, Mapping):
            return Cognitive.of(cognitive)
        learnt = json.loads(self.store.meta("weights") or "{}")
        return Cognitive.of({**learnt, **({} if cognitive is True else cognitive)})

    def _indexing(self) -> Indexing:
        """With another embedder than before, all vectors are made anew.

        Raises ValueError where states are asked for that the reranker does not have.
        """
        name, before = self._current_embedder()[0], self.store.meta("embedder")
        retrievers, reader = self.retrievers, self._state_reader()  # what cannot be opened changes nothing
        with self.store.together():
            if name != before:
                self.store.set_meta({"embedder": name})
                if before is not None:
                    self.store.drop_vectors()
            self.store.set_meta({"retrievers": json.dumps({each.stage: lasting(each.name) for each in retrievers})})
            indexing = replace(self.writing(), reader=reader)
            indexing.begin()
        return indexing

    def writing(self) -> Indexing:
        """What brings texts into the store, with the models of the index."""
        from secondpass.search.indexing import Indexing

        name, encoder = self._checked_embedder()
        return Indexing(store=self.store, encoder=encoder, embedder=name, retrievers=self.retrievers)

    def _state_reader(self) -> StateReader | None:
        """What makes states, where the index keeps them."""
        if self.store.states is None or not self.store.states.is_kept:
            return None
        reranker = self._named_reranker if isinstance(self._reranker, str) else self._reranker
        reader = reranker if isinstance(reranker, StateReader) and reranker.states_mark else None
        if self._keeps_states and reader is None:
            raise ValueError("keeps_states: this reranker has no states of passages; the embedded one has")
        return reader

    @property
    def is_reranked(self) -> bool:
        """Whether there is a reranker."""
        return self._reranker is not None

    @property
    def roots(self) -> list[str]:
        return [str(root) for root in json.loads(self.store.meta("roots") or "[]")]

    @property
    def _left_out(self) -> list[str]:
        """What was removed below a root that is still there."""
        return [str(path) for path in json.loads(self.store.meta("left_out") or "[]")]

    def _remember(self, roots: Sequence[Path], left_out: Sequence[str]) -> None:
        self.store.set_meta({"roots": json.dumps(list(map(str, roots))), "left_out": json.dumps(left_out)})

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline(
            store=self.store,
            encoder=self.encoder,
            open_reranker=self.reranker_for,
            rescorer=self._rescorer,
            retrievers=self.retrievers,
        )

    @property
    def encoder(self) -> TextEmbedder | None:
        """The embedder of the index. Raises StoreError where its vectors are another one's, until `update`."""
        return self._checked_embedder()[1]

    def _checked_embedder(self) -> tuple[str, TextEmbedder | None]:
        name, encoder = self._current_embedder()
        before = self.store.meta("embedder")
        if before is None:
            self.store.set_meta({"embedder": name})
        elif name not in (before, NO_EMBEDDER):
            raise StoreError(
                f"{self.name}: its vectors are of the embedder {before!r}, not of {name!r}; ask with that one, or "
                "make them anew with Index.update, as `secondpass update --embedder` does"
            )
        return name, encoder

    def _current_embedder(self) -> tuple[str, TextEmbedder | None]:
        """Where none is asked for, that of the index, which another process may have changed since."""
        before = self.store.meta("embedder")
        if self._asked_embedder is None and before is not None and self._chosen_embedder[0] != before:
            vars(self).pop("_chosen_embedder", None)
        return self._chosen_embedder

    @opened_once
    def _chosen_embedder(self) -> tuple[str, TextEmbedder | None]:
        """The embedder that is asked for, else that of the index, and its name."""
        before = self.store.meta("embedder")
        asked = self._asked_embedder or before or "auto"
        if asked == "auto" and before == MULTILINGUAL:  # which "auto" had chosen
            asked = MULTILINGUAL
        return _embedder(asked) if isinstance(asked, str) else (_name_of(asked), asked)

    @property
    def retrievers(self) -> Sequence[SparseRetriever | LateRetriever]:
        """Those that are asked for, else those of the index, which another process may have changed since."""
        asked = {**json.loads(self.store.meta("retrievers") or "{}"), **self._asked_retrievers}
        with self._opening:
            if asked != self._opened_retrievers[0]:
                from secondpass.search.retrievers import open_retriever

                name, encoder = self._current_embedder()
                found = [open_retriever(stage, model, encoder, name) for stage, model in asked.items() if model]
                self._opened_retrievers = asked, found
            return self._opened_retrievers[1]

    def reranker_for(self, query: str) -> tuple[PairReader | None, tuple[str, ...]]:
        """What reads a question and its candidates together, and warnings; None where it cannot read the question."""
        reranker = self._named_reranker if isinstance(self._reranker, str) else self._reranker
        warning = reranker.unread(query) if isinstance(reranker, ScriptReader) else None
        return (reranker, ()) if warning is None else (None, (f"{warning}; the order is that of the first stages",))

    @opened_once
    def _named_reranker(self) -> Reranker:
        from secondpass.reranker import Reranker

        assert isinstance(self._reranker, str)
        return Reranker(self._reranker)


def _name_of(encoder: TextEmbedder) -> str:
    """The name under which an embedder that is given as an object is remembered."""
    from secondpass.embedder import Embedder

    return lasting(encoder.info().model) if isinstance(encoder, Embedder) else type(encoder).__name__


def _embedder(name: str) -> tuple[str, TextEmbedder | None]:
    """The name under which an embedder is remembered, and itself."""
    from secondpass.embedder import Embedder

    if name == NO_EMBEDDER:
        return name, None
    if name != "auto":
        return name, Embedder(name)
    try:
        return "default", Embedder("default")
    except (CheckpointError, MissingExtra):
        return NO_EMBEDDER, None  # said in the status: there is no embedded embedder in this installation
