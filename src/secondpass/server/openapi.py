"""The OpenAPI description of every address, from the dialects' own models, and a page that shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from secondpass import __version__
from secondpass.server.dialects import DIALECTS, Dialect, Route, find
from secondpass.server.index import BODIES
from secondpass.wire.apis import APIS

REF = "#/components/schemas/"
REFUSED = {
    "4XX": {
        "description": "Refused; the body is as the dialect's clients read it. Retry-After may say when to retry."
    },
    "5XX": {"description": "Not done. Retry-After may say when to try again."},
}
OWN = {
    "/health": ("Whether the server works; 503 when an engine is stuck.", "application/json"),
    "/ready": ("200 when every model is loaded, else 503.", "application/json"),
    "/metrics": ("Prometheus metrics.", "text/plain"),
}


def describe(
    *, has_keys: bool = False, has_admin: bool = False, has_index: bool = False, has_mcp: bool = False
) -> dict[str, Any]:
    """The description as a JSON value, OpenAPI 3.1."""
    models = [*_models(), *BODIES.values()] if has_index else _models()
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=REF + "{model}")
    components: dict[str, Any] = {"schemas": schemas.get("$defs", {})}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "secondpass",
            "version": __version__,
            "description": "Rerankers in the APIs that rerank clients speak. Every address also answers with and "
            "without /v1, and below any prefix; a dialect's name as a prefix selects it.",
        },
        "paths": {path: _operations(routes) for path, routes in sorted(_by_path().items())},
        "components": components,
    }
    found["paths"] |= {path: _own(*words) for path, words in OWN.items()}
    if has_admin:
        found["paths"] |= _admin()
    if has_index:
        found["paths"] |= {
            f"/v1/index/{name}": _posted(f"{name.title()} (index)", _any([BODIES[name]])) for name in BODIES
        }
    if has_mcp:
        found["paths"] |= {"/mcp": _posted("Model Context Protocol: tools for agents.", {"type": "object"})}
    if has_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def reference(description: Mapping[str, Any]) -> str:
    """The description as a page; it loads nothing but the server's own style sheet."""
    parts = [
        f"<section><h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
        + _fields(operation, description)
        + "</section>"
        for path, operations in description["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>secondpass: API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="page/mark.svg" type="image/svg+xml">'
        '<link rel="stylesheet" href="page/page.css"></head><body><main class="reference"><h1>API</h1>'
        f"<p>{escape(description['info']['description'])} "
        '<a href="openapi.json">openapi.json</a></p><p>Keys go into <code>Authorization: Bearer KEY</code>, '
        "<code>X-API-Key</code> or <code>Api-Key</code>.</p>" + _clients() + "".join(parts) + "</main></body></html>"
    )


def _clients() -> str:
    """Whose clients find which address, and what their scores are."""
    rows = "".join(
        f"<tr><td>{escape(api.title)}</td><td><code>{escape(', '.join(api.served or (api.path,)))}</code></td>"
        f"<td>{'both' if api.probability else escape(api.gives)}</td></tr>"
        for api in APIS.values()
    )
    head = "<thead><tr><th>Clients of</th><th>Address</th><th>Score</th></tr></thead>"
    return f"<table>{head}<tbody>{rows}</tbody></table>"


def _by_path() -> dict[str, list[tuple[Dialect, Route]]]:
    """The routes of each documented address: those of its own, then others that it answers by the body."""
    found: dict[str, list[tuple[Dialect, Route]]] = {}
    for dialect in DIALECTS:
        for route in dialect.routes:
            found.setdefault(route.documented, []).append((dialect, route))
    for path, routes in found.items():
        for method in {route.method for _, route in routes}:
            likely = ((each.dialect, each.route) for each in find(path.replace("{model}", "model"), method))
            routes += [each for each in likely if each not in routes]
    return {path: routes for path, routes in found.items() if path not in OWN}


def _models() -> list[type[BaseModel]]:
    every = (model for dialect in DIALECTS for route in dialect.routes for model in _of(route))
    return list(dict.fromkeys(every))


def _of(route: Route) -> Iterable[type[BaseModel]]:
    return (model for model in (route.request_model, route.response_model) if model is not None)


def _operations(routes: Sequence[tuple[Dialect, Route]]) -> dict[str, Any]:
    """One operation per method; dialects that share an address are alternatives."""
    found: dict[str, Any] = {}
    for method in dict.fromkeys(route.method for _, route in routes):
        mine = [(dialect, route) for dialect, route in routes if route.method == method]
        operation: dict[str, Any] = {
            "summary": f"{mine[0][1].kind.title()} ({', '.join(dialect.title for dialect, _ in mine)})",
            "responses": {"200": _response(mine), **REFUSED},
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                for name in ["model"] * ("{model}" in mine[0][1].documented)
            ],
        }
        requests = [route.request_model for _, route in mine if route.request_model is not None]
        if requests:
            operation["requestBody"] = _body(_any(requests))
        found[method.lower()] = operation
    return found


def _response(routes: Sequence[tuple[Dialect, Route]]) -> dict[str, Any]:
    models = [route.response_model for _, route in routes if route.response_model is not None]
    if not models:
        return {"description": "Done; the body is empty."}
    return {"description": "Done.", "content": {"application/json": {"schema": _any(models)}}}


def _any(models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    refs = [{"$ref": REF + name} for name in dict.fromkeys(model.__name__ for model in models)]
    return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _body(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _done(media_type: str = "application/json") -> dict[str, Any]:
    return {"description": "Done.", "content": {media_type: {}}}


def _own(words: str, media_type: str) -> dict[str, Any]:
    return {"get": {"summary": words, "responses": {"200": _done(media_type), **REFUSED}}}


def _posted(words: str, schema: Mapping[str, Any], status: str = "200") -> dict[str, Any]:
    return {"post": {"summary": words, "requestBody": _body(schema), "responses": {status: _done(), **REFUSED}}}


def _admin() -> dict[str, Any]:
    source = {
        "type": "object",
        "required": ["name", "path"],
        "properties": {name: {"type": "string"} for name in ("name", "path", "kind", "revision", "engine", "dtype")},
    }
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "/admin/models": _posted("Load a model.", source, "201"),
        "/admin/models/{name}": {
            "delete": {"summary": "Unload a model.", "parameters": [name], "responses": {"200": _done(), **REFUSED}}
        },
    }


def _fields(operation: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    """The fields of each request body that the address takes."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    parts = []
    for each in content.get("anyOf", [content] if content else []):
        name = each.get("$ref", "").removeprefix(REF)
        schema = description["components"]["schemas"].get(name, each)
        needed = set(schema.get("required", ()))
        rows = "".join(
            f"<li><code>{escape(field)}</code>: {escape(_type(kind))}{' (needed)' if field in needed else ''}</li>"
            for field, kind in schema.get("properties", {}).items()
        )
        words = escape(" ".join(schema.get("description", "").split()))
        parts.append(f"<h3>{escape(name or 'Body')}</h3><p>{words}</p><ul>{rows}</ul>")
    return "".join(parts)


def _type(schema: Mapping[str, Any]) -> str:
    """What a field is, in words."""
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", schema.get("$ref", "any value").removeprefix(REF)))
