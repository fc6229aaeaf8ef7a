"""Index: folders of files, searchable by meaning and by words, in one file of this machine."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.cognitive import Cognitive, seconds_of
from secondpass.errors import CheckpointError, MissingExtra, StoreError
from secondpass.public import opened_once
from secondpass.retrieval.vectors import TextEmbedder
from secondpass.search.indexing import Indexing, IndexReport
from secondpass.search.pipeline import PairReader, Pipeline, Question, StateReader, figures_of, winning_sentence
from secondpass.search.stores.open import open_store
from secondpass.search.stores.store import KINDS, Event, Filter, Stored
from secondpass.types import Hit, Progress, Ranking, Scorer

if TYPE_CHECKING:
    from secondpass.reranker import Reranker

NO_EMBEDDER = "none"
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


class Index:
    """Files of this machine, searched in two stages.

    name: of the index; folder: where indexes are kept, else the user's data folder, or the address of a database,
    postgresql://user:password@host/database (extra `postgres`), which several machines may share, or lancedb:///folder
    (extra `lancedb`).
    embedder: "auto" is the embedded one where there is one, "none" leaves words alone, else a name or folder as of
    Embedder, or anything with `encode`; None is what the index was made with. reranker: as of Reranker, or anything
    with `rank` and `score_pairs`; None for the fused order alone. A question in a script that a named reranker cannot
    read keeps the fused order, and `Ranking.warnings` says so. rescorer: scores all that the first stages found anew,
    before the best are reranked: a ColBERT, or an Embedder of BGE-M3 for its sparse and multi-vector parts. Safe to
    use from several threads and processes.
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
        keeps_states: bool | None = None,
        create: bool = False,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"the name of an index is {name!r}; give letters, digits, '-', '_' and '.', at most 64")
        self.name = name
        self.store = open_store(name, folder, create=create)
        self._asked_embedder = embedder
        self._reranker, self._rescorer = reranker, rescorer
        self._keeps_states = keeps_states
        if self.store.states is not None and keeps_states is not None:
            self.store.states.switch(keeps_states)
        elif keeps_states:
            raise ValueError("keeps_states: only an index in a folder of this machine, or in LanceDB, keeps states")

    def add(self, *paths: str | Path, progress: Progress | None = None) -> IndexReport:
        """Index files and folders, and remember them for `update`. What is there already is only brought up to date.

        Raises StoreError for a path that is not there.
        """
        roots = [Path(path).expanduser().absolute() for path in paths]
        for root in roots:
            if not root.exists():
                raise StoreError(f"{root}: there is no such file or folder")
        indexing = self._indexing()
        known = self.roots
        self.store.set_meta({"roots": json.dumps([*known, *(str(root) for root in roots if str(root) not in known)])})
        return indexing.update(roots, progress=progress)

    def update(self, *, progress: Progress | None = None) -> IndexReport:
        """Bring the index up to what now lies at all its paths."""
        return self._indexing().update([Path(root) for root in self.roots], progress=progress)

    def remove(self, *paths: str | Path) -> int:
        """Forget files, or folders with all below them. Returns how many chunks went."""
        asked = [str(Path(path).expanduser().absolute()) for path in paths]
        gone = [file for file in self.store.files() if any(_is_below(file, path) for path in asked)]
        left = [root for root in self.roots if not any(_is_below(root, path) for path in asked)]
        self.store.set_meta({"roots": json.dumps(left)})
        return self.store.remove(gone)

    def search(
        self,
        query: str,
        top_n: int = 5,
        *,
        path: str | None = None,
        since: float | datetime | str | None = None,
        until: float | datetime | str | None = None,
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

        path (a glob, or a part of the path), since, until, language (as features.language_of names it) and fields
        filter; cognitive weighs what is known of the
        chunks; see Question for the others. `Hit.index` is the chunk's id, for `get` and `feedback`.
        """
        only = Filter(
            path=path,
            since=None if since is None else seconds_of(since, "since"),
            until=None if until is None else seconds_of(until, "until"),
            fields={**(fields or {}), **({} if language is None else {"language": language})},
        )
        started = time.perf_counter()
        is_reranked = rerank and self.is_reranked
        if is_reranked and "pipeline" not in vars(self):  # both models take a while, at the first question
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
            raise StoreError(f"{self.name}: there is no chunk {id}; it may have changed since the search")
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
        reranker, _ = self.reranker_for(query)
        text = hit.document.text
        return (0, len(text)) if reranker is None else winning_sentence(reranker, query, text)

    def status(self) -> IndexStatus:
        counts = asdict(self.store.counts())
        embedder = self.store.meta("embedder") or "not chosen yet"
        return IndexStatus(
            name=self.name, file=self.store.location, embedder=embedder, roots=tuple(self.roots), **counts
        )

    def close(self) -> None:
        self.store.close()

    def _settings(self, cognitive: Cognitive | Mapping[str, Any] | bool | None) -> Cognitive | None:
        """What is asked for, over the weights that were learnt for this index."""
        if cognitive is None or cognitive is False or isinstance(cognitive, Cognitive):
            return Cognitive.of(cognitive)
        learnt = json.loads(self.store.meta("weights") or "{}")
        return Cognitive.of({**learnt, **({} if cognitive is True else cognitive)})

    def _indexing(self) -> Indexing:
        """Raises ValueError where states are asked for that the reranker does not have."""
        if self.store.states is None or not self.store.states.is_kept:
            return Indexing(store=self.store, encoder=self.encoder)
        reranker = self._named_reranker if isinstance(self._reranker, str) else self._reranker
        reader = reranker if isinstance(reranker, StateReader) and reranker.states_mark else None
        if self._keeps_states and reader is None:
            raise ValueError("keeps_states: this reranker has no states of passages; the embedded one has")
        return Indexing(store=self.store, encoder=self.encoder, reader=reader)

    @property
    def is_reranked(self) -> bool:
        """Whether there is a reranker."""
        return self._reranker is not None

    @property
    def roots(self) -> list[str]:
        return [str(root) for root in json.loads(self.store.meta("roots") or "[]")]

    @opened_once
    def pipeline(self) -> Pipeline:
        return Pipeline(
            store=self.store, encoder=self.encoder, open_reranker=self.reranker_for, rescorer=self._rescorer
        )

    @opened_once
    def encoder(self) -> TextEmbedder | None:
        """The embedder of the index. Another one than before makes all vectors anew at the next `update`."""
        before = self.store.meta("embedder")
        asked = self._asked_embedder or before or "auto"
        name, encoder = _embedder(asked) if isinstance(asked, str) else (type(asked).__name__, asked)
        if name != before:
            self.store.set_meta({"embedder": name})
            if before is not None:
                self.store.drop_vectors()
        return encoder

    def reranker_for(self, query: str) -> tuple[PairReader | None, tuple[str, ...]]:
        """What reads a question and its candidates together, and warnings; None where a named one cannot read it."""
        if not isinstance(self._reranker, str):
            return self._reranker, ()
        warning = self._named_reranker.unread(query)
        return (self._named_reranker, ()) if warning is None else (None, (warning,))

    @opened_once
    def _named_reranker(self) -> Reranker:
        from secondpass.reranker import Reranker

        assert isinstance(self._reranker, str)
        return Reranker(self._reranker)


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


def _is_below(path: str, folder: str) -> bool:
    return path == folder or Path(folder) in Path(path).parents
