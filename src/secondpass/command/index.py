"""`secondpass add`, `update`, `collections` and `remove`: what is indexed."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from secondpass.command import output
from secondpass.command.flags import Json, wrong_use
from secondpass.command.plain import argument, option
from secondpass.errors import MissingExtra, StoreError, WrongUse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from secondpass.search.index import Index
    from secondpass.search.indexing import IndexReport

MAX_FAILURES_SHOWN = 5
LOOK_MS = 1000  # how often it is seen whether folders have come or gone
DEBOUNCE_MS = 1500  # after a change, so that what an editor writes in several steps is read once

Folder = Annotated[
    str | None,
    option(
        envvar="SECONDPASS_INDEXES",
        help="Where indexes are kept; else your data folder. Or postgresql://..., lancedb:///FOLDER.",
    ),
]
Paths = Annotated[list[str], argument(metavar="PATH", help="Files and folders.")]


@dataclass(frozen=True, kw_only=True)
class IndexLocation:
    """Which index, and where indexes are."""

    name: Annotated[str, option(help="Of the index.")] = "default"
    folder: Folder = None

    def open(
        self,
        *,
        embedder: str | None = None,
        reranker: str | None = None,
        keeps_states: bool | None = None,
        retrievers: Retrievers | None = None,
        create: bool = False,
    ) -> Index:
        from secondpass.search.index import Index

        with wrong_use():
            return Index(
                self.name,
                folder=self.folder,
                embedder=embedder,
                reranker=reranker,
                keeps_states=keeps_states,
                retrievers=None if retrievers is None else retrievers.asked,
                create=create,
            )


@dataclass(frozen=True, kw_only=True)
class Retrievers:
    """First stages beside words and vectors."""

    sparse: Annotated[
        str | None,
        option(
            metavar="MODEL", help="Search by its sparse weights too, as BAAI/bge-m3 has them; none; else as before."
        ),
    ] = None
    colbert: Annotated[
        str | None,
        option(metavar="MODEL", help="Search by its token vectors too (ColBERT, BGE-M3); none; else as before."),
    ] = None

    @property
    def asked(self) -> dict[str, str | None]:
        given = {"sparse": self.sparse, "colbert": self.colbert}
        return {stage: None if model == "none" else model for stage, model in given.items() if model is not None}


Embedder = Annotated[
    str | None,
    option(
        metavar="MODEL", help="auto (embedded, by script), multilingual, none, a folder or a name; else as before."
    ),
]


def add(
    paths: Paths,
    *,
    location: IndexLocation,
    retrievers: Retrievers,
    embedder: Embedder = None,
    states: Annotated[
        bool | None,
        option(
            "--states/--no-states",
            help="Keep what the embedded reranker reads of each chunk: faster first questions, some 140 kB a chunk.",
        ),
    ] = None,
    watch: Annotated[bool, option("--watch", help="Go on, and follow changes until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Index files and folders, so that `secondpass search` finds what is in them.

    Reads text, Markdown, code, HTML, EPUB, notebooks, JSON Lines, lists in JSON and BEIR corpora; with the extra
    `search` also PDF, docx and e-mail. What .gitignore and .secondpassignore name, and what is hidden, is left out.
    Running it again reads only what changed; ending it at any moment keeps what was done. The exit code is 1 where
    something that was named itself, and not with its folder, is left out.
    """
    from secondpass.search.folder import placed
    from secondpass.search.stores.store import storable

    with wrong_use():
        places = [(path, placed(path)) for path in paths]
    for path, place in places:
        if not place.exists():
            raise WrongUse(f"{path}: there is no such file or folder")
    index = location.open(embedder=embedder, reranker="auto", keeps_states=states, retrievers=retrievers, create=True)
    with wrong_use(), output.watched("indexing") as progress:
        report = index.add(*paths, progress=progress)
    _show(index, report, is_json=json)
    if watch:
        _watch(index)
    named = {storable(str(place)) for _, place in places}
    if any(path in named for path, _ in report.failed):
        raise SystemExit(1)


def update(
    *,
    location: IndexLocation,
    retrievers: Retrievers,
    embedder: Embedder = None,
    watch: Annotated[bool, option("--watch", help="Go on, and follow changes until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Bring an index up to what its files and folders now hold."""
    index = location.open(embedder=embedder, reranker="auto", retrievers=retrievers)
    with wrong_use(), output.watched("indexing") as progress:
        report = index.update(progress=progress)
    _show(index, report, is_json=json)
    if watch:
        _watch(index)


def collections(
    *,
    name: Annotated[str | None, option(help="Of one index, to list it alone.")] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """List the indexes: name, files, chunks, size, embedder and folders.

    One that is damaged is named and left out; the exit code is then 1.
    """
    from secondpass.search.index import Index
    from secondpass.search.stores.open import index_names

    status, is_whole = [], True
    for listed in index_names(folder) if name is None else [name]:
        try:
            with wrong_use():
                status.append(Index(listed, folder=folder).status())
        except StoreError as error:
            sys.stderr.write(f"{error}\n")
            is_whole = False
    if json:
        output.as_json([asdict(each) for each in status])
    elif sys.stdout.isatty():
        for each in status:
            size = f"{output.counted(each.files, 'file')}, {output.counted(each.chunks, 'chunk')}"
            size += f", {each.bytes / 1e6:.1f} MB, embedder {each.embedder}"
            size += "".join(f", {stage} {model}" for stage, model in each.retrievers.items())
            output.named_values([(each.name, size), *(("", root) for root in each.roots)])
        if not status and is_whole:
            sys.stderr.write("there are no indexes yet; make one with: secondpass add FOLDER\n")
    else:
        output.tab_separated(
            [s.name, s.files, s.chunks, s.vectors, s.bytes, s.embedder, " ".join(s.roots)] for s in status
        )
    if not is_whole:
        raise SystemExit(1)


def remove(
    paths: Annotated[list[str] | None, argument(metavar="PATH", help="Files and folders; none with --all.")] = None,
    *,
    location: IndexLocation,
    all: Annotated[bool, option("--all", help="The whole index, with its file.")] = False,
) -> None:
    """Forget files or folders of an index, or all of it. The files themselves stay."""
    if bool(paths) == all:
        raise WrongUse("name the files and folders to forget, or give --all for the whole index")
    index = location.open()
    if not all:
        with wrong_use():
            sys.stderr.write(f"{output.counted(index.remove(*(paths or [])), 'chunk')} forgotten\n")
        return
    index.store.drop()
    sys.stderr.write(f"the index {index.name} is gone\n")


def _show(index: Index, report: IndexReport, *, is_json: bool) -> None:
    if is_json:
        output.as_json({"status": asdict(index.status()), "report": asdict(report)})
        return
    status = index.status()
    changes = [
        f"{count} {what}"
        for count, what in (
            (report.added, "added"),
            (report.changed, "changed"),
            (report.removed, "removed"),
            (report.unchanged, "unchanged"),
        )
        if count
    ]
    sys.stderr.write(
        f"{status.name}: {', '.join(changes) or 'no files'}; {output.counted(status.files, 'file')}, "
        f"{output.counted(status.chunks, 'chunk')}, {status.bytes / 1e6:.1f} MB; {report.seconds:.1f} s\n"
    )
    if report.near_duplicates:
        said = "chunk says" if report.near_duplicates == 1 else "chunks say"
        sys.stderr.write(f"{report.near_duplicates} {said} nearly the same as another; one of each is shown\n")
    if status.embedder == "none":
        sys.stderr.write("no embedder: chunks are found by their words alone\n")
    for path, why in report.failed[:MAX_FAILURES_SHOWN]:
        sys.stderr.write(f"left out: {why if why.startswith(path) else f'{path}: {why}'}\n")
    if len(report.failed) > MAX_FAILURES_SHOWN:
        sys.stderr.write(f"... and {len(report.failed) - MAX_FAILURES_SHOWN} more; --json lists them\n")


def _watch(index: Index) -> None:
    try:
        import watchfiles
    except ImportError as error:
        raise MissingExtra("watchfiles", "search") from error
    from secondpass.search.indexing import IndexReport

    if not index.roots:
        raise WrongUse(f"{index.name} has no files or folders to watch; add some")
    sys.stderr.write("watching; Ctrl-C ends it\n")
    while True:
        roots, is_new = _there(index), True
        changed = watchfiles.watch(
            *roots, debounce=DEBOUNCE_MS, rust_timeout=LOOK_MS, yield_on_timeout=True, raise_interrupt=True
        )
        for changes in _while_there(changed):
            report = index.update() if changes or is_new else IndexReport()
            if report.added or report.changed or report.removed or (changes and report.failed):
                sys.stderr.write(time.strftime("%H:%M:%S "))
                _show(index, report, is_json=False)
            is_new = False
            # An editor that writes by renaming has put another file in the place of the one that is watched.
            if (changes and any(map(os.path.isfile, roots))) or _there(index) != roots:
                break


def _while_there(changed: Iterator[Collection[object]]) -> Iterator[Collection[object]]:
    """What changed; the end where a root is not there, which went after it had been seen."""
    try:
        yield from changed
    except FileNotFoundError:
        time.sleep(LOOK_MS / 1000)  # whoever asks looks again


def _there(index: Index) -> list[str]:
    return [root for root in index.roots if os.path.exists(root)]
