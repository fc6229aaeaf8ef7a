"""Files and folders that appear whole or not at all, on whatever the process ends."""

from __future__ import annotations

import gzip
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from secondpass.errors import CheckpointError

# The system's call that exchanges two names: its name, what stands before each path, and its flag.
_EXCHANGE = {"linux": ("renameat2", (-100,), 2), "darwin": ("renamex_np", (), 2)}


def at_home(path: str | Path) -> Path:
    """The path, with ~ and ~user as their folders; where there is no such user it is a name like any other."""
    return Path(os.path.expanduser(path))


# System -> the user's folders of what lasts and of what can be made anew, below the home.
_FOLDERS = {
    "darwin": {"data": "Library/Application Support/secondpass", "cache": "Library/Caches/secondpass"},
    "win32": {"data": "AppData/Local/secondpass", "cache": "AppData/Local/secondpass/cache"},
}
_XDG_FOLDERS = {"data": ("XDG_DATA_HOME", ".local/share"), "cache": ("XDG_CACHE_HOME", ".cache")}


def user_folder(kind: Literal["data", "cache"]) -> Path:
    """Where a user keeps data, or what can be made anew. Raises RuntimeError where there is no home.

    Elsewhere than on macOS and Windows by the XDG Base Directory Specification: of its variables only absolute paths
    count.
    """
    if sys.platform in _FOLDERS:
        return Path.home() / _FOLDERS[sys.platform][kind]
    variable, usual = _XDG_FOLDERS[kind]
    chosen = os.environ.get(variable, "")
    return (Path(chosen) if os.path.isabs(chosen) else Path.home() / usual) / "secondpass"


def lasting(name: str) -> str:
    """The name of a model, good in any current folder; those of packaged models name no folder."""
    if name in ("", "auto", "none", "default", "multilingual") or not at_home(name).is_dir():
        return name
    return os.path.abspath(at_home(name))


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A name to write under; afterwards the file has its own name and is on disk. On an error nothing is left.

    A link's target is replaced, not the link; a pipe or a device is written to as it is. Raises CheckpointError where
    the disk is full or the folder cannot be written to.
    """
    from safetensors import SafetensorError

    is_stream = file.is_fifo() or file.is_char_device() or file.parts[:2] in (("/", "dev"), ("/", "proc"))
    file = file if is_stream else Path(os.path.realpath(file))
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        yield file if is_stream else partial
        if is_stream:
            return
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(file)
        sync_folder(file.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be written ({error}); what was there before is untouched") from error
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which then takes the place of `folder`. On an error nothing of it is left.

    On Linux and macOS one call exchanges the two, so that there is a whole `folder` at any moment; elsewhere the old
    one stands under another name for a moment, and where the process ends just then, the next call brings it back.
    Raises CheckpointError where the disk is full or the folder cannot be written to.
    """
    partial, old = (folder.with_name(f".{folder.name}.{what}-{os.getpid()}") for what in ("partial", "old"))
    try:
        _recover(folder)
        partial.mkdir(parents=True)
        yield partial
        if folder.exists() and not exchanged(partial, folder):
            folder.rename(old)
        if not folder.exists():
            partial.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error}); what was there before is untouched") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def exchanged(first: Path, second: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot."""
    import ctypes

    name, before, flag = _EXCHANGE.get(sys.platform, ("", (), 0))
    call = getattr(ctypes.CDLL(None), name, None) if name else None
    if call is None:
        return False
    return bool(call(*before, os.fsencode(first), *before, os.fsencode(second), flag) == 0)


def _recover(folder: Path) -> None:
    """Give a folder its name back that a process had set aside when it ended."""
    if not folder.exists() and folder.parent.is_dir():
        for old in folder.parent.glob(f".{folder.name}.old-*"):
            old.rename(folder)
            return


def write_text(file: Path, text: str) -> None:
    with whole_file(file) as partial:
        partial.write_text(text, "utf-8")


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Lines, gzipped where the file's name says so."""
    with whole_file(file) as partial:
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(partial, "wt", encoding="utf-8") as stream:
            stream.writelines(line + "\n" for line in lines)


def sync_folder(folder: Path) -> None:
    """Renames in a folder are on disk after this; where folders cannot be opened, as on Windows, nothing is done."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
