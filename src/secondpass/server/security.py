"""Gate: the outermost layer. Names each request, checks who sends it, and answers in the right form who may not."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from secondpass.server import dialects
from secondpass.server.api import Api, Scope, Send, begin, send_reply
from secondpass.server.body import Receive
from secondpass.server.dialects import Reply
from secondpass.server.settings import Settings, SettingsError, is_loopback, networks
from secondpass.wire.calls import Fault, Refusal

Headers = Mapping[str, str]  # names in lower case
# Where clients put their key, beside `Authorization: Bearer`.
KEY_HEADERS = ("x-api-key", "api-key")
PORTS = {"http": 80, "https": 443}
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def read_keys(settings: Settings, listed: str | None) -> tuple[str, ...]:
    """Keys of the file, one a line, and of `listed`, by commas. Raises SettingsError for a file without any."""
    keys = [key.strip() for key in (listed or "").split(",") if key.strip()]
    if settings.api_key_file is not None:
        file = Path(settings.api_key_file)
        try:
            lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise SettingsError(f"{file}: the keys cannot be read: {error}") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise SettingsError(f"{file}: no key in it; write one on a line of its own")
        keys += found
    return tuple(dict.fromkeys(keys))


def check_exposure(settings: Settings, keys: Iterable[str]) -> None:
    """Raises SettingsError where anyone on a network could use the server, or change its models, without a key."""
    if any(keys):
        return
    if not settings.is_loopback and not settings.insecure:
        raise SettingsError(
            f"host {settings.host} is reached from other machines and there is no key; give --api-key-file, "
            "set SECONDPASS_API_KEYS, or say --insecure"
        )
    if settings.allow_model_changes:
        raise SettingsError("allow_model_changes needs a key; give --api-key-file or set SECONDPASS_API_KEYS")


class Guard:
    """Checks one request by its headers."""

    def __init__(self, settings: Settings, keys: Iterable[str] = ()) -> None:
        # Of one length, so that the comparison says nothing about a key's length either.
        self._keys = [_digest(key) for key in keys]
        self._proxies = networks(settings.trusted_proxies)
        self._origins = {origin.rstrip("/").lower() for origin in settings.cors_origins}
        named = {host.lower() for host in settings.allowed_hosts}
        self._hosts = named or (set(LOOPBACK_NAMES) if settings.is_loopback else {"*"})

    def check_place(self, headers: Headers, scheme: str, peer: str) -> None:
        """Raises Refusal for a Host that is not this server's, and for pages of other origins.

        scheme is the connection's, peer the address at its other end.
        """
        host = headers.get("host", "")
        name = _host_name(host)
        if "*" not in self._hosts and name not in self._hosts and not self._is_local(name):
            raise Refusal(
                Fault.forbidden,
                f"Host {host[:100]!r} is not served here; add it with --allowed-host",
                parameter="host",
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers, scheme, peer) and not self.allows_origin(origin):
            raise Refusal(
                Fault.forbidden, f"pages of {origin[:100]!r} may not call; allow them with --cors-origin",
                parameter="origin",
            )  # fmt: skip

    def check_key(self, headers: Headers) -> None:
        """Raises Refusal where there are keys and none of them is given."""
        if not self._keys:
            return
        given = _given_key(headers)
        if given is None:
            raise Refusal(Fault.unauthorized, "no API key; send it as Authorization: Bearer KEY")
        digest = _digest(given)
        # All are compared, so that the time does not say which.
        if not any([hmac.compare_digest(digest, key) for key in self._keys]):
            raise Refusal(Fault.unauthorized, "the API key is not valid")

    def allows_origin(self, origin: str) -> bool:
        return origin.rstrip("/").lower() in self._origins

    def cors_headers(self, headers: Headers) -> dict[str, str]:
        """What lets a page of an allowed origin read the answer."""
        origin = headers.get("origin")
        if origin is None or not self.allows_origin(origin):
            return {}
        asked = headers.get("access-control-request-headers", "authorization, content-type")
        return {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": asked,
            "access-control-expose-headers": "x-request-id, retry-after",
            "vary": "Origin",
        }

    def _is_local(self, name: str) -> bool:
        """Another spelling of loopback, which no name server can point elsewhere."""
        return self._hosts >= set(LOOPBACK_NAMES) and is_loopback(name)

    def _is_own(self, origin: str, headers: Headers, scheme: str, peer: str) -> bool:
        """Whether a page is this server's: scheme, name and port are those by which the browser reached it."""
        if self._is_proxy(peer):
            scheme = _forwarded_scheme(headers) or scheme
        own = f"{scheme}://{headers.get('host', '')}"
        return _place(own) is not None and _place(origin) == _place(own)

    def _is_proxy(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._proxies)


def _forwarded_scheme(headers: Headers) -> str | None:
    """What the first proxy says of the scheme that it was called by. RFC 7239, and the header that came before it.

    The host that a proxy may say beside it is left alone: a page whose name was changed to this machine's address
    could send that too, and so pass for one of this server's.
    """
    first = headers.get("forwarded", "").partition(",")[0]
    pairs = (pair.strip().partition("=") for pair in first.split(";"))
    said = next((value.strip('"') for name, _, value in pairs if name.lower() == "proto"), "")
    said = (said or headers.get("x-forwarded-proto", "").partition(",")[0]).strip().lower()
    return said if said in PORTS else None


def _place(origin: str) -> tuple[str, str, int] | None:
    """Scheme, name and port of an origin; None for what is no http or https one."""
    try:
        parts = urlsplit(origin)
        port = parts.port or PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def _given_key(headers: Headers) -> str | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    return next((headers[name].strip() for name in KEY_HEADERS if headers.get(name)), None)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host_name(host: str) -> str:
    """The name of `name:port` or `[address]:port`, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
PUBLIC = ("/", "/health", "/ready", "/docs", "/openapi.json", "/favicon.ico")


class Gate:
    """Wraps the whole application. scope["state"] gets request_id, headers (lower case) and started."""

    def __init__(self, app: Asgi, *, api: Api, guard: Guard, settings: Settings) -> None:
        self.app, self.api, self.guard, self.settings = app, api, guard, settings
        self._public = {*PUBLIC, "/metrics"} if settings.public_metrics else set(PUBLIC)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = _request_id(headers)
        scope["state"] = {
            **scope.get("state", {}), "headers": headers, "request_id": request_id, "started": time.perf_counter()
        }  # fmt: skip
        scope["path"] = self._inner(scope["path"])
        scope["root_path"] = ""
        send = _with_headers(send, {"x-request-id": request_id, **self.guard.cors_headers(headers)})
        try:
            peer, _ = scope.get("client") or ("", 0)
            self.guard.check_place(headers, scope["scheme"], peer)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await send_reply(send, Reply(body=None, status=204), request_id)
                return
            if not self._is_public(scope["method"], scope["path"]):
                self.guard.check_key(headers)
        except Refusal as refusal:
            exchange = begin(scope)
            exchange.refusal = refusal
            await self.api.finish(exchange, exchange.dialect.refuse(refusal, request_id), send)
            return
        await self.app(scope, receive, send)

    def _inner(self, path: str) -> str:
        """The path without the prefix that a proxy leaves in it, and without a slash at its end."""
        prefix = self.settings.root_path.rstrip("/")
        if prefix and (path + "/").startswith(prefix + "/"):
            path = path[len(prefix) :]
        return path.rstrip("/") or "/"

    def _is_public(self, method: str, path: str) -> bool:
        if method not in ("GET", "HEAD"):
            return False
        if path in self._public or path.startswith("/page/"):
            return True
        found = dialects.find(path, "GET")
        return bool(found) and found[-1].route.kind == "health"


def _request_id(headers: Mapping[str, str]) -> str:
    """The caller's, where it is harmless, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in raw if pair[0] not in there)]
        await send(message)

    return sending
