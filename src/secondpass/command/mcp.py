"""`secondpass mcp`: the MCP server over standard input and output, or over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from secondpass.command.index import IndexLocation
from secondpass.errors import MissingExtra, WrongUse


def mcp(
    *,
    location: IndexLocation,
    namespace: Annotated[str, typer.Option(help="Whose memory it is.")] = "default",
    model: Annotated[str, typer.Option(metavar="MODEL", help="The reranker.")] = "auto",
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve at http://HOST:PORT/mcp instead of stdin.")
    ] = None,
) -> None:
    """Serve search, get, rerank, remember, recall, forget and status to agents (Model Context Protocol).

    A host starts it by itself: its command is `secondpass`, its argument `mcp`. Over HTTP it is for this machine.
    """
    try:
        from secondpass.mcp import Tools, make_server
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] == "secondpass":
            raise
        raise MissingExtra(error.name.split(".")[0], "mcp") from error
    tools = Tools(index_name=location.name, folder=location.folder, namespace=namespace, reranker_name=model)
    server = make_server(tools)
    if http is None:
        server.run("stdio")
        return
    host, _, port = http.rpartition(":")
    if not host or not port.isdigit():
        raise WrongUse(f"--http is {http!r}; give HOST:PORT, as in 127.0.0.1:8790")
    server.run("streamable-http", host=host, port=int(port), json_response=True, stateless_http=True)
