"""A live server on a free loopback port, for tests that speak HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from secondpass.server.app import create_app
from secondpass.server.service import Service
from secondpass.server.settings import ModelSource, Settings


class Server(uvicorn.Server):
    """uvicorn in a thread: it leaves the signals alone, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@contextmanager
def serving(
    service_or_model: Service | str | Path = "default",
    *,
    keys: tuple[str, ...] = (),
    wrap: Callable[[Any], Any] = lambda app: app,
    **settings: Any,
) -> Iterator[str]:
    """The base URL of a server of a model, or of a service; it is stopped at the end. wrap goes around the app."""
    if isinstance(service_or_model, Service):
        service = service_or_model
    else:
        source = ModelSource(name="default", path=str(service_or_model))
        service = Service(Settings(**{"models": (source,), "port": 0, **settings}))
    config = uvicorn.Config(
        wrap(create_app(service, keys=keys)),
        host="127.0.0.1",
        port=0,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        ws="none",
    )
    with running(config) as url:
        yield url


@contextmanager
def running(config: uvicorn.Config) -> Iterator[str]:
    """The base URL of a server in a thread; it is stopped at the end."""
    server = Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        if not server.listening.wait(60):
            raise RuntimeError("the server did not start")
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


def until(is_true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what another thread or process does and tells nobody."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        threading.Event().wait(0.01)
