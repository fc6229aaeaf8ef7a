"""A small model hub on loopback, for the real client: commits, branches, large files, and every way to fail.

It answers what huggingface_hub asks of a hub to fetch models: what a revision holds (`/api/models/...`), a file's
commit, size and digest (HEAD `.../resolve/...`), small files there and large ones at another address (`/cdn/...`),
whole or from an offset on.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".onnx", ".pt", ".h5")


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


@dataclass
class Faults:
    """How the hub misbehaves; a name is that of a file."""

    status: dict[str, tuple[int, str]] = field(default_factory=dict)  # "api" or a file -> status, X-Error-Code
    silent: set[str] = field(default_factory=set)  # "api" or a file that is never answered
    cut: dict[str, int] = field(default_factory=dict)  # bytes after which the connection breaks, once
    short: dict[str, int] = field(default_factory=dict)  # bytes that are sent as if they were all
    flipped: set[str] = field(default_factory=set)  # the last byte is another one
    then: dict[str, Callable[[], object]] = field(default_factory=dict)  # what happens once half of a file is sent


class Hub:
    """Repositories in memory; `requests` counts (method, file) and `ranges` lists the offsets asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults = Faults()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.ranges: list[int] = []
        self.endpoint = ""
        self.store = ""  # where large files lie: the same server under another name, as a hub has it
        self.closing = threading.Event()

    def commit(self, name: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """Add a commit that holds exactly `files`, and move the branch to it."""
        repository = self.repositories.setdefault(name, Repository())
        state = f"{name} {len(repository.commits)} {sorted(files)}"
        commit = hashlib.sha1(state.encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        return commit

    def resolve(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.repositories[name]
        commit = repository.branches.get(revision, revision)
        return (commit, repository.commits[commit]) if commit in repository.commits else None

    def large(self, digest: str) -> tuple[str, bytes]:
        """Name and content of the large file with a digest."""
        return next(
            (file, content)
            for repository in self.repositories.values()
            for files in repository.commits.values()
            for file, content in files.items()
            if hashlib.sha256(content).hexdigest() == digest
        )


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing; a test's output is its own."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/models/"):
            self._api(path.removeprefix("api/models/"))
        elif path.startswith("cdn/"):
            name, content = self.hub.large(path.removeprefix("cdn/"))
            self._content(name, content)
        else:
            name, _, rest = path.partition("/resolve/")
            revision, _, file = rest.partition("/")
            self._resolve(name, revision, file)

    def _api(self, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        if self._fails("api"):
            return
        if name not in self.hub.repositories:
            return self._refuse(404, "RepoNotFound")
        found = self.hub.resolve(name, revision or "main")
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        commit, files = found
        siblings = [_sibling(file, content) for file, content in files.items()]
        body = json.dumps({"id": name, "modelId": name, "sha": commit, "siblings": siblings}).encode()
        self._send(200, body, {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        if self._fails(file):
            return
        found = self.hub.resolve(name, revision)
        if found is None or file not in found[1]:
            return self._refuse(404, "EntryNotFound")
        commit, files = found
        content = files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_digest(content)}"'}
        if not file.endswith(LARGE):
            return self._content(file, content, headers)
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
        self._send(302, b"", headers | {"Location": f"{self.hub.store}/cdn/{digest}"})

    def _content(self, file: str, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        faults = self.hub.faults
        if self.command == "HEAD":
            return self._send(200, content, headers or {})
        if file in faults.flipped:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if file in faults.short:
            return self._send(200, content[: faults.short[file]], headers or {})
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.hub.ranges += [start] if asked else []
        extra = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
        self._send(
            206 if asked else 200,
            content[start:],
            {**(headers or {}), **extra},
            cut=faults.cut.pop(file, None),
            then=faults.then.pop(file, None),
        )

    def _fails(self, what: str) -> bool:
        self.hub.requests[(self.command, what)] += 1
        if what in self.hub.faults.silent:
            self.hub.closing.wait(timeout=60)  # until the test is over: the client's own time-out comes first
            return True
        if what in self.hub.faults.status:
            self._refuse(*self.hub.faults.status[what])
            return True
        return False

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code} if code else {})

    def _send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str],
        *,
        cut: int | None = None,
        then: Callable[[], object] | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "GET":
            return
        body = body if cut is None else body[:cut]
        half = len(body) // 2 if then is not None else 0
        with suppress(ConnectionError):  # of a client that had enough
            self.wfile.write(body[:half])
            if then is not None:
                then()
            self.wfile.write(body[half:])


def _sibling(file: str, content: bytes) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": file, "size": len(content), "blobId": _git_digest(content)}
    if file.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
    return sibling


def _git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that listens on a free port of loopback."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        hub.store = f"http://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()
