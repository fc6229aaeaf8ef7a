"""Who may ask: the outermost layer. It names each request, checks it by its head, and refuses in the dialect's form.

In this order: a head that could be read in two ways, the Host, the Origin, the key. Starlette's middlewares for hosts
and for other origins answer in plain text, and know neither loopback's spellings nor the dialects' errors.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from secondpass.server.api import WARNINGS, HttpApi, Scope, Send, begin, send_reply
from secondpass.server.body import Receive
from secondpass.server.dialects import Reply
from secondpass.server.page import asset_names
from secondpass.server.settings import Settings, SettingsError, is_loopback, networks
from secondpass.wire.calls import Fault, Refusal

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Mapping[str, str]  # names in lower case
# Where clients put their key, beside `Authorization: Bearer`.
KEY_HEADERS = ("x-api-key", "api-key")
# Of these the first would count for one reader and the last for another.
SINGLE = ("host", "origin", "authorization", *KEY_HEADERS, "transfer-encoding")
PORTS = {"http": 80, "https": 443}
# What answers GET without a key, by the whole path: whether the server is there, and pages that say nothing of it.
READINESS = ("/health", "/ready", "/tei/health", "/infinity/health", "/.well-known/ready", "/.well-known/live")
PAGE = ("/", "/docs", "/openapi.json")
_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


def read_keys(settings: Settings, listed: str | None) -> tuple[str, ...]:
    """Keys of the file, one a line, and of `listed`, by commas. Raises SettingsError for a file without any."""
    keys = [key.strip() for key in (listed or "").split(",") if key.strip()]
    if settings.api_key_file is not None:
        keys += read_key_file(settings.api_key_file)
    return tuple(dict.fromkeys(keys))


def read_key_file(name: str) -> list[str]:
    file = Path(name)
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: the keys cannot be read: {error}") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise SettingsError(f"{file}: no key in it; write one on a line of its own")
    return found


def check_exposure(settings: Settings, keys: Iterable[str]) -> None:
    """Raises SettingsError where anyone on a network could use the server, or change its models, without a key."""
    if any(keys):
        return
    if not settings.is_loopback and not settings.insecure:
        raise SettingsError(
            f"host {settings.host} is reached from other machines and there is no key; give --api-key-file, "
            "set SECONDPASS_API_KEYS, or say --insecure"
        )
    if settings.allow_model_changes and settings.admin_key_file is None:
        raise SettingsError("allow_model_changes needs a key; give --api-key-file or set SECONDPASS_API_KEYS")


class Keys:
    """Digests of the keys, of one length, so that a comparison says nothing about a key's length either."""

    def __init__(self, keys: Iterable[str]) -> None:
        # A key beyond ASCII comes in UTF-8 from most clients and in Latin-1 from some.
        written = {form for key in keys for form in (key.encode("utf-8", "surrogateescape"), _latin(key)) if form}
        self._digests = [hashlib.sha256(form).digest() for form in written]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Headers) -> None:
        """Raises Refusal where there are keys and none of them is given."""
        if not self._digests:
            return
        given = _given_key(headers)
        if given is None:
            raise Refusal(Fault.unauthorized, "no API key; send it as Authorization: Bearer KEY")
        digest = hashlib.sha256(given.encode("latin-1", "replace")).digest()
        # All are compared, so that the time does not say which.
        if not any([hmac.compare_digest(digest, key) for key in self._digests]):
            raise Refusal(Fault.unauthorized, "the API key is not valid")


class Guard:
    """Checks a request by its headers. keys are those of callers, admin_keys those of /admin where it has its own."""

    def __init__(self, settings: Settings, keys: Iterable[str] = ()) -> None:
        self.settings = settings
        self.keys = Keys(keys)
        self.admin_keys = Keys(() if settings.admin_key_file is None else read_key_file(settings.admin_key_file))
        self._proxies = networks(settings.trusted_proxies)
        self._origins = set(map(_origin_of, settings.cors_origins))
        named = set(map(_host_name, settings.allowed_hosts))
        self._hosts = named if named or settings.is_loopback else {"*"}

    def reload(self, listed: str | None) -> None:
        """Read the key files anew. Raises SettingsError, and keeps the old keys then."""
        keys = Keys(read_keys(self.settings, listed))
        if self.settings.admin_key_file is not None:
            self.admin_keys = Keys(read_key_file(self.settings.admin_key_file))
        self.keys = keys

    def check_origin(self, headers: Headers, scheme: str, peer: str) -> None:
        """Raises Refusal for a Host that is not this server's, and for pages of other origins.

        scheme is the connection's, peer the address at its other end.
        """
        host = headers.get("host", "")
        name = _host_name(host)
        # Loopback's names are served in any case: a page whose name was pointed at this machine sends that name.
        if self._hosts.isdisjoint(("*", name)) and not is_loopback(name):
            message = f"Host {host[:100]!r} is not served here; add it with --allowed-host"
            raise Refusal(Fault.forbidden, message, parameter="host")
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers, scheme, peer) and not self.allows_origin(origin):
            message = f"pages of {origin[:100]!r} may not call; allow them with --cors-origin"
            raise Refusal(Fault.forbidden, message, parameter="origin")

    def check_key(self, headers: Headers, path: str = "") -> None:
        """Raises Refusal where there are keys for this address and none of them is given."""
        is_admin = path == "/admin" or path.startswith("/admin/")
        (self.admin_keys if is_admin and self.admin_keys else self.keys).check(headers)

    def allows_origin(self, origin: str) -> bool:
        return _origin_of(origin) in self._origins

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
            "access-control-expose-headers": f"x-request-id, retry-after, {WARNINGS}",
            "vary": "Origin",
        }

    def _is_own(self, origin: str, headers: Headers, scheme: str, peer: str) -> bool:
        """Whether a page is this server's: scheme, name and port are those by which the browser reached it."""
        if self._is_proxy(peer):
            scheme = _forwarded_scheme(headers) or scheme
        own = f"{scheme}://{headers.get('host', '')}"
        return _origin_parts(own) is not None and _origin_parts(origin) == _origin_parts(own)

    def _is_proxy(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._proxies)


class Gate:
    """Wraps the whole application. scope["state"] gets request_id, headers (lower case) and started."""

    def __init__(self, app: Asgi, *, api: HttpApi, guard: Guard, settings: Settings) -> None:
        self.app, self.api, self.guard, self.settings = app, api, guard, settings
        metrics = ("/metrics",) if settings.public_metrics else ()
        page = (*PAGE, *(f"/page/{name}" for name in asset_names())) if settings.page else ()
        self._public = {*READINESS, *metrics, *page}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = _request_id(headers)
        state = {"headers": headers, "request_id": request_id, "started": time.perf_counter()}
        scope["state"] = {**scope.get("state", {}), **state}
        scope["path"] = self._inner(scope["path"])
        scope["root_path"] = ""
        send = _with_headers(send, {"x-request-id": request_id, **self.guard.cors_headers(headers)})
        try:
            check_head(scope["headers"], headers)
            peer, _ = scope.get("client") or ("", 0)
            self.guard.check_origin(headers, scope["scheme"], peer)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await send_reply(send, Reply(body=None, status=204), request_id)
                return
            self._check_key(scope, headers)
        except Refusal as refusal:
            log = begin(scope)
            log.refusal = refusal
            await self.api.finish(log, log.dialect.refuse(refusal, request_id), send)
            return
        await self.app(scope, receive, send)

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        """Raises Refusal where a key is needed and not given; state says whether one is."""
        scope["state"]["has_key"] = False
        try:
            self.guard.check_key(headers, scope["path"])
        except Refusal:
            if self._is_public(scope["method"], scope["path"]):
                return
            raise
        scope["state"]["has_key"] = True

    def _inner(self, path: str) -> str:
        """The path without the prefix that a proxy leaves in it, and without a slash at its end."""
        prefix = self.settings.root_path.rstrip("/")
        if prefix and (path + "/").startswith(prefix + "/"):
            path = path[len(prefix) :]
        return path.rstrip("/") or "/"

    def _is_public(self, method: str, path: str) -> bool:
        return method in ("GET", "HEAD") and path in self._public


def check_head(fields: Iterable[tuple[bytes, bytes]], headers: Headers) -> None:
    """Raises Refusal for a head that a proxy before this server may have read otherwise."""
    counts = Counter(name for name, _ in fields)
    for name in SINGLE:
        if counts[name.encode()] > 1:
            raise Refusal(Fault.malformed, f"{name} is given {counts[name.encode()]} times", parameter=name)
    coding = headers.get("transfer-encoding", "chunked").strip().lower()
    if coding != "chunked":
        raise Refusal(Fault.malformed, f"transfer-encoding {coding[:40]!r}; send it chunked", parameter="body")


def _forwarded_scheme(headers: Headers) -> str | None:
    """What the first proxy says of the scheme that it was called by. RFC 7239, and the header that came before it.

    The host that a proxy may say beside it is left alone: a page whose name was changed to this machine's address
    could send that too, and so pass for one of this server's. (uvicorn's middleware reads no RFC 7239, no list of
    proxies, and no IPv4 address that an IPv6 socket writes as ::ffff:127.0.0.1.)
    """
    first = headers.get("forwarded", "").partition(",")[0]
    pairs = (pair.strip().partition("=") for pair in first.split(";"))
    said = next((value.strip('"') for name, _, value in pairs if name.lower() == "proto"), "")
    said = (said or headers.get("x-forwarded-proto", "").partition(",")[0]).strip().lower()
    return said if said in PORTS else None


def _origin_parts(origin: str) -> tuple[str, str, int] | None:
    """Scheme, name and port of an origin; None for what is no http or https one."""
    try:
        parts = urlsplit(origin)
        port = parts.port or PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def _origin_of(origin: str) -> tuple[str, str, int] | str:
    """What two writings of one origin share: browsers leave the scheme's own port out. An extension's has no port."""
    said = origin.rstrip("/").lower()
    return _origin_parts(said) or said


def _given_key(headers: Headers) -> str | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    return next((headers[name].strip() for name in KEY_HEADERS if headers.get(name)), None)


def _latin(key: str) -> bytes:
    """The key in Latin-1; nothing where that has no such letters."""
    try:
        return key.encode("latin-1")
    except UnicodeEncodeError:
        return b""


def _host_name(host: str) -> str:
    """The name of `name:port` or `[address]:port`, in lower case; an IPv6 address may stand without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return (host if host.count(":") > 1 else host.partition(":")[0]).lower()


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
