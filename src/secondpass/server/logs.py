"""Logs: one JSON object a line for programs, one plain line for people; no document text in either."""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import re
import sys
import threading
import time
from typing import Any, TextIO

NAME = "secondpass"
MAX_LINES = 10_000  # that wait to be written; more are left out, and counted
LEAST_PAUSE_S = 1.0  # between two messages of asyncio, which repeats one for every connection
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class JsonLines(logging.Formatter):
    """time (ISO 8601, UTC), level, event, and whatever the record carries beside."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class PlainLines(logging.Formatter):
    """The same for people; what a client wrote cannot begin a line of its own, nor move the terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        facts = " ".join(f"{name}={plain(str(value))}" for name, value in _extra(record).items())
        line = f"{stamp} {record.levelname.lower():7} {plain(record.getMessage())} {facts}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def plain(text: str) -> str:
    """The text with control characters and halves of pairs as escapes."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Waiting(logging.Handler):
    """Writes in a thread of its own: whoever reads the log and stops stops nobody else."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        self._lines: queue.Queue[logging.LogRecord] = queue.Queue(MAX_LINES)
        self._num_lost = 0
        threading.Thread(target=self._write, name="logs", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._num_lost += 1

    def flush(self) -> None:
        """Wait until all is written, for at most a second."""
        end = time.monotonic() + 1.0
        while self._lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            record = self._lines.get()
            self._handler.emit(record)  # without its lock, which Python takes at its end
            self._lines.task_done()
            if self._num_lost and self._lines.empty():
                lost, self._num_lost = self._num_lost, 0
                words = f"{lost} lines were left out, since nobody read the log"
                self._handler.emit(logging.LogRecord(NAME, logging.WARNING, "", 0, words, None, None))


class Lines(logging.StreamHandler[TextIO]):
    """Writes past Python's own buffer and its lock.

    A thread that holds that lock, and waits for a reader who has stopped, would keep the process from ending: Python
    flushes the buffer at its end.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._put(self.format(record) + self.terminator)
        except Exception:  # what cannot be written, as on a full disk, is left out: words on that would break lines
            return

    def _put(self, text: str) -> None:
        try:
            descriptor = self.stream.fileno()
        except (OSError, ValueError):  # none, as of a test's
            self.stream.write(text)
            return
        left = text.encode(self.stream.encoding or "utf-8", "backslashreplace")
        while left:
            left = left[os.write(descriptor, left) :]

    def flush(self) -> None:
        """There is nothing to flush."""


class Seldom(logging.Filter):
    """Lets one message through in LEAST_PAUSE_S."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()  # a record has the time of the wall, which may jump back
        is_due = now - self._last >= LEAST_PAUSE_S
        if is_due:
            self._last = now
        return is_due


def set_up_logs(*, log_format: str, level: str) -> None:
    """Log to standard error; format "auto" is plain on a terminal."""
    is_plain = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    stream = Lines(sys.stderr)
    stream.setFormatter(PlainLines() if is_plain else JsonLines())
    handler = Waiting(stream)
    for name in (NAME, "uvicorn", "uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.propagate = name == "uvicorn.error"
        logger.setLevel(level.upper() if name == NAME else "WARNING")
    logging.getLogger("asyncio").filters = [Seldom()]


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}
