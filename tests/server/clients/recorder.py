"""What clients really sent and got: an ASGI layer that keeps each exchange, and files of them for quick tests."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parents[1] / "dialects" / "recorded"
SIGNS = ("x-pinecone-api-version",)  # headers that tell an API from others at its address
Asgi = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Any]


@dataclass
class Exchange:
    """One request and its answer; bodies are JSON values."""

    method: str
    path: str
    headers: dict[str, str]
    request: Any = None
    status: int = 0
    response_headers: dict[str, str] = field(default_factory=dict)
    response: Any = None


class Recorder:
    """Keeps the exchanges of the application that it wraps."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def wrap(self, app: Asgi) -> Asgi:
        async def recording(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            exchange = Exchange(scope["method"], scope["path"], _headers(scope["headers"]))
            sent, answered = bytearray(), bytearray()

            async def receiving() -> Any:
                message = await receive()
                sent.extend(message.get("body", b""))
                return message

            async def sending(message: Any) -> None:
                if message["type"] == "http.response.start":
                    exchange.status, exchange.response_headers = message["status"], _headers(message["headers"])
                answered.extend(message.get("body", b""))
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    # before it leaves: the client's test goes on as soon as it has the answer
                    exchange.request, exchange.response = _json(sent), _json(answered)
                    self.exchanges.append(exchange)
                await send(message)

            await app(scope, receiving, sending)

        return recording

    def take(self) -> list[Exchange]:
        """The exchanges since the last time."""
        taken, self.exchanges = self.exchanges, []
        return taken


def _headers(raw: Any) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in raw}


def _json(raw: bytearray) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return bytes(raw).decode(errors="replace")


def _client(package: str) -> str:
    """With its version, where it is installed in this environment."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def write(name: str, package: str, dialect: str, exchange: Exchange) -> None:
    """Keep an exchange as recorded/NAME.json."""
    RECORDED.mkdir(exist_ok=True)
    record: dict[str, Any] = {
        "client": _client(package),
        "dialect": dialect,
        "method": exchange.method,
        "path": exchange.path,
        "request": exchange.request,
        "status": exchange.status,
        "response": exchange.response,
    }
    if signs := {name: value for name, value in exchange.headers.items() if name in SIGNS}:
        record["headers"] = signs
    (RECORDED / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
