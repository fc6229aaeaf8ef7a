"""The options of `secondpass serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from secondpass.command.options import Debug


def serve(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A folder, owner/name, or name=path.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; else 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; else 8787. 0: any free one.")] = None,
    api_key_file: Annotated[str | None, typer.Option(help="File with keys, one a line.")] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME=PATH", help="One more reranker; repeat it for more.")
    ] = None,
    embedders: Annotated[
        list[str] | None, typer.Option("--embedder", metavar="NAME=PATH", help="An embedder, for /v1/embeddings.")
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="What `secondpass calibrate` fitted, for the probabilities."),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Settings in TOML.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, each with the models; else 1.")] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help="A name under which clients reach it.")] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="An origin whose pages may call.")] = None,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="A proxy that ends TLS; else those on this machine.")
    ] = None,
    tls_certificate: Annotated[str | None, typer.Option(help="Certificate chain in PEM; with --tls-key.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="Private key in PEM.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond this machine without a key.")
    ] = None,
    allow_model_changes: Annotated[
        bool | None, typer.Option("--allow-model-changes", help="Load and unload over /admin/models.")
    ] = None,
    local_files_only: Annotated[
        bool | None, typer.Option("--local-files-only", "--offline", help="Never use the network.")
    ] = None,
    log_texts: Annotated[bool | None, typer.Option("--log-texts", help="Log queries and documents.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting of docs/serving.md.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Serve rerankers over HTTP, in the APIs that rerank clients already speak.

    Starts on this machine alone, with the embedded model unless another is named. Settings come from the command
    line, SECONDPASS_* in the environment, and --config, in this order.
    """
    from secondpass.command import serve as command

    given = {
        "host": host,
        "port": port,
        "api_key_file": api_key_file,
        "workers": workers,
        "calibration": tuple(calibration) if calibration else None,
        "allowed_hosts": tuple(allowed_host) if allowed_host else None,
        "cors_origins": tuple(cors_origin) if cors_origin else None,
        "trusted_proxies": tuple(trusted_proxy) if trusted_proxy else None,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "insecure": insecure,
        "allow_model_changes": allow_model_changes,
        "local_files_only": local_files_only,
        "log_texts": log_texts,
    }
    sources = command.Sources(model=model, models=models or [], embedders=embedders or [])
    raise typer.Exit(command.serve(sources, config=config, given=given, more=set_ or []))
