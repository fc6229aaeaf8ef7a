"""`secondpass mcp`: the MCP server over standard input and output, or over HTTP."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Annotated

from secondpass.command.index import IndexLocation
from secondpass.command.plain import option
from secondpass.errors import MissingExtra, SecondpassError, WrongUse


def mcp(
    *,
    location: IndexLocation,
    namespace: Annotated[str, option(help="Whose memory it is.")] = "default",
    model: Annotated[str, option(metavar="MODEL", help="The reranker.")] = "auto",
    http: Annotated[
        str | None, option(metavar="HOST:PORT", help="Serve at http://HOST:PORT/mcp instead of stdin.")
    ] = None,
) -> None:
    """Serve search, get, rerank, remember, recall, forget and status to agents (Model Context Protocol).

    A host starts it by itself: its command is `secondpass`, its argument `mcp`. Over HTTP it is for this machine.
    """
    try:
        from secondpass.mcp import Tools, http_app, make_server
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] == "secondpass":
            raise
        raise MissingExtra(error.name.split(".")[0], "mcp") from error
    tools = Tools(index_name=location.name, folder=location.folder, namespace=namespace, reranker_name=model)
    server = make_server(tools)
    if http is None:
        _end_when_told()
        server.run("stdio")
        return
    import uvicorn

    from secondpass.server.settings import open_socket

    host, port = _address(http)
    app = http_app(server, host=host)
    try:
        listening = open_socket(host, port)
    except SecondpassError as error:
        raise SecondpassError(f"{error}; give another port") from error
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _address(http: str) -> tuple[str, int]:
    """Host and port. Raises WrongUse for what is none, and for a host that other machines reach: it has no key."""
    from secondpass.server.settings import is_loopback

    host, _, port = http.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise WrongUse(f"--http is {http!r}; give HOST:PORT, as in 127.0.0.1:8790")
    host = host.strip("[]")
    if not is_loopback(host):
        raise WrongUse(
            f"--http is {http!r}, which other machines reach, and has no key; give 127.0.0.1:{port}, or serve /mcp "
            "with keys: secondpass serve --mcp --index NAME --host HOST --api-key-file FILE"
        )
    return host, int(port)


def _end_when_told() -> None:
    """End at once on SIGTERM and Ctrl-C: else the thread that reads standard input is waited for until there is more.

    What is kept is whole at any moment.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, frame: os._exit(128 + number))
