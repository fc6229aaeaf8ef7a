"""Where indexes are kept: a folder of SQLite files, or a database that is named by its address."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from secondpass.atomic import at_home, user_folder
from secondpass.errors import StoreError
from secondpass.search.stores.sqlite import SqliteStore
from secondpass.search.stores.store import Store, missing

SUFFIX = ".sqlite"
POSTGRES = ("postgresql", "postgres")  # schemes of addresses
LANCE, LANCE_SUFFIX = "lancedb", ".lancedb"


def open_store(name: str, folder: str | Path | None, *, create: bool) -> Store:
    """The store of an index. Raises StoreError where there is none and it shall not be made, and MissingExtra."""
    scheme = _scheme(folder)
    if scheme in POSTGRES:
        from secondpass.search.stores.postgres import PostgresStore

        return PostgresStore(str(folder), name, create=create)
    if scheme not in ("", LANCE):
        raise StoreError(
            f"{scheme}://...: indexes are kept in a folder, at lancedb:///folder or at postgresql://user@host/database"
        )
    file = _folder(folder) / (f"{name}{LANCE_SUFFIX}/index{SUFFIX}" if scheme else f"{name}{SUFFIX}")
    if not create and not file.exists():
        raise StoreError(missing(name, index_names(folder)))
    if not scheme:
        return SqliteStore(file)
    from secondpass.search.stores.lance import LanceVectors

    return SqliteStore(file, LanceVectors(file.parent))


def index_names(folder: str | Path | None = None) -> list[str]:
    """The indexes that there are."""
    if _scheme(folder) in POSTGRES:
        from secondpass.search.stores.postgres_database import index_names

        return index_names(str(folder))
    suffix = LANCE_SUFFIX if _scheme(folder) else SUFFIX
    return sorted(file.name.removesuffix(suffix) for file in _folder(folder).glob(f"*{suffix}"))


def _folder(folder: str | Path | None) -> Path:
    """A folder as given, that of lancedb:///folder too, else the user's of this machine."""
    if folder is not None:
        return at_home(str(folder).removeprefix(f"{LANCE}://"))
    return user_folder("data")


def _scheme(folder: str | Path | None) -> str:
    text = "" if folder is None else str(folder)
    return urlsplit(text).scheme if "://" in text else ""
