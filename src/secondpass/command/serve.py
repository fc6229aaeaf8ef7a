"""`secondpass serve`: settings from everywhere, then a server until it is stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from secondpass.errors import MissingExtra, WrongUse

if TYPE_CHECKING:
    from secondpass.server.settings import ModelSource

PACKAGES = ("starlette", "pydantic", "uvicorn", "httptools", "prometheus_client")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What to serve, as `path` or `name=path`: the model of the argument, more rerankers, embedders."""

    model: str | None
    models: Sequence[str]
    embedders: Sequence[str]


def serve(sources: Sources, *, config: str | None, given: Mapping[str, Any], more: Sequence[str]) -> int:
    """Serve until told to stop; the exit code. more has settings as name=value. Raises WrongUse for a bad one."""
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingExtra(package, "serve")
    from secondpass.server import workers as running
    from secondpass.server.security import check_exposure, read_keys
    from secondpass.server.settings import PREFIX, SettingsError, load_settings, parse_settings

    try:
        named = {"models": _models(sources), **given}
        named = {name: value for name, value in named.items() if value is not None}
        settings = load_settings({**parse_settings(more), **named}, os.environ, config)
        keys = read_keys(settings, os.environ.get(PREFIX + "API_KEYS"))
        check_exposure(settings, keys)
    except SettingsError as error:
        raise WrongUse(str(error)) from error

    def say(port: int) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        scheme = "https" if settings.tls_certificate else "http"
        sys.stdout.write(greeting(f"{scheme}://{host}:{port}{settings.root_path}", has_keys=bool(keys)))
        sys.stdout.flush()

    return running.run(settings, keys, say)


def _models(sources: Sources) -> tuple[ModelSource, ...] | None:
    from secondpass.server.settings import model_source

    rerankers = ([sources.model] if sources.model else []) + list(sources.models)
    found = [model_source(text) for text in rerankers]
    found += [replace(model_source(text), kind="embedder") for text in sources.embedders]
    return tuple(found) or None


def greeting(url: str, *, has_keys: bool) -> str:
    """Where the server is, and a line that shows that it works."""
    key = ' -H "Authorization: Bearer $KEY"' if has_keys else ""
    body = '{"query": "who wrote Faust?", "documents": ["Goethe wrote it.", "Bread is baked."]}'
    return (
        f"secondpass serves at {url}\n"
        f"try: curl {url}/v1/rerank{key} -H 'Content-Type: application/json' -d '{body}'\n"
    )
