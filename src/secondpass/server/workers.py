"""Running: an application on sockets, in one process or several, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from asyncio import constants
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from types import FrameType

try:
    import resource
except ImportError:  # Windows, which has no limit of descriptors to heed
    resource = None  # type: ignore[assignment]

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from starlette.applications import Starlette

from secondpass.errors import SecondpassError
from secondpass.server.app import create_app
from secondpass.server.logs import set_up_logs
from secondpass.server.metrics import MULTIPROCESS_DIR, give_back
from secondpass.server.pacing import Backoff
from secondpass.server.security import Guard, read_keys
from secondpass.server.service import Service
from secondpass.server.settings import PREFIX, Settings, SettingsError, open_socket
from secondpass.server.timeouts import TimedProtocol

log = logging.getLogger(__name__)

OK, FAILED = 0, 1
HANGUP: int = getattr(signal, "SIGHUP", 0)  # Windows has none: keys are read anew at a restart
AT_ONCE: int = getattr(signal, "SIGUSR1", 0)  # to a worker whose parent was told twice to stop
STOP_MARGIN_S = 5.0
MAX_PENDING = 2048  # connections that wait to be taken
SPARE_FILES = 128  # descriptors for what are no connections: models, logs, libraries


class PlainServer(uvicorn.Server):
    """uvicorn's server without its signal handling, which ends the process by the signal that it got."""

    def __init__(self, config: uvicorn.Config, service: Service, guard: Guard) -> None:
        super().__init__(config)
        self.service, self.guard = service, guard

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(MAX_PENDING)  # asyncio takes its own figure for both, what waits and what is taken at once

    def stop(self) -> None:
        """Take no more and finish what was accepted; what is not done by then is refused. At once when told twice.

        A worker is told by its parent alone: Ctrl-C and systemd tell a whole group, and the parent tells it again.
        """
        if self.should_exit:
            if parent_process() is None:
                self.end()
            return
        self.should_exit = True
        self.service.stop()
        with suppress(RuntimeError):  # no loop: nothing was accepted yet
            asyncio.get_running_loop().call_later(self.service.settings.grace_s, self.service.abandon)

    def end(self) -> None:
        """Refuse what is still waiting, and end at once."""
        self.should_exit = self.force_exit = True
        self.service.abandon()

    def reload(self) -> None:
        """Read the keys and the certificate anew; the old ones hold where that fails."""
        try:
            self.guard.reload(os.environ.get(PREFIX + "API_KEYS"))
        except SettingsError as error:
            log.error("the keys stay as they were: %s", error)
        else:
            log.info("the keys were read anew")
        settings, context = self.service.settings, self.config.ssl
        if context is None or settings.tls_certificate is None:
            return
        try:
            check_tls(settings)  # apart, since a half of a new pair would already be in use when the other fails
            context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=_no_phrase)
        except (SettingsError, OSError) as error:
            log.error("the certificate stays as it was: %s", error)
        else:
            log.info("the certificate was read anew")


def run(settings: Settings, keys: tuple[str, ...], on_ready: Callable[[int], None]) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. on_ready is called with the port once requests are answered."""
    hold_hangup(True)
    if settings.workers > 1 and not AT_ONCE:
        raise SettingsError(f"workers is {settings.workers}; this system has no signals to tell them, give 1")
    set_up_logs(log_format=settings.log_format, level=settings.log_level)
    settings = with_room(settings)
    check_tls(settings)
    listening = open_socket(settings.host, settings.port)
    port = int(listening.getsockname()[1])
    if settings.workers == 1:
        return serve(settings, keys, listening, lambda: on_ready(port))
    with tempfile.TemporaryDirectory(prefix="secondpass-metrics-") as folder:
        os.environ.setdefault(MULTIPROCESS_DIR, folder)
        return Workers(settings, keys, listening).run(lambda: on_ready(port))


def hold_hangup(is_held: bool) -> None:
    """Have a SIGHUP wait until there is someone to take it, or let it come."""
    if HANGUP:
        signal.pthread_sigmask(signal.SIG_BLOCK if is_held else signal.SIG_UNBLOCK, {HANGUP})


def with_room(settings: Settings) -> Settings:
    """The settings with no more connections than this process may have descriptors, whose soft limit is raised."""
    if resource is None:
        return settings
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    room = max(soft - SPARE_FILES, soft // 4, 1)
    log.warning(
        "this process may open %d files; max_connections is %d in place of %d", soft, room, wanted - SPARE_FILES
    )
    return replace(settings, max_connections=room)


def check_tls(settings: Settings) -> None:
    """Raises SettingsError that names the file where the certificate or its key cannot be used."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=_no_phrase)
    except (OSError, ValueError) as error:
        files = f"tls_certificate {settings.tls_certificate} and tls_key {settings.tls_key}"
        raise SettingsError(f"{files}: no certificate with its key in PEM form: {error}") from error


def _no_phrase() -> str:
    """In place of OpenSSL's own question, which waits at the terminal, for each process anew."""
    raise ValueError("the key is encrypted; give one without a pass phrase")


def serve(
    settings: Settings,
    keys: tuple[str, ...],
    listening: socket.socket,
    on_ready: Callable[[], None],
    *,
    is_replacement: bool = False,
) -> int:
    """Serve in this process; the exit code. A replacement takes connections only once it has its models."""
    # Time for a handshake is time for a head; asyncio has no other way to say it to a server on given sockets.
    vars(constants)["SSL_HANDSHAKE_TIMEOUT"] = settings.header_timeout_s
    service = Service(settings)
    app = create_app(service, settings, keys)
    server = PlainServer(_config(settings, app), service, app.state.guard)
    code = asyncio.run(_until_told(server, listening, on_ready, is_replacement=is_replacement))
    index = app.state.index
    if not service.is_idle or not (index is None or index.is_idle):
        logging.shutdown()
        os._exit(code)  # an engine at work does not survive the end of the interpreter, which waits for an index
    return code


async def _until_told(
    server: PlainServer, listening: socket.socket, on_ready: Callable[[], None], *, is_replacement: bool
) -> int:
    loop = asyncio.get_running_loop()
    actions = {signal.SIGTERM: server.stop, signal.SIGINT: server.stop, AT_ONCE: server.end, HANGUP: server.reload}
    for number in filter(None, actions):
        _heed(loop, number, actions[number])
    hold_hangup(False)
    threading.Thread(target=_watch_parent, args=(loop, server), daemon=True).start()
    # Requests are answered meanwhile: /health with 200, calls with 503.
    loading = asyncio.create_task(_load(server, on_ready))
    if is_replacement:
        await loading
    await server.serve([listening])
    has_failed = loading.done() and not loading.result()
    return FAILED if has_failed else OK


def _heed(loop: asyncio.AbstractEventLoop, number: int, action: Callable[[], None]) -> None:
    """Have the loop do it when the signal comes."""
    try:
        loop.add_signal_handler(number, action)
    except NotImplementedError:  # the loops of Windows
        signal.signal(number, lambda number, frame: loop.call_soon_threadsafe(action))


async def _load(server: PlainServer, on_ready: Callable[[], None]) -> bool:
    """Load the models; False, and the server is stopped, where one cannot be."""
    try:
        await server.service.start()
    except Exception as error:  # whatever it is: without models the server would say "starting" for ever
        is_said = isinstance(error, SecondpassError | ValueError | OSError)
        log.error("cannot start: %s", error, exc_info=not is_said)
        server.stop()
        return False
    gc.collect()
    gc.freeze()  # what is loaded stays: looking through it again and again would stop all requests for some 10 ms
    if not server.should_exit:
        on_ready()
    return True


def _watch_parent(loop: asyncio.AbstractEventLoop, server: PlainServer) -> None:
    """Stop a worker whose parent is gone."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        loop.call_soon_threadsafe(server.stop)


def _config(settings: Settings, app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=partial(  # type: ignore[arg-type]
            TimedProtocol,
            header_timeout_s=settings.header_timeout_s,
            send_timeout_s=settings.send_timeout_s,
            max_connections=settings.max_connections,
        ),
        backlog=SPARE_FILES // 4,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]  # seconds for a timer; int made 0 of 0.5
        timeout_graceful_shutdown=math.ceil(settings.grace_s + STOP_MARGIN_S),
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
    running: list[_Worker] = field(default_factory=list)
    pauses: Backoff = field(default_factory=Backoff)

    def run(self, on_ready: Callable[[], None]) -> int:
        """Serve until told to stop; the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(HANGUP, self._reload)
        try:
            for _ in range(self.settings.workers):
                self.running.append(self._start())
            hold_hangup(False)
            return self._ended(self._watch(on_ready))
        except BaseException:  # Python waits for its processes at its end, and SIGTERM does not end that
            self._ended(FAILED)
            raise

    def _watch(self, on_ready: Callable[[], None]) -> int:
        """Start anew what ends, until told to stop; the exit code."""
        is_said = False
        while not self.is_stopping:
            if not is_said and all(worker.ready.is_set() for worker in self.running):
                is_said = True
                on_ready()
            wait([worker.process.sentinel for worker in self.running if worker.due is None], timeout=0.2)
            gone = [worker for worker in self.running if not worker.process.is_alive()]
            if self.is_stopping:
                break
            if not is_said and not all(worker.ready.is_set() for worker in gone):
                self.is_stopping = True
                return FAILED
            for worker in gone:
                self._replace(worker, is_replacement=is_said)
        return OK

    def _replace(self, worker: _Worker, *, is_replacement: bool) -> None:
        """Start another in place of one that is gone, after a pause that grows while that cannot start either."""
        if worker.due is None:
            self._forget(worker)
            self.pauses.failed()
            worker.due = time.monotonic() + self.pauses.seconds
            facts = {"exit_code": worker.process.exitcode, "pause_s": self.pauses.seconds}
            log.error("a worker ended; it is started anew", extra=facts)
        elif time.monotonic() >= worker.due:
            try:
                self.running[self.running.index(worker)] = self._start(is_replacement=is_replacement)
            except OSError as error:  # no memory, no descriptor: those that are left serve on
                self.pauses.failed()
                worker.due = time.monotonic() + self.pauses.seconds
                log.error("a worker cannot be started: %s", error, extra={"pause_s": self.pauses.seconds})

    def _start(self, *, is_replacement: bool = False) -> _Worker:
        """A new process; a SIGHUP before it can take one waits there, since what is blocked here is blocked in it."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {HANGUP})
        try:
            context = get_context("spawn")
            ready = context.Event()
            process = context.Process(
                target=_work, args=(self.settings, self.keys, self.listening, ready, is_replacement)
            )
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return _Worker(process, ready)

    def _forget(self, worker: _Worker) -> None:
        """What a process that is gone last said of its queue holds no more; one never ready leaves nothing at all."""
        mark_process_dead(worker.process.pid)  # type: ignore[no-untyped-call]
        if not worker.ready.is_set():
            give_back(worker.process.pid)

    def _reload(self, number: int, frame: FrameType | None) -> None:
        """Have all workers read the keys anew; those that come later get what was read now."""
        with suppress(SettingsError):  # which the workers log
            self.keys = read_keys(self.settings, os.environ.get(PREFIX + "API_KEYS"))
        self._tell(HANGUP)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Told twice, the workers end at once."""
        if self.is_stopping:
            self._tell(AT_ONCE)
        self.is_stopping = True

    def _tell(self, number: int) -> None:
        for worker in self.running:
            if worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, number)

    def _ended(self, code: int) -> int:
        """Stop all; those that are still there after the grace period are killed."""
        self.listening.close()  # else what connects to it now waits for an answer until all have ended
        for worker in self.running:
            worker.process.terminate()
        end = time.monotonic() + self.settings.grace_s + 2 * STOP_MARGIN_S
        for worker in self.running:
            worker.process.join(max(end - time.monotonic(), 0))
            if worker.process.is_alive():
                worker.process.kill()
                code = FAILED
        return code


@dataclass(eq=False, slots=True)
class _Worker:
    process: BaseProcess
    ready: Event
    due: float | None = None  # when another is started in its place, once it is gone


def _work(
    settings: Settings, keys: tuple[str, ...], listening: socket.socket, ready: Event, is_replacement: bool
) -> None:
    """The main function of a worker process."""
    set_up_logs(log_format=settings.log_format, level=settings.log_level)
    try:
        code = serve(settings, keys, listening, ready.set, is_replacement=is_replacement)
    except SecondpassError as error:
        log.error("cannot start: %s", error)
        code = FAILED
    logging.shutdown()
    sys.exit(code)
