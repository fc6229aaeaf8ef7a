"""Which files of a folder are indexed: ignore files are honoured; what is hidden, built or foreign is left out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from secondpass.atomic import at_home
from secondpass.data.files import PASSAGE_NAMES
from secondpass.data.files import suffix as suffix_of
from secondpass.search.readers import READERS

IGNORE_FILES = (".gitignore", ".secondpassignore")
SKIPPED = frozenset("node_modules __pycache__ venv env build dist target vendor site-packages".split())
# Names of secrets, which nobody means to search.
SECRETS = ("id_rsa", "id_ed25519", "id_ecdsa", "credentials", "secrets")
_RECORDS = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*\[\s*\{.*\"(?:%s)\"\s*:|\x1f\x8b" % "|".join(PASSAGE_NAMES).encode(), re.DOTALL
)  # or gzipped
_BEGINNING = 8192  # bytes that tell what a JSON file is
BEIR_CORPUS = ("corpus.jsonl", "corpus.jsonl.gz")
BEIR_QUERIES = ("queries.jsonl", "queries.jsonl.gz")


def placed(path: str | Path) -> Path:
    """The path under which a file or folder is kept: absolute, through no links but that of a file itself.

    Raises ValueError for an empty name, as of a variable that is not set, which would be the current folder.
    """
    if path == "":
        raise ValueError("a path is empty; name a file or folder, the current one as .")
    asked = Path(os.path.abspath(at_home(path)))
    if asked.is_dir():
        return Path(os.path.realpath(asked))
    return Path(os.path.realpath(asked.parent)) / asked.name


def is_below(path: str | Path, folder: str | Path) -> bool:
    """Whether a path is a folder or anything in it."""
    return Path(path) == Path(folder) or Path(folder) in Path(path).parents


def files_in(path: Path, unread: list[tuple[Path, str]] | None = None) -> Iterator[Path]:
    """The files that are read at a path: itself when it is a file, the corpus of a BEIR folder, else all below.

    Symbolic links that leave the folder, or lead to a folder, are not followed, so that loops cannot be. unread gets
    the folders that could not be looked into, and why: what is below them may still be there.
    """
    unread = [] if unread is None else unread
    if path.is_file():
        yield path
        return
    corpora = [path / name for name in BEIR_CORPUS if (path / name).is_file()]
    if corpora and any((path / name).is_file() for name in BEIR_QUERIES):
        yield corpora[0]
        return
    root = placed(path)
    yield from _below(root, root, [], unread)


def _below(
    folder: Path, root: Path, specs: list[tuple[Path, GitIgnoreSpec]], unread: list[tuple[Path, str]]
) -> Iterator[Path]:
    specs = [*specs, *_specs_in(folder)]
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if folder == root or not isinstance(error, FileNotFoundError):  # else it went just now
            unread.append((folder, error.strerror or str(error)))
        return
    for entry in entries:
        path = folder / entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if entry.name.startswith(".") or _is_ignored(path, specs, is_folder=is_folder):
            continue
        if is_folder:
            if entry.name not in SKIPPED:
                yield from _below(path, root, specs, unread)
        elif _is_readable(entry, path, root):
            yield path


def _specs_in(folder: Path) -> Iterator[tuple[Path, GitIgnoreSpec]]:
    for name in IGNORE_FILES:
        file = folder / name
        try:
            lines = file.read_text("utf-8", "replace").splitlines() if file.is_file() else []  # no pipe, which waits
        except OSError:
            continue
        yield folder, GitIgnoreSpec.from_lines(line for line in lines if _is_pattern(line))


def _is_pattern(line: str) -> bool:
    """Whether git could mean anything by it; what it could not, it passes over too."""
    try:
        GitIgnoreSpec.from_lines([line])
    except (ValueError, re.error):
        return False
    return True


def _is_ignored(path: Path, specs: list[tuple[Path, GitIgnoreSpec]], *, is_folder: bool) -> bool:
    ignored = False
    for folder, spec in specs:
        said = spec.check_file(path.relative_to(folder).as_posix() + ("/" if is_folder else "")).include
        ignored = ignored if said is None else said
    return ignored


def _is_readable(entry: os.DirEntry[str], path: Path, root: Path) -> bool:
    if suffix_of(path) not in READERS or path.stem.lower() in SECRETS:
        return False
    if entry.is_symlink():
        target = Path(os.path.realpath(path))  # Path.resolve raises for links that lead in a circle
        is_there = target.is_relative_to(root) and os.path.isfile(target)  # Path.is_file raises for some
    else:
        is_there = entry.is_file(follow_symlinks=False)
    return is_there and (suffix_of(path) != ".json" or _holds_records(path))


def _holds_records(path: Path) -> bool:
    """Whether a JSON file is a list of objects with texts, as far as its beginning tells; others are settings."""
    try:
        with path.open("rb") as stream:
            return bool(_RECORDS.match(stream.read(_BEGINNING)))
    except OSError:
        return True  # whoever reads it says why it cannot be read
