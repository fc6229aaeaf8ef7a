"""The web application: the dialects' addresses, the page, health, metrics, the reference, models at run time."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from secondpass.errors import MissingExtra
from secondpass.server.admin import admin_routes
from secondpass.server.api import HttpApi
from secondpass.server.batching import Batch
from secondpass.server.dialects import refusals
from secondpass.server.index import ServedIndex
from secondpass.server.metrics import CONTENT_TYPE, Metrics
from secondpass.server.openapi import describe, reference
from secondpass.server.page import HEADERS, asset
from secondpass.server.security import Gate, Guard, read_keys
from secondpass.server.service import Answering, Service
from secondpass.server.settings import PREFIX, Settings
from secondpass.wire.calls import Fault, Refusal

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer


def create_app(
    service: Answering, settings: Settings | None = None, keys: tuple[str, ...] | None = None
) -> Starlette:
    """The application over a service, which it starts and closes. keys None: of the key file and environment."""
    settings = settings or service.settings
    keys = read_keys(settings, os.environ.get(PREFIX + "API_KEYS")) if keys is None else keys
    metrics = Metrics()

    def on_batch(model: str, batch: Batch) -> None:
        metrics.batch(model, batch)
        metrics.state(service.loads())  # of each worker, whichever is asked for them

    service.on_batch = on_batch

    agents = _agent_server(settings) if settings.mcp else None
    index = None if settings.index is None else ServedIndex(settings.index, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        if index is not None:
            index.start()
        async with nullcontext() if agents is None else agents.session_manager.run():
            yield
        service.close()
        if index is not None:
            index.close()

    api = HttpApi(service, settings, metrics)
    description = describe(
        has_keys=bool(keys),
        has_admin=settings.allow_model_changes,
        has_index=index is not None,
        has_mcp=settings.mcp,
    )
    routes = _own_routes(service, metrics)
    if settings.page:
        routes += [*_page_routes(), *_reference_routes(description)]
    others = {"index": [] if index is None else index.routes(api)}
    if agents is not None:
        others["mcp"] = _agent_routes(agents, api)
    if settings.allow_model_changes:
        assert isinstance(service, Service)  # the settings are refused with any other
        others["admin"] = admin_routes(service, api, settings)
    for kind, found in others.items():
        for route in found:
            route.app = api.watched(route.app, route.path, kind)
            routes.append(route)
    guard = Guard(settings, keys)
    gate = Middleware(Gate, api=api, guard=guard, settings=settings)
    app = Starlette(routes=routes, lifespan=lifespan, middleware=[gate], exception_handlers={405: _not_allowed})
    # What no route has is a dialect's, or refused in its form; a mount would leave out paths with a line end in them.
    app.router.default, app.router.redirect_slashes = api, False
    app.state.service, app.state.metrics, app.state.guard, app.state.index = service, metrics, guard, index
    return app


async def _not_allowed(request: Request, error: Exception) -> Response:
    """Another method than an address of the server's own takes, in the form of its other refusals."""
    assert isinstance(error, HTTPException)
    headers = error.headers or {}
    words = f"no {request.method} at {request.scope['path'][:200]}; it takes {headers.get('Allow', 'others')}"
    reply = refusals.cohere(Refusal(Fault.not_found, words), request.state.request_id)
    return JSONResponse(reply.body, 405, headers=headers)


def _agent_server(settings: Settings) -> MCPServer[Any]:
    """The MCP server over the index of the settings. Raises MissingExtra."""
    try:
        from secondpass.mcp import Tools, make_server
    except ImportError as error:
        raise MissingExtra("mcp", "mcp") from error
    return make_server(Tools(index_name=settings.index or "default", folder=settings.index_folder))


def _agent_routes(agents: MCPServer[Any], api: HttpApi) -> list[Route]:
    from secondpass.mcp import http_routes

    routes = http_routes(agents)
    for route in routes:
        route.app = api.bounded(route.app)
    return routes


def _own_routes(service: Answering, metrics: Metrics) -> list[BaseRoute]:
    async def health(request: Request) -> Response:
        found = service.health()
        status = "ok" if found.is_alive and found.is_ready else "starting" if found.is_alive else "stalled"
        details = asdict(found) if request.state.has_key else {"is_ready": found.is_ready, "is_alive": found.is_alive}
        return JSONResponse({"status": status, **details}, 200 if found.is_alive else 503)

    async def ready(request: Request) -> Response:
        found = service.health()
        return JSONResponse({"ready": found.is_ready}, 200 if found.is_ready else 503)

    async def measured(request: Request) -> Response:
        metrics.state(service.loads())
        return Response(metrics.page(), headers={"content-type": CONTENT_TYPE})

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", measured)]


def _reference_routes(description: dict[str, Any]) -> list[BaseRoute]:
    page = reference(description)

    async def docs(request: Request) -> Response:
        return Response(page, media_type="text/html", headers=dict(HEADERS))

    async def openapi(request: Request) -> Response:
        return JSONResponse(description)

    return [Route("/docs", docs), Route("/openapi.json", openapi)]


def _page_routes() -> list[BaseRoute]:
    async def send_asset(request: Request) -> Response:
        seen = request.scope["raw_path"].decode("latin-1")
        if "name" not in request.path_params and not seen.endswith("/"):  # the page's own addresses are relative
            return RedirectResponse(f"{seen.rpartition('/')[2]}/", 308)
        found = asset(request.path_params.get("name", ""))
        if found is None:
            return JSONResponse({"message": "no such file"}, 404)
        headers = {**HEADERS, "ETag": found.etag}
        if request.headers.get("if-none-match") == found.etag:
            return Response(status_code=304, headers=headers)
        return Response(found.body, media_type=found.media_type, headers=headers)

    return [Route("/", send_asset), Route("/page/{name}", send_asset)]
