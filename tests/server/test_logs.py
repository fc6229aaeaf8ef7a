"""Lines that cannot be forged, and a log that nobody reads."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time

import pytest

from secondpass.server.logs import PlainLines, Seldom, Waiting

PATHS = ("/v1/x\n12:00:00 info    request status=200", "/\x1b[2J\x1b[31mRED\r\n", "/\u2028x\x9b31m", "/\ud800")


def record(**extra: object) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": "request", "levelname": "INFO", **extra})


@pytest.mark.promise("docs/security.md", "control characters are escaped")
@pytest.mark.parametrize("path", PATHS)
def test_a_path_begins_no_line_and_moves_no_cursor(path: str) -> None:
    line = PlainLines().format(record(path=path))
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    line.encode()


@pytest.mark.promise("docs/security.md", "a log that nobody reads stops nobody")
def test_a_reader_that_stops_stops_nobody() -> None:
    stuck, written = threading.Event(), []

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            stuck.wait(30)
            written.append(record.getMessage())

    handler = Waiting(Stuck())
    started = time.monotonic()
    for _ in range(10_500):
        handler.handle(record())
    assert time.monotonic() - started < 10
    stuck.set()
    until = time.monotonic() + 20
    while not any("were left out" in line for line in written) and time.monotonic() < until:
        time.sleep(0.01)
    assert any("lines were left out" in line for line in written)
    assert len(written) <= 10_002


STUCK = """
import logging, sys
from secondpass.server.logs import set_up_logs
set_up_logs(log_format="json", level="info")
for number in range(2000):
    logging.getLogger("secondpass").info("x" * 100)
logging.shutdown()
sys.exit(3)
"""


@pytest.mark.promise("docs/security.md", "a log that nobody reads stops nobody")
def test_a_process_whose_log_nobody_reads_ends() -> None:
    """It waited for the thread that writes, for as long as the reader stayed away, whatever it was told."""
    stuck = subprocess.Popen([sys.executable, "-c", STUCK], stderr=subprocess.PIPE)
    try:
        assert stuck.wait(30) == 3
    finally:
        stuck.kill()
        stuck.communicate()


def test_what_repeats_for_every_connection_is_said_once_a_second_whatever_the_clock_of_the_wall_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seldom, moments = Seldom(), [100.0, 100.1, 100.9, 101.2]
    monkeypatch.setattr("secondpass.server.logs.time.monotonic", lambda: moments.pop(0))
    passed = [seldom.filter(record(created=created)) for created in (1e9, 2e9, 0.0, 5e8)]
    assert passed == [True, False, False, True]
