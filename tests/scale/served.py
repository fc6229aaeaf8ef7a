"""`secondpass serve` as a process of its own, and clients that ask it without a pause."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

STARTS = 3
QUERY = "who wrote Faust?"
DOCUMENTS = [
    "Goethe wrote it.",
    "Bread is baked.",
    *(f"The river was long and stone number {i} deep." for i in range(14)),
]


@dataclass
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[str]

    def replicas(self, name: str) -> list[int]:
        """Processes of Ray's by a part of their names, such as model-default or front, of this server alone."""
        title = re.compile(f"ServeReplica:secondpass[:-]{re.escape(name)}")
        return [pid for pid in _descendants(self.process.pid) if title.search(_words(pid))]


@contextmanager
def serve(command: Sequence[str], *, key: str = "k", log: Path) -> Iterator[Served]:
    """Started by the command, stopped by SIGTERM; tried again, since Ray gives its node 30 s whatever runs beside it.

    Ray's processes import much, which takes as long each time where no compiled modules may be kept.
    """
    kept = [name for name in os.environ if not name.startswith(("SECONDPASS_", "PYTHONDONTWRITEBYTECODE"))]
    environment = {name: os.environ[name] for name in kept}
    with log.open("a") as stream:
        for _ in range(STARTS):
            process = subprocess.Popen(
                command,
                env={**environment, "SECONDPASS_API_KEYS": key},
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
            assert process.stdout is not None
            if found := re.search(r"http\S+", process.stdout.readline()):
                break
            process.wait(60)
        assert found, log.read_text()
        try:
            yield Served(found.group(), process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(60) == 0, log.read_text()
            finally:
                process.kill()


@dataclass(frozen=True)
class Reply:
    """Of the call that began at `at`: None for a status where the connection broke."""

    at: float
    seconds: float
    status: int | None
    body: Any


@dataclass
class Clients:
    """Threads that each ask the same, one call after the other, over one connection, until the block ends.

    After DOCUMENTS come `fresh` texts that nobody sent before: what a model keeps of texts spares it nothing of them.
    """

    url: str
    number: int = 16
    key: str = "k"
    fresh: int = 0
    replies: list[Reply] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Clients:
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.number)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(90)

    def wait_for(self, more: int, *, seconds: float = 60.0) -> None:
        """Until so many more replies are there."""
        wanted, end = len(self.replies) + more, time.monotonic() + seconds
        while len(self.replies) < wanted:
            assert time.monotonic() < end, "the clients get no replies"
            time.sleep(0.02)

    def _ask(self) -> None:
        host = urlsplit(self.url).netloc
        connection = HTTPConnection(host, timeout=80)
        while not self._is_over.is_set():
            began = time.monotonic()
            try:
                texts = [f"A stone of {uuid.uuid4().hex} was deep in the river." for _ in range(self.fresh)]
                status, body = ask(connection, self.key, documents=[*DOCUMENTS, *texts])
            except (OSError, HTTPException, ValueError) as error:
                connection.close()
                connection, status, body = HTTPConnection(host, timeout=80), None, repr(error)
                time.sleep(0.05)  # nobody listens
            self.replies.append(Reply(began, time.monotonic() - began, status, body))


def ask(connection: HTTPConnection, key: str = "k", **fields: Any) -> tuple[int, Any]:
    """Status and body of a ranking."""
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS, **fields})
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/rerank", body, headers)
    with connection.getresponse() as response:
        return response.status, json.loads(response.read())


def get(url: str, path: str, key: str = "k") -> bytes:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
    with connection.getresponse() as response:
        return response.read()


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(status.read_text().rpartition(")")[2].split()[1]), []).append(
                int(status.parent.name)
            )
        except OSError:
            continue
    found = parents.get(pid, [])
    return found + [each for child in found for each in _descendants(child)]


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
