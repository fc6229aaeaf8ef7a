"""The page at `/`: its files, and the headers that they are sent with. Nothing in it comes from outside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath

INDEX = "index.html"
MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file of the page; etag changes with its content."""

    body: bytes
    media_type: str
    etag: str


@cache
def asset_names() -> frozenset[str]:
    """The files of the page that may be sent."""
    return frozenset(
        file.name for file in files(__name__).iterdir() if PurePosixPath(file.name).suffix in MEDIA_TYPES
    )


@cache
def _read(name: str) -> Asset:
    body = (files(__name__) / name).read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:16]
    return Asset(body=body, media_type=MEDIA_TYPES[PurePosixPath(name).suffix], etag=f'"{digest}"')


def asset(name: str = "") -> Asset | None:
    """A file of the page by its name, the page itself for "", or None."""
    name = name or INDEX
    return _read(name) if name in asset_names() else None
