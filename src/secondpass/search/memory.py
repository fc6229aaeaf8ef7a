"""Memory: statements that an agent keeps, each with when it held, when it was written, and what speaks for it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from secondpass.cognitive import Cognitive, end_of, seconds_of, signals_of
from secondpass.errors import StoreError
from secondpass.public import Closing
from secondpass.retrieval.vectors import TextEmbedder
from secondpass.retrieval.words import terms
from secondpass.search.features import digest_of, entities_of
from secondpass.search.index import Index
from secondpass.search.pipeline import PairReader, Question
from secondpass.search.stores.store import Chunk, Event, File, Filter, Stored, storable
from secondpass.text.documents import folded
from secondpass.types import Ranking

MAX_CHARACTERS = 8000  # of one statement; longer texts are documents, for an Index
Moment = float | date | str


class Memory(Closing):
    """Statements in a namespace of their own: remember, recall, confirm, contradict, supersede, forget.

    name: of the index that keeps them; it is made where there is none. namespace: whose memory it is; others are not
    found. Every moment can be given, a day as its beginning; without it is now. Statements are named by the ids that
    `remember` returns and that hits have as `index`. Safe to use from several threads and processes. See Index for
    the other options.
    """

    def __init__(
        self,
        name: str = "memory",
        *,
        namespace: str = "default",
        folder: str | Path | None = None,
        embedder: str | TextEmbedder | None = None,
        reranker: str | PairReader | None = "auto",
    ) -> None:
        if not isinstance(namespace, str) or "\0" in namespace or storable(namespace) != namespace:
            raise ValueError(f"the namespace is {namespace!r}; give a text without NUL, in UTF-8")
        self.namespace = namespace
        self.index = Index(name, folder=folder, embedder=embedder, reranker=reranker, create=True)

    def remember(
        self,
        text: str,
        *,
        subject: str | None = None,
        source: str | None = None,
        valid_from: Moment | None = None,
        importance: float | None = None,
        entities: Sequence[str] = (),
        now: Moment | None = None,
    ) -> int:
        """Keep a statement. Returns its id; that of the same statement, confirmed by this source, where it is known.

        valid_from is since when it holds, where that is not now. Of statements about one subject the newest comes
        first: one that is said again after another about its subject is put in place of what it was, from now on. A
        subject is the same in capitals and with other blanks. Raises ValueError for a text that is empty or too long.
        """
        text, written, subject = _checked(text), _seconds(now), _one_subject(subject)
        signals_of({"importance": importance, "entities": entities})
        self.index.choose_embedder([text])
        about = {"subject": subject, "importance": importance}
        given: dict[str, Any] = {name: value for name, value in about.items() if value is not None}
        fields = {"namespace": self.namespace, "written": written, "sources": [source or "unknown"], **given}
        held = written if valid_from is None else seconds_of(valid_from, "valid_from")
        _ = self.index.writing()  # models are opened before anybody waits for the transaction
        with self.index.store.together():  # else two that remember it at once would both find nothing
            known = self._same(text, subject)
            if known is None:
                return self._add(text, fields, held, entities)
            fields = {**_kept(known), **fields}
            if self._holds(known, fields.get("subject"), held, written):
                self.index.store.change_fields(known.id, lambda fields: {**given, **fields})
                self.confirm(known.id, source=source)
                return known.id
            new = self._add(text, fields, held, entities)
            self._replace(known.id, new, held)
        return new

    def recall(
        self,
        query: str,
        top_n: int = 5,
        *,
        as_of: Moment | None = None,
        cognitive: Cognitive | Mapping[str, Any] | bool | None = True,
        now: Moment | None = None,
        budget_ms: float | None = None,
        explain: bool = False,
    ) -> Ranking:
        """The statements that answer and hold now, best first; none that were superseded.

        as_of: what held, or will hold, at a moment, by relevance alone, of one subject the newest first; of a day
        without a time, at its end, as with `until` of a search. Reading changes nothing: say with `use` what was of
        use.
        """
        settings, asked_at = Cognitive.of(cognitive), _seconds(now)
        if settings is not None and settings.now is None:
            settings = replace(settings, now=asked_at)
        only = Filter(fields={"namespace": self.namespace}, until=asked_at)
        if as_of is not None:
            moment = end_of(as_of, "as_of")
            settings = None if settings is None else replace(settings, now=moment, bound=0.0)
            only = replace(only, until=moment, held_at=moment, has_superseded=True)
        asked = Question(
            text=query,
            top_n=top_n,
            only=only,
            cognitive=settings,
            is_reranked=self.index.is_reranked,
            budget_ms=budget_ms,
            explain=explain,
        )
        return self.index.pipeline.search(asked)

    def use(self, id: int, *, now: Moment | None = None) -> None:
        """Record that a statement was of use; uses count as ACT-R's accesses."""
        self.index.store.record([Event(digest=self.get(id).chunk.digest, time=_seconds(now), kind="used")])

    def confirm(self, id: int, *, source: str | None = None) -> None:
        """Count a support. One source counts once."""
        self._count(id, "supports", source)

    def contradict(self, id: int, *, source: str | None = None) -> None:
        """Count a contradiction. One source counts once."""
        self._count(id, "contradictions", source)

    def supersede(
        self,
        id: int,
        text: str,
        *,
        subject: str | None = None,
        source: str | None = None,
        now: Moment | None = None,
    ) -> int:
        """Put a statement in place of another one, which is no longer recalled. Returns the new one's id.

        subject is that of the old one, unless it is given. Raises StoreError for what was replaced before.
        """
        text, moment, subject = _checked(text), _seconds(now), _one_subject(subject)
        _ = self.index.writing()  # models are opened before anybody waits for the transaction
        with self.index.store.together():
            old = self.get(id)
            if (by := old.superseded_by) is not None:
                rest = "what replaced it is forgotten" if by == id else f"replace {by}, which took its place"
                raise StoreError(f"the statement {id} was replaced before; {rest}")
            fields = {"namespace": self.namespace, "written": moment, "sources": [source or "unknown"], **_kept(old)}
            fields |= {} if subject is None else {"subject": subject}
            new = self._add(text, fields, moment, ())
            self._replace(id, new, moment)
        return new

    def forget(self, id: int) -> None:
        """Delete a statement with its vectors and uses, for good. What it had replaced is not recalled again."""
        self.index.store.remove([self.get(id).path])

    def get(self, id: int) -> Stored:
        """A statement of this namespace. Raises StoreError where there is none."""
        found = self.index.store.fetch([id])
        if not found or found[0].chunk.fields.get("namespace") != self.namespace:
            raise StoreError(f"there is no statement {id} in the memory {self.namespace!r}; recall gives ids")
        return found[0]

    def close(self) -> None:
        self.index.close()

    def _add(self, text: str, fields: dict[str, Any], held: float, entities: Sequence[str]) -> int:
        path = f"memory:{self.namespace}/{uuid.uuid4().hex}"
        named = entities_of(text, {"entities": list(entities)})
        chunk = Chunk(
            text=text,
            heading="",
            lines=(1, text.count("\n") + 1),
            span=(0, len(text)),
            digest=digest_of(path, text),
            similarity=0,  # what differs in one number is another statement, not a copy
            created=held,
            entities=named,
            fields=fields,
        )
        file = File(path=path, root=f"memory:{self.namespace}", digest="", size=len(text), modified_ns=0)
        index = self.index
        index.writing().add(file, [chunk])
        return self.index.store.ids(path)[0]

    def _replace(self, old: int, new: int, moment: float) -> None:
        self.index.store.change_fields(old, lambda fields: {**fields, "superseded_at": moment})
        self.index.store.supersede(old, new)

    def _same(self, text: str, subject: str | None) -> Stored | None:
        """A statement in the same words, about the same subject as far as both have one."""
        wanted = folded(text)
        only = Filter(fields={"namespace": self.namespace})
        found = self.index.store.search_text(terms(text), 20, only)
        for each in self.index.store.fetch([id for id, _ in found]):
            if folded(each.chunk.text) == wanted and subject in (None, each.chunk.fields.get("subject", subject)):
                return each
        return None

    def _holds(self, known: Stored, subject: str | None, held: float, written: float) -> bool:
        """Whether a statement that is said to hold from a moment on does so, and nothing newer about its subject."""
        since = known.chunk.created or 0.0
        if since > max(held, written):
            return False
        if not subject:
            return True
        about = Filter(fields={"namespace": self.namespace, "subject": storable(subject)}, until=held)
        newest = self.index.store.newest(about)
        return newest is None or (self.get(newest).chunk.created or 0.0) <= since

    def _count(self, id: int, name: str, source: str | None) -> None:
        key = f"{name}_by"
        self.get(id)

        def counted(fields: dict[str, Any]) -> dict[str, Any]:
            by = list(fields.get(key, []))
            known = {*by, *fields.get("sources", [])} if name == "supports" else set(by)
            if source is not None and source in known:
                return fields
            return {**fields, name: fields.get(name, 0) + 1, key: [*by, *([source] if source else [])]}

        self.index.store.change_fields(id, counted)


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the statement is a {type(text).__name__}; a str is needed")
    if not text.strip():
        raise ValueError("the statement is blank; give a sentence")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the statement has {len(text)} characters; give {MAX_CHARACTERS} at most, or split it")
    return storable(text)


def _one_subject(subject: str | None) -> str | None:
    if subject is not None and not isinstance(subject, str):
        raise TypeError(f"the subject is a {type(subject).__name__}; a str is needed")
    return None if subject is None else folded(subject) or None


def _kept(old: Stored) -> dict[str, Any]:
    """What a statement passes on to one in its place."""
    return {name: old.chunk.fields[name] for name in ("subject", "importance") if name in old.chunk.fields}


def _seconds(now: Moment | None) -> float:
    return time.time() if now is None else seconds_of(now, "now")
