"""Which files of a folder are indexed: ignore files are honoured; what is hidden, built or foreign is left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from secondpass.data.files import suffix as suffix_of
from secondpass.search.readers import READERS

IGNORE_FILES = (".gitignore", ".secondpassignore")
SKIPPED = frozenset("node_modules __pycache__ venv env build dist target vendor site-packages".split())
# Names of secrets, which nobody means to search.
SECRETS = ("id_rsa", "id_ed25519", "id_ecdsa", "credentials", "secrets")
BEIR_CORPUS = ("corpus.jsonl", "corpus.jsonl.gz")


def files_in(path: Path) -> Iterator[Path]:
    """The files that are read at a path: itself when it is a file, the corpus of a BEIR folder, else all below.

    Symbolic links that leave the folder, or lead to a folder, are not followed, so that loops cannot be.
    """
    if path.is_file():
        yield path
        return
    corpora = [path / name for name in BEIR_CORPUS if (path / name).is_file()]
    if corpora:
        yield corpora[0]
        return
    yield from _below(path.resolve(), path.resolve(), [])


def _below(folder: Path, root: Path, specs: list[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    specs = [*specs, *_specs_in(folder)]
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return  # it went, or is not for us to read
    for entry in entries:
        path = folder / entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if entry.name.startswith(".") or _is_ignored(path, specs, is_folder=is_folder):
            continue
        if is_folder:
            if entry.name not in SKIPPED:
                yield from _below(path, root, specs)
        elif _is_readable(entry, path, root):
            yield path


def _specs_in(folder: Path) -> Iterator[tuple[Path, GitIgnoreSpec]]:
    for name in IGNORE_FILES:
        try:
            lines = (folder / name).read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        yield folder, GitIgnoreSpec.from_lines(lines)


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
        return target.is_file() and target.is_relative_to(root)
    return entry.is_file(follow_symlinks=False)
