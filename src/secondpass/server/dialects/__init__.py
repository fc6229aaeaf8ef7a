"""The dialects that rerank clients speak, one file each, and which of them a request is in.

Every route answers with and without "/v1", and below any prefix. A dialect's name as a part of the prefix
("/infinity/rerank") selects it; else the body decides, and what is nobody else's is Cohere's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from secondpass.server.dialects.cohere import COHERE, LOGITS
from secondpass.server.dialects.deepinfra import DEEPINFRA
from secondpass.server.dialects.dialect import Dialect, Headers, Reply, Route
from secondpass.server.dialects.infinity import INFINITY
from secondpass.server.dialects.jina import JINA
from secondpass.server.dialects.llamacpp import LLAMACPP
from secondpass.server.dialects.native import NATIVE
from secondpass.server.dialects.nim import NIM
from secondpass.server.dialects.openai import OPENAI
from secondpass.server.dialects.tei import TEI
from secondpass.server.dialects.vllm import VLLM
from secondpass.server.dialects.voyage import VOYAGE
from secondpass.wire.calls import Fault, Refusal

# In the order in which they may claim a body; where none does, the last one that has the path answers.
DIALECTS: tuple[Dialect, ...] = (
    NATIVE, OPENAI, DEEPINFRA, NIM, LLAMACPP, TEI, INFINITY, VOYAGE, VLLM, JINA, LOGITS, COHERE,
)  # fmt: skip

MAX_PATH = 2048  # characters

__all__ = ["DIALECTS", "Candidate", "Dialect", "Reply", "Route", "choose", "find"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A route that a path may mean, with what the path says in its place of `{model}`."""

    dialect: Dialect
    route: Route
    model: str | None


@lru_cache(maxsize=256)
def find(path: str, method: str = "POST") -> tuple[Candidate, ...]:
    """The routes that a path may mean, in the order in which they may claim a body; the last one is the usual one."""
    found = []
    if len(path) > MAX_PATH:
        return ()
    path = re.sub("//+", "/", path)  # of a base URL that ends in one
    for dialect in DIALECTS:
        for route in dialect.routes:
            match = _pattern(route.path).fullmatch(path)
            if match and route.method == method:
                parts = match["prefix"].split("/")
                candidate = Candidate(dialect=dialect, route=route, model=match.groupdict().get("model"))
                found.append((dialect.name in parts, _precedence(route.path), candidate))
    best = max((rank for *rank, _ in found), default=None)
    return tuple(candidate for *rank, candidate in found if rank == best)


def choose(path: str, body: Any, headers: Headers, method: str = "POST") -> tuple[Dialect, Route]:
    """Whose request this is. Raises Refusal when no dialect has the path."""
    candidates = find(path, method)
    if not candidates:
        there = ", ".join(sorted({route.documented for dialect in DIALECTS for route in dialect.routes}))
        raise Refusal(Fault.not_found, f"no {method} at {path[:200]}; there are {there}")
    fields = body if isinstance(body, Mapping) else {}
    chosen = next((one for one in candidates if one.dialect.claims(fields, headers)), candidates[-1])
    return chosen.dialect, _named(chosen.route, chosen.model)


def _named(route: Route, model: str | None) -> Route:
    """The route with the path's model as that of a body that has none."""
    parse = route.parse
    if model is None or parse is None:
        return route
    return replace(route, parse=lambda body, headers: parse(_with_model(body, model), headers))


def _with_model(body: Any, model: str) -> Any:
    return {**body, "model": model} if isinstance(body, dict) and body.get("model") is None else body


@cache
def _pattern(path: str) -> re.Pattern[str]:
    tail = re.escape(path).replace(r"\{model\}", r"(?P<model>[^/]+(?:/[^/]+)*?)")
    return re.compile(rf"(?P<prefix>(?:/[^/]+)*?)(?:/v1)?{tail}/?")


def _precedence(path: str) -> tuple[bool, int]:
    """The longer tail before the shorter, "/v2/rerank" before "/rerank"; one that ends in any name last."""
    return not path.endswith("}"), len(path)
