"""Admin: models loaded and unloaded while the server runs, where the settings allow it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from secondpass.errors import SecondpassError
from secondpass.server.api import CLOSED, HttpApi, failed
from secondpass.server.body import Disconnected
from secondpass.server.dialects import refusals
from secondpass.server.json_body import parsed
from secondpass.server.service import Service
from secondpass.server.settings import ModelSource, Settings, SettingsError, model_of
from secondpass.wire.calls import Fault, Refusal

Endpoint = Callable[[Request], Awaitable[Response]]


def admin_routes(service: Service, api: HttpApi, settings: Settings) -> list[Route]:
    """GET and POST /admin/models, DELETE /admin/models/NAME."""

    async def models(request: Request) -> Response:
        if request.method != "POST":
            return JSONResponse({"models": [asdict(card) for card in service.models()]})
        async with api.body(request.receive, request.headers) as raw:
            source = _source(await parsed(raw, max_depth=settings.max_depth))
        card = await service.load(source)
        return JSONResponse(asdict(card), 201)

    async def unload(request: Request) -> Response:
        name = request.path_params["name"]
        await service.unload(name)
        return JSONResponse({"unloaded": name})

    def told(endpoint: Endpoint) -> Endpoint:
        return refusing(endpoint, prefix="the model cannot be loaded: ", parameter="path")

    return [
        Route("/admin/models", told(models), methods=["GET", "POST"]),
        Route("/admin/models/{name:path}", told(unload), methods=["DELETE"]),
    ]


def _source(body: Any) -> ModelSource:
    """The model that is asked for. Raises Refusal."""
    if not isinstance(body, dict) or not isinstance(body.get("name"), str) or not body["name"]:
        raise Refusal(Fault.malformed, "the body needs a name and a path", parameter="name")
    options = {key: value for key, value in body.items() if key != "name"}
    try:
        return model_of(body["name"], options, "body")
    except SettingsError as error:
        raise Refusal(Fault.malformed, str(error)) from error


def refusing(endpoint: Endpoint, *, prefix: str = "", parameter: str | None = None) -> Endpoint:
    """The endpoint, with refusals and errors as answers.

    An error that is no refusal is told behind `prefix`, as of `parameter`.
    """

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Refusal as refusal:
            found = refusal
        except (SecondpassError, ValueError) as error:
            found = Refusal(Fault.invalid, f"{prefix}{error}", parameter=parameter)
        except Disconnected:
            return Response(status_code=CLOSED)
        except Exception:  # a bug, or a disk that is full: the client gets a clean answer, the log the trace
            found = failed(request.state.request_id)
        request.state.refusal = found
        reply = refusals.cohere(found, request.state.request_id)
        return JSONResponse(reply.body, reply.status, headers=dict(reply.headers))

    return answered
