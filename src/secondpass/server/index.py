"""A served index: search, get, update and feedback over HTTP, with the keys and limits of the whole server.

No request names a file to read: search and get answer from what is in the index, and update reads the folders that
`secondpass add` was given, and no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from secondpass.search.index import Index
from secondpass.search.pipeline import document_of
from secondpass.server.admin import refusing
from secondpass.server.body import read_body
from secondpass.server.json_body import parsed
from secondpass.server.settings import Settings
from secondpass.types import Hit
from secondpass.wire.calls import Fault, Refusal

MAX_RESULTS = 100
# The fields of a search, and their JSON types.
SEARCH: Mapping[str, tuple[type, ...]] = {
    "query": (str,),
    "top_n": (int,),
    "path": (str, type(None)),
    "since": (str, int, float, type(None)),
    "until": (str, int, float, type(None)),
    "language": (str, type(None)),
    "fields": (dict, type(None)),
    "cognitive": (bool, dict, type(None)),
    "diversity": (str, type(None)),
    "explain": (bool,),
    "sentences": (bool,),
    "budget_ms": (int, float, type(None)),
}
FEEDBACK: Mapping[str, tuple[type, ...]] = {"query": (str,), "id": (int,), "kind": (str,)}
Work = Callable[[Index, Mapping[str, Any]], Any]


def index_routes(settings: Settings) -> list[BaseRoute]:
    """POST /v1/index/search, get, update and feedback of the index that the settings name."""
    if settings.index is None:
        return []
    index = Index(settings.index, folder=settings.index_folder)

    def route(name: str, fields: Mapping[str, tuple[type, ...]], work: Work) -> Route:
        async def answered(request: Request) -> Response:
            body = await _body(request, settings, fields)
            return JSONResponse(await asyncio.to_thread(work, index, body))

        return Route(f"/v1/index/{name}", refusing(answered), methods=["POST"])

    return [
        route("search", SEARCH, _search),
        route("get", {"id": (int,)}, _get),
        route("update", {}, _update),
        route("feedback", FEEDBACK, _feedback),
    ]


def _search(index: Index, body: Mapping[str, Any]) -> dict[str, Any]:
    top_n = body.get("top_n", 5)
    if not 1 <= top_n <= MAX_RESULTS:
        raise ValueError(f"top_n is {top_n}; give 1 to {MAX_RESULTS}")
    options = {name: value for name, value in body.items() if name not in ("query", "top_n", "sentences")}
    ranking = index.search(body["query"], top_n, **options)
    results = [_object(hit) for hit in ranking]
    if body.get("sentences", False):
        for result, hit in zip(results, ranking, strict=True):
            result["sentence"] = index.winning_sentence(ranking.query, hit)
    return {"query": ranking.query, "usage": asdict(ranking.usage), "results": results}


def _get(index: Index, body: Mapping[str, Any]) -> dict[str, Any]:
    stored = index.get(body["id"])
    fields = document_of(stored).fields
    shown = {name: fields[name] for name in ("id", "heading", "line", "last_line")}
    return {**shown, "file": stored.path, "text": stored.chunk.text}


def _update(index: Index, body: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(index.update())


def _feedback(index: Index, body: Mapping[str, Any]) -> dict[str, Any]:
    """The search is run again, so that the figures of what was shown are kept with the judgement."""
    ranking = index.search(body["query"], MAX_RESULTS)
    hit = next((hit for hit in ranking if hit.index == body["id"]), None)
    if hit is None:
        raise ValueError(f"{body['id']} is not among what is found for this query; give the id of a result")
    index.feedback(ranking, hit, body["kind"])
    return {"recorded": body["kind"]}


def _object(hit: Hit) -> dict[str, Any]:
    fields = dict(hit.document.fields)
    return {
        "id": hit.index,
        "score": hit.score if hit.is_scored else None,
        "probability": hit.probability if hit.is_scored else None,
        "file": fields.pop("path"),
        "heading": fields.pop("heading"),
        "line": fields.pop("line"),
        "last_line": fields.pop("last_line"),
        "text": hit.document.text,
        "fields": fields,
        "parts": None if hit.parts is None else dict(hit.parts),
    }


async def _body(request: Request, settings: Settings, fields: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """The body with known fields of the right types; "query" and "id" are needed where they are fields."""
    raw = await read_body(
        request.receive, request.headers, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
    )
    body = await parsed(raw or b"{}", max_depth=settings.max_depth)
    if not isinstance(body, dict):
        raise Refusal(Fault.malformed, "the body is no object; send a JSON object")
    for name, value in body.items():
        if name not in fields:
            raise Refusal(
                Fault.invalid, f"there is no field {name[:40]!r}; there are {', '.join(fields)}", parameter=name[:40]
            )
        if not isinstance(value, fields[name]) or (isinstance(value, bool) and bool not in fields[name]):
            raise Refusal(Fault.invalid, f"{name} is a {type(value).__name__}, which it cannot be", parameter=name)
    for name in ("query", "id", "kind"):
        if name in fields and not body.get(name):
            raise Refusal(Fault.invalid, f"{name} is missing", parameter=name)
    return body
