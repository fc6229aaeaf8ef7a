"""Settings of a server: defaults, then a TOML file, then SECONDPASS_* of the environment, then the command line.

Every key is the name of a field; a key that is not one is an error, in each of the three places.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from secondpass.errors import SecondpassError

PREFIX = "SECONDPASS_"
# Of the environment, but no settings: where the config file is, keys themselves, and what other parts and tests read.
NOT_SETTINGS = ("CONFIG", "API_KEYS", "API_KEY", "INDEXES", "SHARED")
# Set by Kubernetes in pods beside a Service named "secondpass" or "secondpass-..."; ..._PORT is known by its value.
SERVICE_LINK = re.compile(r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


OF_RERANKERS = ("engine", "long_documents", "instruction", "cutoff_layer", "score_cache", "calibration")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
EVERYWHERE = ("0.0.0.0/0", "::/0")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/*]+/?|null", re.IGNORECASE)


class SettingsError(SecondpassError):
    """A setting is unknown or has no such value; says where it came from."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """One model to serve: name is what clients write, path what Reranker or Embedder opens."""

    name: str
    path: str
    kind: str = "reranker"  # or "embedder"
    revision: str | None = None
    engine: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    max_length: int | None = None
    long_documents: str = "truncate"
    instruction: str | None = None
    token_budget: int | None = None
    cutoff_layer: int | None = None  # of a layer-wise model
    score_cache: str | None = None  # a file that keeps scores
    calibration: str | None = None  # a file: what `secondpass calibrate` fitted

    def __post_init__(self) -> None:
        if not self.name.isprintable() or not self.name.strip() or len(self.name) > 200:
            raise SettingsError(f"models has the name {self.name[:40]!r}; give 1 to 200 printable characters")
        for each in fields(self) if self.kind == "embedder" else ():
            if each.name in OF_RERANKERS and getattr(self, each.name) != each.default:
                raise SettingsError(f"models.{self.name} is an embedder; only a reranker takes {each.name}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server is told. Times are in seconds; limits are of one request unless they name the queue."""

    host: str = "127.0.0.1"
    port: int = 8787
    root_path: str = ""  # prefix that a proxy in front leaves in the path
    workers: int = 1
    models: tuple[ModelSource, ...] = (ModelSource(name="default", path="auto"),)
    calibration: tuple[str, ...] = ()  # files, as NAME=FILE; FILE alone where one reranker is served
    aliases: Mapping[str, str] = field(default_factory=dict)  # a name that clients write -> a served name
    strict_models: bool = False  # refuse unknown names even where one model is served
    allow_model_changes: bool = False  # load and unload over /admin/models
    local_files_only: bool = False
    index: str | None = None  # the name of an index to serve at /v1/index
    index_folder: str | None = None  # where indexes are kept; None: the user's data folder
    mcp: bool = False  # search, memory and reranking as MCP tools at /mcp

    api_key_file: str | None = None  # one key a line; SECONDPASS_API_KEYS has them by commas
    admin_key_file: str | None = None  # keys for /admin; None: any key
    insecure: bool = False  # serve beyond loopback without a key
    public_metrics: bool = False  # /metrics without a key
    allowed_hosts: tuple[str, ...] = ()  # values of Host; none: loopback names on loopback, else any
    cors_origins: tuple[str, ...] = ()  # origins whose pages may call; none: only the server's own page
    trusted_proxies: tuple[str, ...] = ("127.0.0.0/8", "::1")  # whose word on https counts; *: any address's
    tls_certificate: str | None = None
    tls_key: str | None = None

    max_body_bytes: int = 8 << 20
    max_held_bytes: int = 256 << 20  # of all bodies at a time
    max_depth: int = 32  # of nested JSON
    max_documents: int = 10_000
    max_document_characters: int = 1_000_000
    max_request_tokens: int = 1_000_000
    max_queue_requests: int = 512
    max_queue_tokens: int = 1_000_000
    max_connections: int = 2048
    batch_tokens: int | None = None  # None: as many as the engine computes in about 0.2 s
    timeout_s: float = 60.0  # a caller may ask for less
    header_timeout_s: float = 10.0
    body_timeout_s: float = 20.0
    send_timeout_s: float = 20.0
    keep_alive_s: float = 65.0
    grace_s: float = 30.0  # to finish what was accepted, when told to stop
    stall_s: float = 300.0  # a batch that takes longer makes /health fail
    tokenize_threads: int | None = None

    page: bool = True  # the page at / and the reference at /docs
    log_format: str = "auto"  # json, text, or auto: text on a terminal
    log_level: str = "info"
    log_texts: bool = False  # queries and documents in the log

    def __post_init__(self) -> None:
        _check_choice("log_format", self.log_format, ("auto", "json", "text"))
        _check_choice("log_level", self.log_level, ("debug", "info", "warning", "error"))
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{name} is {value}; give more than 0, and an end")
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port is {self.port}; give 0 (any free one) to 65535")
        if self.root_path and not self.root_path.startswith("/"):
            raise SettingsError(f"root_path is {self.root_path!r}; begin it with a slash")
        if self.workers > 1 and self.allow_model_changes:
            raise SettingsError(
                f"workers is {self.workers} and allow_model_changes is set; a model would be loaded in one worker "
                "alone: give one worker, or name all models at the start"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingsError("tls_certificate and tls_key are given together or not at all")
        self._check_models()
        self._check_callers()

    def _check_callers(self) -> None:
        """What no caller could ever send would refuse them all without a word."""
        networks(self.trusted_proxies)
        for host in self.allowed_hosts:
            if "/" in host or ("*" in host and host != "*"):
                raise SettingsError(f"allowed_hosts is {host!r}; give a name as rerank.example.org, or * for any")
        for origin in self.cors_origins:
            if not ORIGIN.fullmatch(origin):
                raise SettingsError(f"cors_origins is {origin!r}; give what browsers send, as https://x.example")

    def _check_models(self) -> None:
        names = [model.name for model in self.models]
        if not names and not self.allow_model_changes:
            raise SettingsError("models is empty; name one, or set allow_model_changes to load one later")
        if len(set(names)) < len(names):
            raise SettingsError(f"models has a name twice: {', '.join(names)}")
        for alias, name in self.aliases.items():
            if alias in names:
                raise SettingsError(f"aliases.{alias} is the name of a model too, which it would never stand for")
            if name not in names and not self.allow_model_changes:
                raise SettingsError(f"aliases.{alias} is {name!r}; there are {', '.join(names)}")
        _calibrations(self.calibration, self.models)

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def calibration_of(self, source: ModelSource) -> str | None:
        """The file of a model's calibration: what `calibration` says of its name, else what its own options say."""
        return _calibrations(self.calibration, self.models).get(source.name, source.calibration)


POSITIVE = tuple(
    each.name
    for each in fields(Settings)
    if each.name.startswith(("max_", "workers", "batch_tokens", "tokenize_threads")) or each.name.endswith("_s")
)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def open_socket(host: str, port: int) -> socket.socket:
    """A socket to listen on. Raises SecondpassError where the address is taken or not this machine's."""
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named: else an answer waits 40 ms for an ACK.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":  # elsewhere it would let two servers have one port
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        where = f"[{host}]" if family == socket.AF_INET6 else host
        raise SecondpassError(f"cannot listen on {where}:{port}: {error.strerror or error}") from error
    found.set_inheritable(True)
    return found


def networks(addresses: Sequence[str]) -> tuple[Network, ...]:
    """Networks of addresses such as 10.0.0.1, 10.0.0.0/8 or ::1; `*` is every address. Raises SettingsError."""
    try:
        written = [each for text in addresses for each in (EVERYWHERE if text == "*" else (text,))]
        return tuple(ipaddress.ip_network(text, strict=False) for text in written)
    except ValueError as error:
        raise SettingsError(f"trusted_proxies: {error}; give addresses as 10.0.0.1 or 10.0.0.0/8, or *") from error


def _calibrations(texts: Sequence[str], models: Sequence[ModelSource]) -> dict[str, str]:
    """Files by the names of models, of NAME=FILE, or of FILE where one reranker is served. Raises SettingsError."""
    rerankers = [model.name for model in models if model.kind == "reranker"]
    files = {}
    for text in texts:
        name, separator, file = text.partition("=")
        if not separator and len(rerankers) == 1:
            name, file = rerankers[0], text
        if name not in rerankers or not file:
            raise SettingsError(f"calibration is {text!r}; give NAME=FILE, with NAME of {', '.join(rerankers)}")
        files[name] = file
    return files


def load_settings(
    given: Mapping[str, Any], environment: Mapping[str, str], file: str | Path | None = None
) -> Settings:
    """Settings by precedence: `given` (without None), the environment, the file, the defaults.

    SECONDPASS_INDEXES, which the index commands read, is where indexes are kept here too. Raises SettingsError for an
    unknown key, or a value that does not fit.
    """
    file = file or environment.get(PREFIX + "CONFIG")
    values = {} if file is None else _from_file(Path(file))
    if environment.get(PREFIX + "INDEXES"):
        values["index_folder"] = environment[PREFIX + "INDEXES"]
    values |= _from_environment(environment)
    values |= {name: value for name, value in given.items() if value is not None}
    return replace(Settings(), **values)


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Settings of `name=value`, with values as in the environment. Raises SettingsError."""
    types = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or name not in types:
            raise SettingsError(f"{pair!r} is not a setting; give NAME=VALUE with one of {', '.join(types)}")
        values[name] = _parsed(text, name, types[name], name)
    return values


def model_source(text: str) -> ModelSource:
    """Of `name=path`, or of a path alone, which is then the name; `path@revision` pins a model of the hub."""
    name, separator, path = text.partition("=")
    path = path if separator else text
    if not name or not path:
        raise SettingsError(f"model is {text!r}; give a path, or name=path")
    revision = None
    if "@" in path and not Path(path).exists():
        path, _, revision = path.rpartition("@")
    return ModelSource(name=name if separator else path, path=path, revision=revision)


def _from_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            table = _read_toml(stream.read().decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: cannot be read as TOML: {error}") from error
    types = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in types:
            raise SettingsError(f"{file}: {key} is not a setting; there are {', '.join(types)}")
        values[key] = _models_of(value, file) if key == "models" else _checked(value, types[key], f"{file}: {key}")
    return values


def _models_of(table: Any, file: Path) -> tuple[ModelSource, ...]:
    """Of [models]: name = "path", or [models.name] with path and options."""
    if not isinstance(table, dict) or not table:
        raise SettingsError(f"{file}: models is a table of name = path")
    return tuple(
        replace(model_source(entry), name=name)
        if isinstance(entry, str)
        else model_of(name, entry, f"{file}: models.{name}")
        for name, entry in table.items()
    )


def model_of(name: str, entry: Any, where: str) -> ModelSource:
    """A model of a table of its options. Raises SettingsError, which begins with `where`."""
    types = get_type_hints(ModelSource)
    if not isinstance(entry, dict) or "path" not in entry:
        raise SettingsError(f"{where} needs a path")
    unknown = [key for key in entry if key not in types or key == "name"]
    if unknown:
        raise SettingsError(f"{where}.{unknown[0]} is not a setting of a model; there are {', '.join(types)}")
    return ModelSource(
        name=name, **{key: _checked(value, types[key], f"{where}.{key}") for key, value in entry.items()}
    )


def _checked(value: Any, kind: Any, where: str, *, is_strict: bool = True) -> Any:
    """A value as a field of this type. is_strict False reads words of the environment as numbers and switches."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if is_strict and isinstance(value, list):  # TOML has no tuples
        value = tuple(value)
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=is_strict)).validate_python(value)
    except ValidationError as error:
        raise SettingsError(f"{where} is {value!r}, which is not {_words(kind)}") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    types = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        name = variable.removeprefix(PREFIX)
        if name == variable or name in NOT_SETTINGS or SERVICE_LINK.fullmatch(name):
            continue
        if name.endswith("PORT") and SERVICE_ADDRESS.match(text):
            continue
        if name.lower() not in types:
            raise SettingsError(f"{variable} is not a setting; there are {', '.join(types)}")
        values[name.lower()] = _parsed(text, name.lower(), types[name.lower()], variable)
    return values


def _parsed(text: str, name: str, kind: Any, where: str) -> Any:
    """A value of the environment as a field of this type; several by commas."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if name == "models":
        return tuple(map(model_source, parts))
    if name == "aliases":
        return {alias: target for alias, _, target in (part.partition("=") for part in parts)}
    return parts if get_origin(kind) is tuple else _checked(text, kind, where, is_strict=False)


def _words(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    named = next((names[each] for each in (kind, *get_args(kind)) if each in names), "")
    return {tuple: "a list of texts", Mapping: "a table of texts"}.get(get_origin(kind), named)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsError(f"{name} is {value!r}; give {', '.join(choices)}")


def _read_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
