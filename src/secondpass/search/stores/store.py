"""What an index keeps, and the Protocol of what keeps it."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secondpass.errors import StoreError
from secondpass.retrieval.bm25 import Found
from secondpass.retrieval.words import indexed_terms
from secondpass.search.stores.gathered import Gathered, Parts

Vectors = NDArray[np.float32]
_PROBE = (
    "getUserName max_length naïve 什么是重排序 東京タワー ไทย किताब كِتَاب 학교 "
    "Straße Łódź ёж Ζωή ज़ू الدار ٢٢ Kranken\u00adhaus 葛\U000e0100城 ⾺上⻄ 1,280 排\n序"
)
MAX_ACCESSES = 16  # kept for each chunk
STAGES = ("sparse", "colbert")  # of retrievers, whose readings may be kept
KINDS = ("opened", "kept", "used", "rejected")  # of accesses; what was merely shown is not recorded


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A part of a file: the text, the headings above it, where it stands, and what is known of it.

    lines counts from 1 and includes the last; span is the half-open range of characters in the file's text. created
    is in seconds since 1970. digest names heading and text, so that equal chunks share vectors and accesses.
    """

    text: str
    heading: str
    lines: tuple[int, int]
    span: tuple[int, int]
    digest: bytes
    similarity: int  # a 64-bit SimHash: near-duplicates differ in few bits
    created: float | None = None
    entities: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passage(self) -> str:
        """What the stages read: the headings, then the text."""
        return passage_of(self.heading, self.text)


def passage_of(heading: str, text: str) -> str:
    """What the stages read of a chunk."""
    return f"{heading}\n{text}" if heading else text


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file as it was when it was indexed; path is absolute, or names a record that is no file."""

    path: str
    root: str
    digest: str
    size: int
    modified_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A file with its new chunks, and the vectors (C,) of those that have one, by their digests."""

    file: File
    chunks: Sequence[Chunk]
    vectors: Mapping[bytes, Vectors] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A chunk in the store. accessed has the moments of its last uses."""

    id: int
    path: str
    chunk: Chunk
    superseded_by: int | None = None
    accessed: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which chunks may be found. path is a part of the file's path or a glob over it; the times are of `created`.

    fields have to be equal to those of the chunk, or, where it has a list, in that. superseded records are found only
    where they are asked for; held_at leaves out those that were by that moment. Raises ValueError for what no chunk
    can have.
    """

    path: str | None = None
    since: float | None = None
    until: float | None = None
    fields: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    has_superseded: bool = False
    held_at: float | None = None

    def __post_init__(self) -> None:
        if self.path is not None and storable(self.path) != self.path:
            raise ValueError(f"path is {self.path!r}, which is not in UTF-8")
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError("since is later than until, so that nothing can be found; give the earlier one as since")
        for name, value in self.fields.items():
            if '"' in name or "\0" in name or storable(name) != name:
                raise ValueError(f"no field is called {name!r}")
            is_known = value == plain(value) if isinstance(value, str | float) else isinstance(value, int)
            if not is_known or (isinstance(value, int) and value.bit_length() > 63):
                raise ValueError(f"the field {name!r} cannot be {value!r:.80}; give a text, a number, true or false")

    @property
    def paths(self) -> list[str]:
        """The path as it is given and with its letters and marks together or apart, as macOS writes names."""
        given = "" if self.path is None else self.path
        forms = (given, unicodedata.normalize("NFC", given), unicodedata.normalize("NFD", given))
        return [form for form in dict.fromkeys(forms) if form]

    @property
    def is_glob(self) -> bool:
        """Whether the path is a pattern."""
        return self.path is not None and any(sign in self.path for sign in "*?[")

    @property
    def is_open(self) -> bool:
        """Whether everything passes that is not superseded."""
        asked = (self.path, self.since, self.until, self.held_at)
        return all(each is None for each in asked) and not self.fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A use of a chunk, or its rejection, at a moment in seconds since 1970."""

    digest: bytes
    time: float
    kind: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """How much is in a store; bytes are those of its files."""

    files: int
    chunks: int
    vectors: int
    bytes: int


class PassageStates(Protocol):
    """Keeps what a reranker read of the chunks' texts, by their digests. `mark` names what the states depend on.

    None are given for a text that is not in the index any more.
    """

    @property
    def is_kept(self) -> bool:
        """Whether this index keeps states."""
        ...

    def switch(self, is_kept: bool) -> None:
        """Keep states from now on, or forget them all."""
        ...

    def missing(self, mark: str) -> list[int]:
        """Ids of chunks, one of each text, that have no states. Those of other marks are forgotten."""
        ...

    def read(self, mark: str, digests: Sequence[bytes]) -> list[bytes]:
        """The states that there are."""
        ...

    def add(self, mark: str, states: Mapping[bytes, bytes]) -> None: ...


class Retriever(Protocol):
    """A first stage that reads passages apart, and searches in what is kept of that.

    stage names it; source is the model; mark says what readings depend on; least is what a score has to exceed.
    """

    @property
    def source(self) -> object: ...

    @property
    def stage(self) -> str: ...

    @property
    def mark(self) -> str: ...

    @property
    def least(self) -> float: ...

    def read(self, passages: Sequence[str]) -> list[bytes]:
        """A reading of each passage, to be kept."""
        ...

    def values(self, embedded: Any) -> list[bytes]:
        """The readings in what `Embedder.embed` gave, where that is the source."""
        ...

    def ask(self, query: str) -> Any:
        """What it reads of a question, for `nearest` and `scores`."""
        ...

    def gathered(self, values: Sequence[bytes], num_readings: int) -> Gathered:
        """None of the readings, with what is learnt of a sample of them."""
        ...

    def parts(self, values: Sequence[bytes], learnt: Parts) -> tuple[NDArray[np.int64], Parts]:
        """Lengths and parts of readings, for `Gathered`."""
        ...

    def nearest(
        self, asked: Any, gathered: Gathered, limit: int, allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Indices of about the best `limit` readings, of those that are allowed (N,)."""
        ...

    def scores(self, asked: Any, values: Sequence[bytes]) -> list[float]:
        """Scores of readings."""
        ...


class Readings(Protocol):
    """What a retriever read of the chunks' texts, by their digests."""

    def begin(self, mark: str) -> None:
        """Keep readings of this mark from now on; those of another one are forgotten."""
        ...

    def missing(self, mark: str) -> list[int]:
        """Ids of chunks, one of each text, that have no reading."""
        ...

    def add(self, mark: str, values: Mapping[bytes, bytes]) -> None:
        """Keep readings of texts that are in the index still, unless another mark has begun meanwhile."""
        ...

    def search(self, retriever: Retriever, query: str, limit: int, only: Filter) -> Found:
        """Ids and scores of the best chunks, best first. Raises StoreError where readings are another model's."""
        ...

    def tidy(self, retriever: Retriever) -> None:
        """After many writes, so that searches are fast."""
        ...

    def drop(self) -> None:
        """Forget them all."""
        ...


class Store(Protocol):
    """Keeps the chunks of an index. Every call is one transaction: after a crash it has happened wholly or not."""

    @property
    def states(self) -> PassageStates | None:
        """States of passages; None where this store cannot keep them."""
        ...

    def readings(self, stage: str) -> Readings:
        """What the retriever of a stage read."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """The calls of this thread inside it are one transaction."""
        ...

    @property
    def location(self) -> str:
        """Where it is, for people: a file, or an address without its password."""
        ...

    def meta(self, name: str) -> str | None:
        """A setting of the index, as `set_meta` wrote it."""
        ...

    def set_meta(self, values: Mapping[str, str]) -> None: ...

    def files(self) -> dict[str, File]:
        """The files by path."""
        ...

    def write(self, changes: Sequence[Change], *, embedder: str | None = None) -> None:
        """Put each file's chunks in place of those that it had.

        embedder: whose vectors they have. Raises StoreError where the store's are another one's by now.
        """
        ...

    def remove(self, paths: Iterable[str]) -> int:
        """Forget files with all that is known of them, uses too. Returns how many chunks went.

        A chunk that one of theirs replaced stays replaced: by what replaced that one, else by itself.
        """
        ...

    def search_text(self, words: Sequence[str], limit: int, only: Filter) -> Found:
        """Ids and BM25 scores of chunks with any of the words, best first."""
        ...

    def search_vectors(self, vector: Vectors, limit: int, only: Filter) -> Found:
        """Ids and cosines of the nearest chunks; vector (C,) has length 1."""
        ...

    def ids(self, path: str) -> list[int]:
        """The ids of a file's chunks, in their order."""
        ...

    def newest(self, only: Filter) -> int | None:
        """The id of the chunk with the latest `created`; None where there is none."""
        ...

    def fetch(self, ids: Sequence[int]) -> list[Stored]:
        """The chunks in the order of the ids; those that are gone meanwhile are left out."""
        ...

    def known_vectors(self, digests: Sequence[bytes]) -> dict[bytes, Vectors]:
        """The vectors of chunks that are in the store already."""
        ...

    def without_vectors(self, limit: int) -> list[Stored]:
        """Chunks that have no vector yet."""
        ...

    def add_vectors(self, ids: Sequence[int], vectors: Vectors, *, embedder: str | None = None) -> None:
        """embedder as of `write`."""
        ...

    def drop_vectors(self) -> None:
        """Forget all vectors, as when another embedder is used."""
        ...

    def supersede(self, old: int, new: int | None) -> None:
        """Mark a chunk as replaced by another one, or as valid again."""
        ...

    def change_fields(self, id: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
        """Replace a chunk's fields by what `change` makes of them, in one step. False where the chunk is gone."""
        ...

    def record(self, events: Sequence[Event]) -> None:
        """Keep uses and rejections."""
        ...

    def fans(self, names: Sequence[str]) -> dict[str, int]:
        """In how many chunks each entity is."""
        ...

    def similarities(self) -> NDArray[np.uint64]:
        """The SimHashes of all chunks."""
        ...

    def add_judgement(self, judgement: Mapping[str, Any]) -> None:
        """Keep what a person thought of a search, for `secondpass feedback --fit`."""
        ...

    def judgements(self) -> list[dict[str, Any]]: ...

    def counts(self) -> Counts: ...

    def finish(self) -> None:
        """Tidy up after many writes, so that searches are fast."""
        ...

    def drop(self) -> None:
        """Remove the whole index, and close."""
        ...

    def close(self) -> None: ...


# The columns of a chunk in an SQL store, and those of which `stored_of` makes what it holds: c is the table of
# chunks, f that of files. entities and fields are JSON, similarity a signed number.
CHUNK_COLUMNS = "heading, text, first_line, last_line, start, stop, digest, similarity, created, entities, fields"
STORED_COLUMNS = "c.id, f.path, c.superseded_by, " + ", ".join(f"c.{name}" for name in CHUNK_COLUMNS.split(", "))


def columns_of(chunk: Chunk) -> tuple[Any, ...]:
    """The values of CHUNK_COLUMNS."""
    similarity = int(np.uint64(chunk.similarity).view(np.int64))
    where = (*chunk.lines, *chunk.span, chunk.digest, similarity, chunk.created)
    return (chunk.heading, chunk.text, *where, as_json(chunk.entities), as_json(chunk.fields))


def stored_of(row: Sequence[Any], accessed: tuple[float, ...]) -> Stored:
    """A chunk of the values of STORED_COLUMNS."""
    id, path, superseded_by, heading, text, first, last, start, stop, digest, similarity, created, names, fields = row
    chunk = Chunk(
        text=text,
        heading=heading,
        lines=(first, last),
        span=(start, stop),
        digest=bytes(digest),
        similarity=int(np.int64(similarity).view(np.uint64)),
        created=created,
        entities=tuple(json.loads(names)),
        fields=json.loads(fields),
    )
    return Stored(id=id, path=path, chunk=chunk, superseded_by=superseded_by, accessed=accessed)


def check_embedder(store: Store, embedder: str | None) -> None:
    """Within a transaction. Raises StoreError where another process has changed the embedder."""
    if embedder is not None and (now := store.meta("embedder")) != embedder:
        raise StoreError(
            f"{store.location}: another process has taken another embedder, {now!r}, meanwhile; "
            "run it again: what was finished is kept"
        )


def words_mark() -> str:
    """Names the rules by which `terms` makes words; an index that was made by others is written anew."""
    return hashlib.blake2b(" ".join(indexed_terms(_PROBE)).encode(), digest_size=8).hexdigest()


def missing(name: str, names: list[str]) -> str:
    """What to say where there is no index of that name."""
    there = f"; there are {', '.join(names)}" if names else ""
    more = "" if name == "default" else f" --name {name}"
    return f"there is no index {name!r}{there}; make it with: secondpass add FOLDER{more}"


def as_json(value: object) -> str:
    return json.dumps(plain(value), ensure_ascii=False)


def plain(value: Any) -> Any:
    """What a record or front matter of somebody else says, as JSON and every database can hold it."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {storable(str(name)): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, int) else str(value)


def storable(text: str) -> str:
    """The text with lone surrogates, which no file can hold, as U+FFFD; its length stays."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
