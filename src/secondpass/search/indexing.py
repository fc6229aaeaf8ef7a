"""Files into a store: what is new or changed is read, cut, embedded and committed, a few files at a time.

A file's chunks replace its old ones in one transaction, together with their words and vectors, so that ending the
process at any moment leaves what was committed and nothing half. Two processes may index at once: each commits whole
files, and the later one wins with the same content.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from secondpass.colbert.maxsim import unit
from secondpass.errors import DataError, MissingExtra
from secondpass.retrieval.vectors import TextEmbedder
from secondpass.search.chunking import chunks, lines_of
from secondpass.search.features import digest_of, entities_of, language_of, near_duplicates, similarity_of
from secondpass.search.folder import files_in
from secondpass.search.pages import Page
from secondpass.search.pipeline import StateReader
from secondpass.search.readers import read
from secondpass.search.stores.store import Change, Chunk, File, Store, Vectors
from secondpass.types import Progress

COMMITTED = 512  # chunks in a transaction, at least, unless there are no more
EMBEDDED = 64  # chunks that an embedder gets at a time


@dataclass(kw_only=True)
class IndexReport:
    """What indexing did, in files; failed says why. chunks are those that are new, embedded those that needed it.

    states: texts whose states were made.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    chunks: int = 0
    embedded: int = 0
    states: int = 0
    near_duplicates: int = 0
    seconds: float = 0.0
    failed: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Indexing:
    """A store, the embedder that makes its vectors, and what makes its states; without, there are words alone."""

    store: Store
    encoder: TextEmbedder | None = None
    reader: StateReader | None = None

    def update(self, roots: Sequence[Path], *, progress: Progress | None = None) -> IndexReport:
        """Bring the store up to what lies at the roots: files and folders. Those that went are forgotten."""
        started = time.perf_counter()
        report, known = IndexReport(), self.store.files()
        there = {str(file): root for root in roots for file in files_in(root)}
        ours = {path for path, file in known.items() if file.root in set(map(str, roots))}
        gone = sorted(ours - there.keys())
        report.removed = len(gone)
        if gone:
            self.store.remove(gone)
        asked = self._changed(there, known, report)
        for batch in _batches(self._changes(asked, report, progress)):
            self._commit(batch, report)
            del batch  # of a large file it takes hundreds of megabytes
        self.fill(report, progress)
        self._fill_states(report, progress)
        if report.chunks or report.removed or report.embedded:
            self.store.finish()
            report.near_duplicates = int(near_duplicates(self.store.similarities()).sum())
        report.seconds = time.perf_counter() - started
        return report

    def add(self, file: File, made: Sequence[Chunk]) -> None:
        """Put chunks that are of no file into the store, under the file's path."""
        self._commit([Change(file=file, chunks=made)], IndexReport())

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
                file = _file(path, root)
                if before and before.digest == file.digest:
                    report.unchanged += 1
                    continue
                yield Change(file=file, chunks=_chunks(str(path), read(path)))
            except (DataError, MissingExtra) as error:
                report.failed.append((str(path), str(error)))
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
        vectors = self._vectors(made, report)
        self.store.write([Change(file=each.file, chunks=each.chunks, vectors=vectors) for each in changes])
        report.chunks += len(made)

    def _vectors(self, made: Sequence[Chunk], report: IndexReport) -> dict[bytes, Vectors]:
        """Unit vectors of the chunks by their digests; those of chunks that are in the store are not made again.

        Of a file with very many chunks only those: the others follow in `fill`, with a commit every so often.
        """
        if self.encoder is None or not made:
            return {}
        known = self.store.known_vectors([chunk.digest for chunk in made])
        missing = list({chunk.digest: chunk for chunk in made if chunk.digest not in known}.values())
        if len(missing) > 4 * COMMITTED:
            return known
        for start in range(0, len(missing), EMBEDDED):
            part = missing[start : start + EMBEDDED]
            rows = unit(self.encoder.encode([chunk.passage for chunk in part], kind="document"))
            known |= dict(zip((chunk.digest for chunk in part), rows, strict=True))
        report.embedded += len(missing)
        return known

    def fill(self, report: IndexReport, progress: Progress | None = None) -> None:
        """Vectors for chunks that have none, as after the embedder was changed."""
        if self.encoder is None:
            return
        counts, done = self.store.counts(), 0
        while missing := self.store.without_vectors(COMMITTED):
            if progress is not None:
                progress(done, max(done + len(missing), counts.chunks - counts.vectors))
            done += len(missing)
            rows = [
                unit(self.encoder.encode([each.chunk.passage for each in part], kind="document"))
                for part in (missing[at : at + EMBEDDED] for at in range(0, len(missing), EMBEDDED))
            ]
            self.store.add_vectors([each.id for each in missing], np.concatenate(rows))
            report.embedded += len(missing)

    def _fill_states(self, report: IndexReport, progress: Progress | None) -> None:
        """States for the chunks that have none."""
        mark = None if self.reader is None else self.reader.states_mark
        if self.reader is None or self.store.states is None or mark is None:
            return
        missing = self.store.states.missing(mark)
        for start in range(0, len(missing), EMBEDDED):
            if progress is not None:
                progress(start, len(missing))
            found = [each.chunk for each in self.store.fetch(missing[start : start + EMBEDDED])]
            states = self.reader.states([chunk.passage for chunk in found])
            self.store.states.add(mark, dict(zip((chunk.digest for chunk in found), states, strict=True)))
            report.states += len(found)


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


def _chunks(path: str, pages: Iterable[Page]) -> list[Chunk]:
    found: list[Chunk] = []
    for page in pages:
        whole = _storable(page.text)
        line_numbers = lines_of(whole)
        fields: dict[str, Mapping[str, Any]] = {}  # by language, so that chunks share them
        for piece in chunks(whole, page.kind):
            heading = _storable(piece.heading(page.title or Path(path).name))
            text = whole[piece.start : piece.stop]
            first, last = line_numbers(piece.start, piece.stop)
            language = "" if page.kind == "code" else language_of(text)
            found.append(
                Chunk(
                    text=text,
                    heading=heading,
                    lines=(first + page.first_line - 1, last + page.first_line - 1),
                    span=(piece.start, piece.stop),
                    digest=digest_of(heading, text),
                    similarity=similarity_of(text),
                    created=page.created,
                    entities=entities_of(text, page.fields),
                    fields=fields.setdefault(language, _with_language(page.fields, language)),
                )
            )
    return found


def _with_language(fields: Mapping[str, Any], language: str) -> Mapping[str, Any]:
    """The fields with the language, which "language" or "lang" of a file or a record says better than its words."""
    known = fields.get("language") or fields.get("lang") or language
    return {**fields, "language": known} if known else fields


def _storable(text: str) -> str:
    """The text with lone surrogates, which no file can hold, as U+FFFD; its length stays."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _batches(changes: Iterable[Change]) -> Iterator[list[Change]]:
    batch: list[Change] = []
    for change in changes:
        batch.append(change)
        if sum(len(each.chunks) for each in batch) >= COMMITTED:
            yield batch
            batch = []
    if batch:
        yield batch
