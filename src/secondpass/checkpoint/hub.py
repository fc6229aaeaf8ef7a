"""Models of a hub: a name resolves to a commit, and what scoring needs of it is fetched whole or not at all.

Files come one by one through hf_hub_download. snapshot_download would fetch them side by side, but it asks the hub a
second time, hands back half a folder without a word where the hub fails, and its errors do not name the file.

The files lie in the cache of huggingface_hub, where other tools find them. Beside them, in the folder `secondpass`
of each model, lies what each commit holds, so that offline it is known what is missing. A branch is noted only when
all files of its commit have passed their checks.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from secondpass.atomic import write_text
from secondpass.checkpoint.layout import INDEX, inside, read_header, settings_of, shard_names, weights_of
from secondpass.errors import CheckpointError, DownloadError
from secondpass.json_file import read_json

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger("secondpass")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RETRY_LATER = frozenset({408, 429, 500, 502, 503, 504})


class Unreachable(DownloadError):
    """The hub did not answer, or not in time."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """What the hub says of a file. Only large files (LFS) have a sha256."""

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a commit of a model holds, and where it lies in the cache."""

    name: str
    commit: str
    files: Mapping[str, RemoteFile]

    @property
    def pin(self) -> str:
        return f"{self.name}@{self.commit}"

    @property
    def folder(self) -> Path:
        return _storage(self.name) / "snapshots" / self.commit


@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """A commit of a model in the cache. Commits share the files that they have in common."""

    name: str
    revision: str
    branches: tuple[str, ...]
    size_bytes: int
    folder: Path


def fetch(name: str, revision: str, *, local_files_only: bool, graph: bool) -> tuple[Path, str]:
    """The folder and the commit of a model at a revision, with all its files there and checked.

    Offline, or where the hub does not answer, the commit that was last fetched whole as this revision.
    """
    from huggingface_hub import constants

    if local_files_only or constants.HF_HUB_OFFLINE:
        return _from_cache(name, revision, graph=graph)
    # A commit never changes, so that what it holds need not be asked twice.
    listing = _remembered(name, revision) if _COMMIT.fullmatch(revision) else None
    try:
        listing = listing or _resolve(name, revision)
    except Unreachable as error:
        try:
            folder, commit = _from_cache(name, revision, graph=graph)
        except DownloadError as missing:
            raise Unreachable(f"{error}; {missing}") from error
        logger.warning("%s; going on with commit %s from the cache", error, commit)
        return folder, commit
    # First what the commit holds, so that a fetch that stops half-way is known to be so; the branch last.
    _write(_note(name, listing.commit), json.dumps({file: asdict(it) for file, it in listing.files.items()}))
    _visit(listing, _download(listing), graph=graph)
    if revision != listing.commit:
        _write(_storage(name) / "refs" / revision, listing.commit)
    return listing.folder, listing.commit


def cached() -> list[CachedModel]:
    """The models in the cache, by name; none where there is no cache yet."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    models = [
        CachedModel(
            name=repository.repo_id,
            revision=commit.commit_hash,
            branches=tuple(sorted(commit.refs)),
            size_bytes=commit.size_on_disk,
            folder=commit.snapshot_path,
        )
        for repository in repositories
        if repository.repo_type == "model"
        for commit in repository.revisions
    ]
    return sorted(models, key=lambda model: (model.name, model.revision))


def _resolve(name: str, revision: str) -> Listing:
    from huggingface_hub import HfApi, constants

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the client's versions stand on transports whose errors have no base in common
        raise _explained(error, f"{name}@{revision}") from error
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise DownloadError(f"{name}@{revision}: {_endpoint()} named no commit; is it a model hub?")
    return Listing(name=name, commit=info.sha, files=_remote_files(info))


def _remote_files(info: ModelInfo) -> dict[str, RemoteFile]:
    return {
        file.rfilename: RemoteFile(size=file.size, sha256=file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
    }


def _visit(listing: Listing, visit: Callable[[list[str]], None], *, graph: bool) -> None:
    """Call `visit` on the small files, then on the weights, whose names an index among the small ones may tell."""
    where = listing.pin
    settings = settings_of(listing.files, where=where)
    weights = weights_of(listing.files, graph=graph, where=where)
    index = [name for name in weights if name.endswith(INDEX)]
    visit(settings + index)
    visit(shard_names(listing.folder / index[0]) if index else weights)


def _download(listing: Listing) -> Callable[[list[str]], None]:
    def download(names: list[str]) -> None:
        absent = [name for name in names if name not in listing.files]
        if absent:
            raise CheckpointError(f"{listing.pin}: its index names {', '.join(absent)}, which it does not hold")
        missing = [name for name in names if _problem(listing, name)]
        _check_room(listing, missing)
        for name in missing:
            _fetch_file(listing, name)

    return download


def _check_room(listing: Listing, names: list[str]) -> None:
    needed = sum(listing.files[name].size or 0 for name in names)
    folder = _storage(listing.name)
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{listing.pin}: needs {_megabytes(needed)}, {folder} has {_megabytes(free)} free;"
            " make room or set HF_HUB_CACHE to another disk"
        )


def _fetch_file(listing: Listing, name: str) -> None:
    """Fetch one file and check it; a file that fails is removed, so that the next try starts anew."""
    from huggingface_hub import constants, hf_hub_download

    # asked anew: another process may have healed it
    if (listing.folder / name).is_file() and _problem(listing, name):
        _remove(listing, name)
    try:
        hf_hub_download(listing.name, name, revision=listing.commit, cache_dir=constants.HF_HUB_CACHE)
    except Exception as error:
        _drop_overlong(listing, name)
        raise _explained(error, listing.pin, file=name, size=listing.files[name].size) from error
    problem = _problem(listing, name) or _digest_problem(listing, name)
    if problem:
        _remove(listing, name)
        raise DownloadError(f"{listing.pin}: came damaged and was removed: {problem}; try again")


def _problem(listing: Listing, name: str) -> str | None:
    """What is wrong with a file in the cache, as far as can be seen without reading all of it."""
    file = inside(listing.folder, name)
    if not file.is_file():
        return f"{name} is missing"
    size, needed = file.stat().st_size, listing.files.get(name, RemoteFile()).size
    if needed is not None and size != needed:
        return f"{name} has {size} bytes of {needed}"
    try:
        if name.endswith(".safetensors"):
            read_header(file)
    except CheckpointError as error:
        return str(error)
    return None


def _digest_problem(listing: Listing, name: str) -> str | None:
    """Some seconds per gigabyte: little beside the download that it follows."""
    expected = listing.files[name].sha256
    if expected is None:
        return None
    digest = hashlib.sha256()
    with (listing.folder / name).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return None if digest.hexdigest() == expected else f"{name} has another sha256 than the hub says"


def _remove(listing: Listing, name: str) -> None:
    """Take a file out of the cache: its blob, and the links to it from this and other commits."""
    link = listing.folder / name
    blob = link.resolve()
    for other in _storage(listing.name).glob("snapshots/*"):
        if (other / name).resolve() == blob:
            (other / name).unlink(missing_ok=True)
    if _storage(listing.name).resolve() in blob.parents:
        blob.unlink(missing_ok=True)


def _drop_overlong(listing: Listing, name: str) -> None:
    """A started download that is longer than the file could never be resumed."""
    remote = listing.files[name]
    if remote.sha256 is None or remote.size is None:
        return
    for part in _storage(listing.name).glob(f"blobs/{remote.sha256}*.incomplete"):
        if part.stat().st_size > remote.size:
            part.unlink(missing_ok=True)


def _from_cache(name: str, revision: str, *, graph: bool) -> tuple[Path, str]:
    pull = f"fetch it online with `secondpass pull {name}@{revision}`"
    commit = _cached_commit(name, revision)
    if commit is None:
        cache = _storage(name).parent
        raise DownloadError(f"{name}@{revision}: no such folder, and not in the cache {cache}; {pull}")
    listing = _remembered(name, commit) or _listing_of_folder(name, commit)
    problems: list[str] = []

    def check(names: list[str]) -> None:
        problems.extend(problem for name in names if (problem := _problem(listing, name)))

    try:
        _visit(listing, check, graph=graph)
    except CheckpointError as error:
        problems = problems or [str(error).removeprefix(f"{listing.pin}: ")]
    if problems:
        raise DownloadError(f"{listing.pin}: not whole in the cache: {', '.join(problems)}; {pull}")
    return listing.folder, commit


def _cached_commit(name: str, revision: str) -> str | None:
    ref = _storage(name) / "refs" / revision
    commit = ref.read_text("utf-8").strip() if ref.is_file() else revision
    is_there = _COMMIT.fullmatch(commit) and (_storage(name) / "snapshots" / commit).is_dir()
    return commit if is_there else None


def _listing_of_folder(name: str, commit: str) -> Listing:
    """Of a commit that another tool fetched, as far as its files tell."""
    folder = _storage(name) / "snapshots" / commit
    files = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return Listing(name=name, commit=commit, files={file: RemoteFile() for file in files})


def _remembered(name: str, commit: str) -> Listing | None:
    note = _note(name, commit)
    if not note.is_file():
        return None
    try:
        files = {file: RemoteFile(**remote) for file, remote in read_json(note).items()}
    except (CheckpointError, TypeError):  # damaged, or of another version: as good as none
        return None
    return Listing(name=name, commit=commit, files=files)


def _write(file: Path, text: str) -> None:
    """Write a note in the cache, at once or not at all."""
    if file.is_file() and file.read_text("utf-8") == text:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except (OSError, CheckpointError) as error:  # a cache that several users share may be read-only
        logger.debug("%s: not written: %s", file, error)


def _note(name: str, commit: str) -> Path:
    return _storage(name) / "secondpass" / f"{commit}.json"


def _storage(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ("models--" + name.replace("/", "--"))


def _explained(error: Exception, pin: str, *, file: str | None = None, size: int | None = None) -> DownloadError:
    """The same failure in words that say what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client tells of its cache first, and hides the reason
    where = f"{pin}: {file}" if file else pin
    status = getattr(getattr(error, "response", None), "status_code", None)
    if getattr(error, "errno", None) == errno.ENOSPC:
        return DownloadError(f"{where}: the disk is full, {_megabytes(size or 0)} are needed; make room, try again")
    if getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM):
        return DownloadError(f"{where}: the cache cannot be written to ({error}); set HF_HUB_CACHE to another folder")
    if "timeout" in type(error).__name__.lower() or "timed out" in str(error):
        hint = "check the connection, or raise HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT (seconds)"
        return Unreachable(f"{where}: {_endpoint()} did not answer in time; {hint}")
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if status is None or status in _RETRY_LATER:
        return Unreachable(f"{where}: not fetched from {_endpoint()} ({reason}); check the connection, try again")
    return DownloadError(f"{where}: {_refusal(error, status, pin) or f'{_endpoint()} answered {status} ({reason})'}")


def _refusal(error: Exception, status: int, pin: str) -> str | None:
    from huggingface_hub import errors

    if status in (401, 403):
        page = f"{_endpoint()}/{pin.partition('@')[0]}"
        return (
            f"{_endpoint()} refused ({status}): there is no such model, or it is private or gated; check the name,"
            f" accept its licence at {page}, then `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "the model has no such revision; a branch, a tag or a commit is needed"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no such folder, and no such model on {_endpoint()}; check the name, or `hf auth login` if it is private"
        )
    return None


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
