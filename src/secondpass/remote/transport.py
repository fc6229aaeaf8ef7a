"""JSON over HTTP with one deadline over all tries; one connection pool for every thread and every event loop."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import ssl
import threading
import time
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from secondpass.errors import MissingExtra, RemoteError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
RETRIED = frozenset({429, 502, 503, 504})
LONGEST_BACKOFF_S = 8.0
MOST_DOUBLINGS = 100  # far beyond the longest back-off; 2.0**1024 is more than a double holds
LONGEST_CLOSE_S = 5.0
DEADLINE_HEADER = "x-deadline-ms"
MAX_ANSWER_BYTES = 64 << 20
LARGE_BODY = 1 << 20  # bytes that a server may refuse before it has read them
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TITLE = re.compile(r"<title[^>]*>([^<]{1,200})", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds for one try and for a call in all; how often a try is repeated; seconds before the first repeat."""

    timeout_s: float = 30.0
    deadline_s: float = 60.0
    retries: int = 3
    backoff_s: float = 0.25

    def __post_init__(self) -> None:
        for name in ("timeout_s", "deadline_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give more than 0 seconds")
        if self.retries < 0 or self.backoff_s < 0:
            raise ValueError(f"retries is {self.retries} and backoff_s {self.backoff_s}; give 0 or more")

    def wait(self, attempt: int, retry_after: float | None, draw: float) -> float:
        """Seconds to wait after try number `attempt`, from 0; draw is in 0..1.

        Doubles from try to try, and takes between half and all of it, so that clients that failed together do not
        come back together. Never less than the server asked for.
        """
        backoff = min(self.backoff_s * 2.0 ** min(attempt, MOST_DOUBLINGS), LONGEST_BACKOFF_S) * (0.5 + draw / 2)
        return max(backoff, retry_after or 0.0)


class _TryAgain(Exception):
    """A failure that may pass; retry_after is in seconds, where the server said it."""

    def __init__(self, failure: RemoteError, retry_after: float | None = None) -> None:
        super().__init__(str(failure))
        self.failure, self.retry_after = failure, retry_after


class _Background:
    """An event loop in a thread of its own, and the HTTP client that lives in it."""

    def __init__(self, headers: Mapping[str, str], ca_file: str | Path | None) -> None:
        self.client = _open_client(headers, ca_file)
        self.loop = asyncio.new_event_loop()
        self.process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="secondpass-remote", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end. Does not wait: the garbage collector calls it, whatever locks are held then."""
        if self.process == os.getpid():  # threads do not live on in a forked process
            with suppress(RuntimeError):  # closed meanwhile
                self.loop.call_soon_threadsafe(self.loop.stop)

    def close(self) -> None:
        """Tell the thread to end, and wait for it."""
        self.stop()
        self._thread.join(timeout=LONGEST_CLOSE_S)

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.run_until_complete(self._finish())
        self.loop.close()

    async def _finish(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        await self.client.aclose()


class Transport:
    """Posts JSON to one address. Safe to use from several threads, event loops and forked processes.

    Every call runs in one background event loop, so that `run` and `arun` share connections, a deadline interrupts
    whatever is going on, and a cancelled `arun` stops its requests. Redirects are not followed: the headers carry a
    key.
    """

    def __init__(
        self,
        address: str,
        *,
        patience: Patience,
        headers: Mapping[str, str],
        secrets: Sequence[str] = (),
        ca_file: str | Path | None = None,
        says_deadline: bool = False,
    ) -> None:
        self._says_deadline = says_deadline
        self.address, self.patience = address, patience
        self._headers, self._secrets, self._ca_file = dict(headers), tuple(secrets), ca_file
        self._lock = threading.Lock()
        self._background: _Background | None = None
        self._live()  # a missing package or an unreadable ca_file is said at once

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, computed in the background loop."""
        future = self._submit(work)
        try:
            return future.result()
        except CancelledError:
            raise RemoteError("closed while the call was under way") from None
        except BaseException:
            future.cancel()
            raise

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """`run` for asyncio; cancelling it cancels the work."""
        return await asyncio.wrap_future(self._submit(work))

    def close(self) -> None:
        """Drop the connections; the next call opens new ones."""
        with self._lock:
            background, self._background = self._background, None
            self._finalizer.detach()
        if background is not None:
            background.close()

    async def post(self, body: Any, until: float) -> Any:
        """The JSON of the answer. Tries again until `until` (time.monotonic); raises RemoteError.

        So does its end by `close`: a cancellation would look like the caller's own.
        """
        try:
            return await self._tried(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(), until)
        except asyncio.CancelledError:
            self._own_background()
            raise

    async def _tried(self, content: bytes, until: float) -> Any:
        attempt = 0
        while True:
            try:
                return await self._try(content, until - time.monotonic())
            except _TryAgain as again:
                wait = self.patience.wait(attempt, again.retry_after, random.random())
                if attempt >= self.patience.retries or time.monotonic() + wait >= until:
                    tries = f" (tried {attempt + 1} times)" if attempt else ""
                    raise RemoteError(f"{again.failure}{tries}", status=again.failure.status) from None
                await asyncio.sleep(wait)
                attempt += 1

    async def _try(self, content: bytes, left: float) -> Any:
        """One try, with `left` seconds until the deadline."""
        import httpx

        seconds = min(self.patience.timeout_s, left)
        if seconds <= 0:
            raise self._failure(f"no answer within the deadline of {self.patience.deadline_s:.3g} s")
        try:
            return await asyncio.wait_for(self._exchange(content, self._hint(seconds)), seconds)
        except asyncio.TimeoutError:
            raise _TryAgain(self._failure(f"no answer within {seconds:.3g} s")) from None
        except httpx.TransportError as error:
            failure = self._failure(_unreached(error, len(content)))
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise failure from None
            raise _TryAgain(failure) from None
        except httpx.DecodingError as error:
            raise self._failure(f"the answer cannot be unpacked: {error}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failure(f"cannot be asked: {error}") from None

    def _hint(self, seconds: float) -> dict[str, str]:
        """The header that tells the server when nobody waits any more."""
        if not self._says_deadline or seconds == math.inf:
            return {}
        return {DEADLINE_HEADER: str(max(int(seconds * 1000), 1))}

    async def _exchange(self, content: bytes, headers: Mapping[str, str]) -> Any:
        async with self._own_background().client.stream(
            "POST", self.address, content=content, headers=headers
        ) as response:
            answer = bytearray()
            async for part in response.aiter_bytes():
                answer += part
                if len(answer) > MAX_ANSWER_BYTES:
                    raise self._failure(f"the answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")
        if response.is_redirect:
            raise self._failure(
                f"redirects to {_redirect_target(response)}, which is not followed; give the right url", response
            )
        if response.status_code in RETRIED:
            raise _TryAgain(self._refusal(response, bytes(answer)), _retry_after(response))
        if not response.is_success:
            raise self._refusal(response, bytes(answer))
        return self._parse(response, bytes(answer))

    def _parse(self, response: httpx.Response, answer: bytes) -> Any:
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            kind = response.headers.get("content-type", "no content type")
            what = f"the answer is not JSON ({len(answer)} bytes, {kind})"
            if b"<html" in answer[:1000].lower():
                what = "answers with a web page, not with JSON; is the url that of an API?"
            raise self._failure(what, response) from None

    def _refusal(self, response: httpx.Response, answer: bytes) -> RemoteError:
        said = _message(answer)
        reason = f"{response.status_code} {response.reason_phrase}".strip()
        return self._failure(f"{reason}: {said}" if said else reason, response)

    def _failure(self, what: str, response: httpx.Response | None = None) -> RemoteError:
        for secret in self._secrets:
            what = what.replace(secret, "[secret]")
        what = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", what)  # a server's words end in logs and on terminals
        return RemoteError(
            f"{shown(self.address)}: {what}", status=None if response is None else response.status_code
        )

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._live().loop)
        except BaseException:
            work.close()
            raise

    def _own_background(self) -> _Background:
        """That in whose loop this runs. Raises RemoteError where it was closed."""
        background = self._background
        if background is None or background.loop is not asyncio.get_running_loop():
            raise self._failure("closed while the call was under way") from None
        return background

    def _live(self) -> _Background:
        """The background of this process, started when there is none."""
        with self._lock:
            if self._background is None or self._background.process != os.getpid():
                self._background = _Background(self._headers, self._ca_file)
                self._finalizer = weakref.finalize(self, self._background.stop)
            return self._background


def _unreached(error: httpx.TransportError, size: int) -> str:
    """In words why there was no answer. A server may refuse a large body and close before its answer can be read."""
    import httpx

    what = str(error) or type(error).__name__
    if size > LARGE_BODY and isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
        sent = f"the connection broke while {size >> 20} MiB were sent ({what})"
        return f"{sent}; the server may take less: lower max_batch"
    return f"cannot be reached: {what}"


def shown(address: str) -> str:
    """An address for people: without a query, which may hold a key."""
    return address.partition("?")[0]


def _open_client(headers: Mapping[str, str], ca_file: str | Path | None) -> httpx.AsyncClient:
    try:
        import httpx
    except ImportError:
        raise MissingExtra("httpx", "remote") from None
    verify: ssl.SSLContext | bool = True if ca_file is None else ssl.create_default_context(cafile=str(ca_file))
    try:
        return httpx.AsyncClient(headers=dict(headers), timeout=None, follow_redirects=False, verify=verify)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise RemoteError(f"no HTTP client; see HTTP_PROXY, ALL_PROXY and NO_PROXY: {error}") from error


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that a server asks to wait: in its own milliseconds, or as Retry-After, which is seconds or a date."""
    value = response.headers.get("retry-after", "")
    with suppress(ValueError):
        return max(float(response.headers.get("retry-after-ms", "")) / 1000, 0.0)
    with suppress(ValueError):
        return max(float(value), 0.0)
    with suppress(ValueError, TypeError, OverflowError):
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None


def _redirect_target(response: httpx.Response) -> str:
    try:
        parts = urlsplit(response.headers.get("location", ""))
    except ValueError:
        return "what is no address"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if host else parts.path or "nowhere"


def _message(answer: bytes) -> str:
    """What a server says of an error, in any of the forms of the APIs."""
    try:
        body = json.loads(answer)
    except (ValueError, RecursionError):
        title = _TITLE.search(answer.decode("utf-8", "replace"))
        return title[1].strip() if title else ""
    while isinstance(body, dict | list):
        if isinstance(body, list):
            body = body[0] if body else ""
        else:
            body = next((body[name] for name in ("message", "detail", "error", "msg") if body.get(name)), "")
    return " ".join(body.split())[:300] if isinstance(body, str) else ""
