"""Metrics in Prometheus' form; one registry per application, or one directory for several worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from secondpass.errors import SecondpassError
from secondpass.server.batching import Batch
from secondpass.wire.calls import Cost, Timing

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
FILES = ("counter", "histogram", "gauge_livesum")  # of a process, in the folder of several
FILE_BYTES = 1 << 18


class Metrics:
    """What is counted. Labels take few values: a dialect, a documented route, a status, a fault, a model.

    Raises SecondpassError where the folder of several processes has no room for it.
    """

    def __init__(self) -> None:
        if MULTIPROCESS_DIR in os.environ:
            _reserve(_folder())
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "secondpass_requests", "Requests answered.", ["dialect", "route", "status"], registry=registry
        )
        self.errors = Counter("secondpass_errors", "Requests that failed.", ["dialect", "fault"], registry=registry)
        self.seconds = _histogram("request_seconds", "From the headers to the answer.", ["dialect", "kind"], registry)
        self.tokenize = _histogram("tokenize_seconds", "Texts to tokens, per call.", [], registry)
        self.queue = _histogram("queue_seconds", "From tokens to the first batch, per call.", [], registry)
        self.compute = _histogram("compute_seconds", "In the engine, per call.", [], registry)
        self.batch_tokens = Histogram(
            "secondpass_batch_tokens", "Tokens in a batch.", ["model"], buckets=TOKENS, registry=registry
        )
        self.batch_requests = Counter(
            "secondpass_batch_requests", "Requests in batches, one counted in each of its own.", ["model"],
            registry=registry,
        )  # fmt: skip
        self.tokens = Counter("secondpass_tokens", "Tokens computed.", ["model"], registry=registry)
        self.engine_seconds = Counter(
            "secondpass_engine_seconds", "Seconds that the engine was at work.", ["model"], registry=registry
        )
        self.padding_saved = Counter(
            "secondpass_padding_saved_tokens",
            "Tokens of padding that batches as rectangles would have had.",
            ["model"],
            registry=registry,
        )
        self.truncated = Counter("secondpass_truncated_rows", "Rows of which something was cut.", registry=registry)
        self.waiting = {
            name: Gauge(
                f"secondpass_queue_{name}", f"{name.title()} that wait.", ["model"], registry=registry,
                multiprocess_mode="livesum",
            )
            for name in ("requests", "tokens")
        }  # fmt: skip
        self.restarts = Gauge(
            "secondpass_engine_restarts", "Times the engine was opened anew.", ["model"], registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip

    def batch(self, model: str, batch: Batch) -> None:
        self.batch_tokens.labels(model).observe(batch.tokens)
        self.batch_requests.labels(model).inc(batch.requests)
        self.tokens.labels(model).inc(batch.tokens)
        self.engine_seconds.labels(model).inc(batch.seconds)
        self.padding_saved.labels(model).inc(batch.padded_tokens - batch.tokens)

    def call(self, timing: Timing, cost: Cost) -> None:
        self.tokenize.observe(timing.tokenize)
        self.queue.observe(timing.queue)
        self.compute.observe(timing.compute)
        if cost.truncated:
            self.truncated.inc(cost.truncated)

    def state(self, models: Iterable[tuple[str, int, int, int]]) -> None:
        """(model, waiting requests, waiting tokens, restarts), as they are now; others are gone."""
        there = set()
        for model, requests, tokens, restarts in models:
            self.waiting["requests"].labels(model).set(requests)
            self.waiting["tokens"].labels(model).set(tokens)
            self.restarts.labels(model).set(restarts)
            there.add(model)
        shown = {sample.labels["model"] for metric in self.restarts.collect() for sample in metric.samples}
        for model in shown - there:
            for gauge in (*self.waiting.values(), self.restarts):
                gauge.remove(model)

    def page(self) -> bytes:
        if MULTIPROCESS_DIR not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        _folder()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _folder() -> Path:
    """The folder of several processes, made anew where someone who clears temporary files took it."""
    folder = Path(os.environ[MULTIPROCESS_DIR])
    with suppress(OSError):  # which whoever writes there says
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _reserve(folder: Path) -> None:
    """Room on the disk. The client maps files without it, and a process that touches a page for which there is none
    is killed by the system (SIGBUS)."""
    for name in FILES:
        file = folder / f"{name}_{os.getpid()}.db"
        try:
            if not file.exists():
                file.write_bytes(bytes(FILE_BYTES))
        except OSError as error:
            file.unlink(missing_ok=True)
            raise SecondpassError(
                f"{folder}: metrics of several processes are kept there: {error.strerror}"
            ) from error


def give_back(pid: int | None) -> None:
    """The room of a process that counted nothing: one that cannot start and is started anew would fill the disk."""
    for name in FILES:
        with suppress(OSError):
            (_folder() / f"{name}_{pid}.db").unlink(missing_ok=True)


def _histogram(name: str, words: str, labels: list[str], registry: CollectorRegistry) -> Histogram:
    return Histogram(f"secondpass_{name}", words, labels, buckets=SECONDS, registry=registry)
