"""The dialects that rerank clients speak, and which of them a request is in.

Every route answers with and without "/v1", and below any prefix. A dialect's name as a part of the prefix
("/infinity/rerank") selects it; else the body's signs decide: the name of its documents, then its options, then its
model. A body without any sign is read by the usual dialect of the address, which is Cohere's at /rerank.
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
from secondpass.server.dialects.native import NATIVE
from secondpass.server.dialects.openai import OPENAI
from secondpass.server.dialects.quirks import INFINITY, LLAMACPP, TEI, WEAVIATE
from secondpass.server.dialects.rerank import dialect as by_row
from secondpass.server.dialects.vllm import VLLM
from secondpass.wire.calls import Fault, Refusal

_BY_ROW = ("jina", "voyage", "nim", "mixedbread", "pinecone", "dashscope", "dashscope-compatible", "isaacus")
DIALECTS: tuple[Dialect, ...] = (
    NATIVE, COHERE, LOGITS, TEI, VLLM, INFINITY, LLAMACPP, WEAVIATE, DEEPINFRA, OPENAI, *map(by_row, _BY_ROW),
)  # fmt: skip

MAX_PATH = 2048  # characters

__all__ = ["DIALECTS", "NATIVE", "Candidate", "Dialect", "Reply", "Route", "choose", "find", "usual"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A route that a path may mean, with what the path says in its place of `{model}`."""

    dialect: Dialect
    route: Route
    model: str | None


@lru_cache(maxsize=256)
def find(path: str, method: str = "POST") -> tuple[Candidate, ...]:
    """The routes that a path may mean; the last one is the usual one. HEAD is GET without the body."""
    found = []
    method = "GET" if method == "HEAD" else method
    if len(path) > MAX_PATH:
        return ()
    path = re.sub("//+", "/", path)  # of a base URL that ends in one
    for each in DIALECTS:
        for route in each.routes:
            match = _pattern(route.path).fullmatch(path)
            if match and route.method == method:
                parts = match["prefix"].split("/")
                candidate = Candidate(dialect=each, route=route, model=match.groupdict().get("model"))
                found.append((each.name in parts, _precedence(route.path), candidate))
    best = max((rank for *rank, _ in found), default=None)
    likely = (candidate for *rank, candidate in found if rank == best)
    return tuple(sorted(likely, key=lambda one: (one.route.is_usual, one.dialect.name)))


def usual(path: str, method: str) -> Dialect:
    """The dialect in which a path is refused while nothing is known of the body."""
    candidates = find(path, method) or find(path)
    return candidates[-1].dialect if candidates else DIALECTS[-1]


def choose(path: str, body: Any, headers: Headers, method: str = "POST") -> tuple[Dialect, Route]:
    """Whose request this is. Raises Refusal when no dialect has the path."""
    candidates = find(path, method)
    if not candidates:
        there = ", ".join(sorted({route.documented for dialect in DIALECTS for route in dialect.routes}))
        raise Refusal(Fault.not_found, f"no {method} at {path[:200]}; there are {there}")
    fields = body if isinstance(body, Mapping) else {}
    # Of equal ones the last counts, so that where nothing shows whose a body is, the usual one has it.
    strengths = [candidate.dialect.signs.strength(fields, headers) for candidate in candidates]
    _, chosen = max(zip(strengths, range(len(strengths)), strict=True))
    found = candidates[chosen]
    return found.dialect, _named(found.route, found.model)


def _named(route: Route, model: str | None) -> Route:
    """The route with the path's model as that of a body that has none."""
    parse, write = route.parse, route.write
    if model is None:
        return route
    if parse is None:
        return replace(route, write=lambda answer, call, body: write(answer, call, {"model": model}))
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
