"""Running: an application on sockets, in one process or several, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from types import FrameType

import uvicorn

from secondpass.errors import SecondpassError
from secondpass.server.app import create_app
from secondpass.server.logs import set_up_logs
from secondpass.server.service import Service
from secondpass.server.settings import Settings
from secondpass.server.timeouts import TimedProtocol

log = logging.getLogger(__name__)

OK, FAILED = 0, 1
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
RESTART_PAUSE_S = 1.0
STOP_MARGIN_S = 5.0


class PlainServer(uvicorn.Server):
    """uvicorn's server without its signal handling, which ends the process by the signal that it got."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def stop(self) -> None:
        """Take no more and finish what was accepted; at once when told twice."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.service.stop()


def open_socket(settings: Settings) -> socket.socket:
    """A listening socket. Raises SecondpassError where the address is taken or not this machine's."""
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named: else an answer waits 40 ms for an ACK.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, settings.port))
    except OSError as error:
        found.close()
        raise SecondpassError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
    found.set_inheritable(True)
    return found


def run(settings: Settings, keys: tuple[str, ...], on_ready: Callable[[int], None]) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. on_ready is called with the port once requests are answered."""
    listening = open_socket(settings)
    port = int(listening.getsockname()[1])
    if settings.workers == 1:
        return serve(settings, keys, listening, lambda: on_ready(port))
    with tempfile.TemporaryDirectory(prefix="secondpass-metrics-") as folder:
        os.environ.setdefault(MULTIPROCESS_DIR, folder)
        return Workers(settings, keys, listening).run(lambda: on_ready(port))


def serve(settings: Settings, keys: tuple[str, ...], listening: socket.socket, on_ready: Callable[[], None]) -> int:
    """Serve in this process; the exit code."""
    set_up_logs(log_format=settings.log_format, level=settings.log_level)
    service = Service(settings)
    server = PlainServer(_config(settings, service, keys), service)
    code = asyncio.run(_until_told(server, listening, on_ready))
    if not service.is_idle:
        logging.shutdown()
        os._exit(code)  # an engine that is still at work does not survive the end of the interpreter
    return code


async def _until_told(server: PlainServer, listening: socket.socket, on_ready: Callable[[], None]) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    threading.Thread(target=_watch_parent, args=(loop, server), daemon=True).start()
    # Requests are answered meanwhile: /health with 200, calls with 503.
    loading = asyncio.create_task(_load(server, on_ready))
    await server.serve([listening])
    has_failed = loading.done() and not loading.result()
    return FAILED if has_failed else OK


async def _load(server: PlainServer, on_ready: Callable[[], None]) -> bool:
    """Load the models; False, and the server is stopped, where one cannot be."""
    try:
        await server.service.start()
    except (SecondpassError, ValueError) as error:
        log.error("cannot start: %s", error)
        server.stop()
        return False
    if not server.should_exit:
        on_ready()
    return True


def _watch_parent(loop: asyncio.AbstractEventLoop, server: PlainServer) -> None:
    """Stop a worker whose parent is gone."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        loop.call_soon_threadsafe(server.stop)


def _config(settings: Settings, service: Service, keys: tuple[str, ...]) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(service, settings, keys),
        http=partial(  # type: ignore[arg-type]
            TimedProtocol, header_timeout_s=settings.header_timeout_s, send_timeout_s=settings.send_timeout_s
        ),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=int(settings.keep_alive_s),
        timeout_graceful_shutdown=int(settings.grace_s),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )


@dataclass
class Workers:
    """Processes that serve one socket. One that ends is started anew; one that cannot start ends all."""

    settings: Settings
    keys: tuple[str, ...]
    listening: socket.socket
    is_stopping: bool = False

    def run(self, on_ready: Callable[[], None]) -> int:
        """Serve until told to stop; the exit code."""
        set_up_logs(log_format=self.settings.log_format, level=self.settings.log_level)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        workers = [self._start() for _ in range(self.settings.workers)]
        code = OK
        is_said = False
        while not self.is_stopping:
            if not is_said and all(worker.ready.is_set() for worker in workers):
                is_said = True
                on_ready()
            wait([worker.process.sentinel for worker in workers], timeout=0.2)
            for place, worker in enumerate(workers):
                if worker.process.is_alive() or self.is_stopping:
                    continue
                if not worker.ready.is_set() and not is_said:
                    code, self.is_stopping = FAILED, True
                    break
                log.error("a worker ended; it is started anew", extra={"exit_code": worker.process.exitcode})
                time.sleep(RESTART_PAUSE_S)
                workers[place] = self._start()
        return self._ended(workers, code)

    def _start(self) -> _Worker:
        context = get_context("spawn")
        ready = context.Event()
        process = context.Process(target=_work, args=(self.settings, self.keys, self.listening, ready))
        process.start()
        return _Worker(process, ready)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.is_stopping = True

    def _ended(self, workers: Sequence[_Worker], code: int) -> int:
        """Stop all; those that are still there after the grace period are killed."""
        for worker in workers:
            worker.process.terminate()
        end = time.monotonic() + self.settings.grace_s + STOP_MARGIN_S
        for worker in workers:
            worker.process.join(max(end - time.monotonic(), 0))
            if worker.process.is_alive():
                worker.process.kill()
                code = FAILED
        return code


@dataclass(frozen=True, slots=True)
class _Worker:
    process: BaseProcess
    ready: Event


def _work(settings: Settings, keys: tuple[str, ...], listening: socket.socket, ready: Event) -> None:
    """The main function of a worker process."""
    sys.exit(serve(settings, keys, listening, ready.set))
