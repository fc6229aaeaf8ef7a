"""`secondpass serve`: settings from everywhere, then a server until it is stopped."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from secondpass.command.flags import On, wrong_use
from secondpass.command.plain import argument, option
from secondpass.errors import MissingExtra, WrongUse

if TYPE_CHECKING:
    from secondpass.server.settings import ModelSource, Settings

PACKAGES = ("starlette", "pydantic", "uvicorn", "httptools", "prometheus_client")
Texts = list[str] | None


@dataclass(frozen=True, kw_only=True)
class ServerFlags:
    """Settings that have a flag; each field is named as the field of the server's Settings."""

    host: Annotated[str | None, option(help="Address to listen on; else 127.0.0.1.")] = None
    port: Annotated[int | None, option(min=0, max=65535, help="Port; else 8787. 0: any free one.")] = None
    api_key_file: Annotated[str | None, option(metavar="FILE", help="File with keys, one a line.")] = None
    calibration: Annotated[
        Texts, option(metavar="[NAME=]FILE", help="What `secondpass calibrate` fitted, for the probabilities.")
    ] = None
    workers: Annotated[int | None, option(min=1, help="Processes, each with the models; else 1.")] = None
    allowed_hosts: Annotated[
        Texts, option("--allowed-host", metavar="NAME", help="A name under which clients reach it.")
    ] = None
    cors_origins: Annotated[
        Texts, option("--cors-origin", metavar="ORIGIN", help="An origin whose pages may call.")
    ] = None
    trusted_proxies: Annotated[
        Texts,
        option("--trusted-proxy", metavar="ADDRESS", help="A proxy that ends TLS; else those on this machine."),
    ] = None
    tls_certificate: Annotated[
        str | None, option(metavar="FILE", help="Certificate chain in PEM; with --tls-key.")
    ] = None
    tls_key: Annotated[str | None, option(metavar="FILE", help="Private key in PEM.")] = None
    insecure: Annotated[bool | None, option("--insecure", help="Listen beyond this machine without a key.")] = None
    index: Annotated[str | None, option(metavar="NAME", help="Serve an index too, at /v1/index.")] = None
    index_folder: Annotated[
        str | None, option(help="Where indexes are kept; else SECONDPASS_INDEXES, or the data folder.")
    ] = None
    mcp: Annotated[bool | None, option("--mcp", help="Serve tools for agents too, at /mcp.")] = None
    allow_model_changes: Annotated[
        bool | None, option("--allow-model-changes", help="Load and unload over /admin/models.")
    ] = None
    local_files_only: Annotated[
        bool | None, option("--local-files-only", "--offline", help="Never use the network.")
    ] = None
    log_texts: Annotated[bool | None, option("--log-texts", help="Log queries and documents.")] = None

    def given(self) -> dict[str, Any]:
        """Those that were given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if value not in (None, [])
        }


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Who answers."""

    on: Annotated[On, option(help="This process and its workers, or replicas on Ray.")] = On.process
    replicas: Annotated[str, option(metavar="N|N..M", help="On Ray: of each model; N..M as is needed.")] = "1"
    cpus: Annotated[float, option(min=0.0, help="On Ray: processors of a replica.")] = 1.0
    gpus: Annotated[float, option(min=0.0, help="On Ray: GPUs of a replica.")] = 0.0
    device: Annotated[
        str | None, option(metavar="DEVICE", help="Of all models; cuda:0,cuda:1: a replica on each, on Ray.")
    ] = None
    address: Annotated[
        str | None, option(help="Of a Ray cluster, which keeps the service; else a local one is started.")
    ] = None

    @property
    def is_on_ray(self) -> bool:
        return self.on is not On.process or self._is_list

    @property
    def _is_list(self) -> bool:
        return self.device is not None and "," in self.device

    def run(self, settings: Settings, keys: tuple[str, ...], on_ready: Callable[[int], None]) -> int:
        device = self.device
        if device is not None and not self._is_list:
            settings = _on_device(settings, device)
        if not self.is_on_ray:
            from secondpass.server import workers

            return workers.run(settings, keys, on_ready)
        from secondpass.scale.ray import Actors, import_ray, over_devices

        import_ray()
        from secondpass.scale import serving

        with wrong_use():
            actors = Actors.of(self.replicas, cpus=self.cpus, gpus=self.gpus)
            if device is not None and self._is_list:
                device, spread = over_devices(device)
                actors = replace(spread, cpus=self.cpus, gpus=spread.gpus / len(settings.models))
                settings = _on_device(settings, device)
        return serving.run(settings, keys, actors, self.address, on_ready)


def _on_device(settings: Settings, device: str) -> Settings:
    return replace(settings, models=tuple(replace(model, device=device) for model in settings.models))


def serve(
    model: Annotated[str | None, argument(metavar="MODEL", help="A folder, owner/name, or name=path.")] = None,
    *,
    models: Annotated[
        Texts, option("--model", metavar="NAME=PATH", help="One more reranker; repeat it for more.")
    ] = None,
    embedders: Annotated[
        Texts, option("--embedder", metavar="NAME=PATH", help="An embedder, for /v1/embeddings.")
    ] = None,
    flags: ServerFlags,
    placement: Replicas,
    config: Annotated[str | None, option(metavar="FILE", help="Settings in TOML.")] = None,
    more: Annotated[Texts, option("--set", metavar="NAME=VALUE", help="Any setting of docs/serving.md.")] = None,
) -> None:
    """Serve rerankers over HTTP, in the APIs that rerank clients already speak.

    Starts on this machine alone, with the embedded model unless another is named. Settings come from the command
    line, SECONDPASS_* in the environment, and --config, in this order.
    """
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingExtra(package, "serve")
    if not placement.is_on_ray and hasattr(signal, "SIGHUP"):
        # It waits until there is someone to take it: what is imported takes a second or two.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from secondpass.server.security import check_exposure, read_keys
    from secondpass.server.settings import PREFIX, SettingsError, load_settings, parse_settings

    try:
        given = flags.given()
        if sources := _sources([model] if model else [], models or [], embedders or []):
            given["models"] = sources
        settings = load_settings({**parse_settings(more or []), **given}, os.environ, config)
        keys = read_keys(settings, os.environ.get(PREFIX + "API_KEYS"))
        check_exposure(settings, keys)
    except SettingsError as error:
        raise WrongUse(str(error)) from error
    if settings.local_files_only:  # for the models of an index and of /mcp too, which are opened by name alone
        os.environ["HF_HUB_OFFLINE"] = "1"

    def say(port: int) -> None:
        ranks = any(model.kind == "reranker" for model in settings.models)
        try:
            sys.stdout.write(greeting(address(settings, port), has_keys=bool(keys), has_reranker=ranks))
            sys.stdout.flush()
        except OSError:  # on a full disk, or read by nobody any more: it serves all the same
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    raise SystemExit(placement.run(settings, keys, say))


def _sources(first: Sequence[str], models: Sequence[str], embedders: Sequence[str]) -> tuple[ModelSource, ...]:
    """What to serve, each as `path` or `name=path`."""
    from secondpass.server.settings import model_source

    found = [model_source(text) for text in (*first, *models)]
    return (*found, *(replace(model_source(text), kind="embedder") for text in embedders))


def address(settings: Settings, port: int) -> str:
    """Where a server of these settings answers, once it listens on this port."""
    host = settings.host.strip("[]")
    host = f"[{host}]" if ":" in host else host
    scheme = "https" if settings.tls_certificate else "http"
    return f"{scheme}://{host}:{port}{settings.root_path}"


def greeting(url: str, *, has_keys: bool, has_reranker: bool = True) -> str:
    """Where the server is, and a line that shows that it works."""
    key = ' -H "Authorization: Bearer $KEY"' if has_keys else ""
    path, body = "/v1/embeddings", '{"input": "Goethe wrote Faust."}'
    if has_reranker:
        path, body = (
            "/v1/rerank",
            '{"query": "who wrote Faust?", "documents": ["Goethe wrote it.", "Bread is baked."]}',
        )
    return f"secondpass serves at {url}\ntry: curl {url}{path}{key} -H 'Content-Type: application/json' -d '{body}'\n"
