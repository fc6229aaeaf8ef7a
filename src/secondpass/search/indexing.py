"""Files into a store: what is new or changed is read, cut, embedded and committed, a few files at a time.

A file's chunks replace its old ones in one transaction, together with their words and vectors, so that ending the
process at any moment leaves what was committed and nothing half. Two processes may index at once: each commits whole
files, and the later one wins with the same content.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from secondpass.colbert.maxsim import unit
from secondpass.data.files import suffix
from secondpass.embedder import Embedder
from secondpass.errors import DataError, MissingExtra
from secondpass.retrieval.vectors import TextEmbedder
from secondpass.search.chunking import chunks, lines_of
from secondpass.search.features import digest_of, entities_of, near_duplicates, similarity_of
from secondpass.search.folder import files_in, is_below
from secondpass.search.formats import FORMATS
from secondpass.search.pages import Page
from secondpass.search.pipeline import StateReader
from secondpass.search.readers import read
from secondpass.search.stores.store import (
    STAGES,
    Change,
    Chunk,
    File,
    PassageStates,
    Readings,
    Retriever,
    Store,
    Vectors,
    plain,
    storable,
)
from secondpass.text.languages import language_code, language_of
from secondpass.types import Progress

COMMITTED = 512  # chunks in a transaction, at least, unless there are no more
EMBEDDED = 64  # chunks that an embedder gets at a time
SAMPLED_FILES, SAMPLED_PAGES = 16, 16  # to see what script they are in; a record of JSON Lines is a page

Read = dict[str, dict[bytes, bytes]]  # readings by stage and the texts' digests


@dataclass(kw_only=True)
class IndexReport:
    """What indexing did, in files; failed says why. chunks are those that are new, embedded those that needed it.

    states: texts whose states were made; readings: of retrievers, of each text one for each.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    chunks: int = 0
    embedded: int = 0
    states: int = 0
    readings: int = 0
    near_duplicates: int = 0
    seconds: float = 0.0
    failed: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Indexing:
    """A store, the embedder that makes its vectors, and what makes its states and readings.

    Without them there are words alone. embedder: its name in the store; where another process changes that meanwhile
    StoreError is raised, so that all vectors are of one model.
    """

    store: Store
    encoder: TextEmbedder | None = None
    embedder: str | None = None
    reader: StateReader | None = None
    retrievers: Sequence[Retriever] = ()

    def begin(self) -> None:
        """Keep what these retrievers read, from now on, and nothing of others."""
        stages = {retriever.stage: retriever.mark for retriever in self.retrievers}
        for stage in STAGES:
            if stage in stages:
                self.store.readings(stage).begin(stages[stage])
            else:
                self.store.readings(stage).drop()

    def update(
        self, roots: Sequence[Path], *, left_out: Sequence[str] = (), progress: Progress | None = None
    ) -> IndexReport:
        """Bring the store up to what lies at the roots: files and folders. Those that went are forgotten.

        What is below a folder that cannot be looked into stays, and what was below a root that is empty now: a disk
        may be unplugged. left_out: paths below a root that are not read.
        """
        started = time.perf_counter()
        report, known = IndexReport(), self.store.files()
        unread = list[tuple[Path, str]]()
        there = {
            str(file): root
            for root in roots
            for file in files_in(root, unread)
            if not any(is_below(file, path) and root in Path(path).parents for path in left_out)
        }
        unread = [each for each in unread if str(each[0]) not in known or not each[0].parent.is_dir()]  # a file went
        filled = {file.root for file in known.values()}
        unread += [(root, "it is empty") for root in roots if str(root) in filled and _is_empty(root)]
        for folder, why in unread:
            is_known = any(is_below(path, folder) for path in known)
            kept = f"; what was read there is kept until: secondpass remove {folder}" if is_known else ""
            report.failed.append((str(folder), f"cannot be looked into: {why}{kept}"))
        ours = {path for path, file in known.items() if file.root in set(map(str, roots))}
        gone = [path for path in sorted(ours - there.keys()) if not any(is_below(path, each) for each, _ in unread)]
        report.removed = len(gone)
        if gone:
            self.store.remove(gone)
        asked = self._changed(there, known, report)
        for batch in _batches(self._changes(asked, report, progress)):
            self._commit(batch, report)
            del batch  # of a large file it takes hundreds of megabytes
        self.complete(report, progress)
        report.seconds = time.perf_counter() - started
        return report

    def complete(self, report: IndexReport, progress: Progress | None = None) -> None:
        """Make what is missing of vectors, states and readings, and tidy up."""
        self.fill(report, progress)
        if self.reader is not None and self.store.states is not None and self.reader.states_mark is not None:
            report.states += self._fill_read(self.store.states, self.reader.states_mark, self.reader.states, progress)
        for retriever, readings in self._readings():
            report.readings += self._fill_read(readings, retriever.mark, retriever.read, progress)
        if report.chunks or report.changed or report.removed or report.embedded or report.readings:
            self.store.finish()
            for retriever, readings in self._readings():
                readings.tidy(retriever)
            report.near_duplicates = int(near_duplicates(self.store.similarities()).sum())

    def add(self, file: File, made: Sequence[Chunk]) -> None:
        """Put chunks that are of no file into the store, under the file's path."""
        self._commit([Change(file=file, chunks=made)], IndexReport())
        for retriever, readings in self._readings():
            if retriever.source is not self.encoder:
                values = retriever.read([chunk.passage for chunk in made])
                readings.add(retriever.mark, dict(zip((chunk.digest for chunk in made), values, strict=True)))

    def _changed(
        self, there: dict[str, Path], known: dict[str, File], report: IndexReport
    ) -> list[tuple[Path, Path, File | None]]:
        """The files that are new, or not as they were by size, time and then content."""
        found: list[tuple[Path, Path, File | None]] = []
        for path, root in there.items():
            before = known.get(path)
            try:
                facts = Path(path).stat()
            except OSError:
                continue  # it went just now
            if before and (before.size, before.modified_ns) == (facts.st_size, facts.st_mtime_ns):
                report.unchanged += 1
            else:
                found.append((Path(path), root, before))
        return found

    def _changes(
        self, asked: Sequence[tuple[Path, Path, File | None]], report: IndexReport, progress: Progress | None
    ) -> Iterator[Change]:
        for done, (path, root, before) in enumerate(asked):
            if progress is not None:
                progress(done, len(asked))
            try:
                if storable(str(path)) != str(path):
                    raise DataError(f"its name is not in UTF-8, {path.name!a}; give it another one")
                file = _file(path, root)
                if before and before.digest == file.digest:
                    report.unchanged += 1
                    continue
                yield _change(file, path, report)
            except (DataError, MissingExtra) as error:
                report.failed.append((storable(str(path)), str(error)))
                continue
            except OSError as error:
                report.failed.append((str(path), f"cannot be read: {error.strerror or error}"))
                continue
            report.added += before is None
            report.changed += before is not None
        if progress is not None and asked:
            progress(len(asked), len(asked))

    def _commit(self, changes: Sequence[Change], report: IndexReport) -> None:
        made = [chunk for change in changes for chunk in change.chunks]
        vectors, read = self._vectors(made, report)
        written = [Change(file=each.file, chunks=each.chunks, vectors=vectors) for each in changes]
        self.store.write(written, embedder=self._named)
        self._keep(read, report)
        report.chunks += len(made)

    def _vectors(self, made: Sequence[Chunk], report: IndexReport) -> tuple[dict[bytes, Vectors], Read]:
        """Unit vectors of the chunks by their digests; those of chunks that are in the store are not made again.

        Of a file with very many chunks only those: the others follow in `fill`, with a commit every so often.
        """
        if self.encoder is None or not made:
            return {}, {}
        known = self.store.known_vectors([chunk.digest for chunk in made])
        missing = list({chunk.digest: chunk for chunk in made if chunk.digest not in known}.values())
        if len(missing) > 4 * COMMITTED:
            return known, {}
        rows, read = self._encoded(self.encoder, missing)
        report.embedded += len(missing)
        return known | dict(zip((chunk.digest for chunk in missing), rows, strict=True)), read

    def _encoded(self, encoder: TextEmbedder, made: Sequence[Chunk]) -> tuple[list[Vectors], Read]:
        """Unit vectors of chunks, and what retrievers whose model the embedder is read in the same pass."""
        sharing = [each for each in self._readings() if each[0].source is encoder]
        rows: list[Vectors] = []
        read: Read = {retriever.stage: {} for retriever, _ in sharing}
        for start in range(0, len(made), EMBEDDED):
            part = made[start : start + EMBEDDED]
            passages = [chunk.passage for chunk in part]
            if not sharing:
                rows += list(unit(encoder.encode(passages, kind="document")))
                continue
            assert isinstance(encoder, Embedder)
            embedded = encoder.embed(passages, "document", ("dense", *read))
            rows += list(unit(embedded.dense))
            for retriever, _ in sharing:
                values = retriever.values(embedded)
                read[retriever.stage] |= dict(zip((chunk.digest for chunk in part), values, strict=True))
        return rows, read

    def _keep(self, read: Read, report: IndexReport) -> None:
        for retriever, readings in self._readings():
            if values := read.get(retriever.stage):
                readings.add(retriever.mark, values)
                report.readings += len(values)

    def fill(self, report: IndexReport, progress: Progress | None = None) -> None:
        """Vectors for chunks that have none, as after the embedder was changed."""
        if self.encoder is None:
            return
        counts, done = self.store.counts(), 0
        while missing := self.store.without_vectors(COMMITTED):
            if progress is not None:
                progress(done, max(done + len(missing), counts.chunks - counts.vectors))
            done += len(missing)
            rows, read = self._encoded(self.encoder, [each.chunk for each in missing])
            self.store.add_vectors([each.id for each in missing], np.asarray(rows), embedder=self._named)
            self._keep(read, report)
            report.embedded += len(missing)

    @property
    def _named(self) -> str | None:
        """The embedder whose vectors are written; None where there are none."""
        return None if self.encoder is None else self.embedder

    def _readings(self) -> list[tuple[Retriever, Readings]]:
        """The retrievers with what is kept of them."""
        return [(retriever, self.store.readings(retriever.stage)) for retriever in self.retrievers]

    def _fill_read(
        self,
        kept: PassageStates | Readings,
        mark: str,
        read: Callable[[Sequence[str]], list[bytes]],
        progress: Progress | None,
    ) -> int:
        """What is read of the chunks' texts, for those of which it is not kept. Returns of how many."""
        missing = kept.missing(mark)
        for start in range(0, len(missing), EMBEDDED):
            if progress is not None:
                progress(start, len(missing))
            found = [each.chunk for each in self.store.fetch(missing[start : start + EMBEDDED])]
            made = read([chunk.passage for chunk in found])
            kept.add(mark, dict(zip((chunk.digest for chunk in found), made, strict=True)))
        return len(missing)


def sampled(roots: Iterable[Path]) -> Iterator[str]:
    """Some of the text of some files at the roots."""
    files = [file for root in roots for file in files_in(root)]
    for file in files[:: len(files) // SAMPLED_FILES + 1]:
        with suppress(DataError, MissingExtra, OSError):
            for page in islice(read(file), SAMPLED_PAGES):
                yield page.text


def _is_empty(root: Path) -> bool:
    try:
        return not any(root.iterdir())
    except OSError:
        return False


def _file(path: Path, root: Path) -> File:
    with path.open("rb") as stream:
        digest = hashlib.blake2b(digest_size=16)
        while block := stream.read(1 << 20):
            digest.update(block)
        facts = path.stat()
    return File(
        path=str(path),
        root=str(root),
        digest=digest.hexdigest(),
        size=facts.st_size,
        modified_ns=facts.st_mtime_ns,
    )


def _change(file: File, path: Path, report: IndexReport) -> Change:
    """The file with its chunks; a document in which nothing can be found is reported, and not read again."""
    made = _chunks(str(path), read(path))
    if not made and suffix(path) in FORMATS:
        report.failed.append((str(path), "has no text, as a scan has none; nothing in it will be found"))
    return Change(file=file, chunks=made)


def _chunks(path: str, pages: Iterable[Page]) -> list[Chunk]:
    found: list[Chunk] = []
    for page in pages:
        whole, known = storable(page.text), plain(page.fields)
        line_numbers = lines_of(whole)
        fields: dict[str, Mapping[str, Any]] = {}  # by language, so that chunks share them
        for piece in chunks(whole, page.kind):
            heading = storable(piece.heading(page.title or Path(path).name))
            text = whole[piece.start : piece.stop]
            language = "" if page.kind == "code" else language_of(text)
            found.append(
                Chunk(
                    text=text,
                    heading=heading,
                    lines=page.file_lines(*line_numbers(piece.start, piece.stop)),
                    span=(piece.start, piece.stop),
                    digest=digest_of(heading, text),
                    similarity=similarity_of(text),
                    created=page.created,
                    entities=entities_of(text, known),
                    fields=fields.setdefault(language, _with_language(known, language)),
                )
            )
    return found


def _with_language(fields: Mapping[str, Any], language: str) -> Mapping[str, Any]:
    """The fields with the language, which "language" or "lang" of a file or a record says better than its words."""
    known = fields.get("language") or fields.get("lang") or language
    return {**fields, "language": language_code(known) if isinstance(known, str) else known} if known else fields


def _batches(changes: Iterable[Change]) -> Iterator[list[Change]]:
    batch: list[Change] = []
    for change in changes:
        batch.append(change)
        if sum(len(each.chunks) for each in batch) >= COMMITTED:
            yield batch
            batch = []
    if batch:
        yield batch
