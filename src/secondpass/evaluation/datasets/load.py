"""Sets from the layouts in which the field publishes them; which one it is, is seen."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from secondpass.atomic import at_home
from secondpass.errors import DataError, NoSuchSplit
from secondpass.evaluation.datasets.beir import is_collection, load_folder
from secondpass.evaluation.datasets.catalogues import CATALOGUES
from secondpass.evaluation.datasets.dataset import LAYOUTS, Dataset
from secondpass.evaluation.datasets.lists import list_files, load_lists


def load_dataset(source: str | Path, *, split: str | None = None, wanted: Container[str] | None = None) -> Dataset:
    """The set in a folder or file, or of a package's catalogue; the layout is recognised.

    split: for a set with several, as "test" or "dev"; None takes the first there is of test, dev, validation, train.
    wanted: names of the only documents to keep, for a corpus that is larger than the memory.
    Raises DataError with file and line, and MissingExtra.
    """
    catalogue, separator, name = str(source).partition(":")
    if separator and catalogue in CATALOGUES:
        return CATALOGUES[catalogue](name, split, wanted)
    path = at_home(source)
    if path.is_dir():
        files = list_files(path, split)
        if is_collection(path) or not list_files(path, None):
            return load_folder(path, split, wanted)
        if not files:
            there = ", ".join(file.name for file in list_files(path, None))
            raise NoSuchSplit(f"{path}: there is {there}; name a split that is there")
        return load_lists(path.resolve().name, files)
    if not path.exists():
        raise DataError(f"{source}: there is no such file or folder; give {LAYOUTS}")
    return load_lists(path.name.split(".")[0], [path])
