"""Load on a rerank server: throughput, latency and errors, for secondpass and, beside it, for other servers.

    pip install -e ".[serve,bench]" httpx
    python benchmarks/serving.py --clients 1 32 --seconds 20
    python benchmarks/serving.py --model FOLDER --infinity PATH/TO/infinity_emb     # both, on the same weights
    python benchmarks/serving.py --replicas 2 --clients 16 --seconds 20 --kill      # on Ray; one dies on the way

Every client sends one request after the other: a query and `--passages` passages of mixed length (mean about 60
words). The same pairs are scored offline first, in one process without a server, which is what the server is measured
against. The servers are started one after the other, so that each has the whole machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

WORDS = (
    "the of a to in is water river retrieval model score query passage system bridge winter light engine paper "
    "market city number between under small large question answer result method history language network table"
).split()


@dataclass
class Tally:
    """What the clients saw: seconds of every answer, when it was there, and how many failed by status."""

    latencies: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    def between(self, start: float, end: float) -> Tally:
        """The answers of a time of it."""
        return Tally([took for took, at in zip(self.latencies, self.ends, strict=True) if start <= at < end])


def requests(count: int, num_passages: int, *, seed: int = 0) -> list[dict[str, object]]:
    """Request bodies; passages have a log-normal length of about 60 words, 5 to 350."""
    generator = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(generator.choice(WORDS) for _ in range(length))

    def passage() -> str:
        return text(min(max(int(generator.lognormvariate(3.97, 0.5)), 5), 350))

    return [
        {"model": "bench", "query": text(8), "documents": [passage() for _ in range(num_passages)]}
        for _ in range(count)
    ]


OFFLINE = """
import json, statistics, sys, time
from secondpass import Reranker
model, engine, bodies = json.load(sys.stdin)
reranker = Reranker(model, engine=engine)
pairs = [(body["query"], text) for body in bodies for text in body["documents"]]
reranker.score_pairs(pairs[:400])
rates, alone = [], []
for _ in range(3):
    started = time.perf_counter()
    reranker.score_pairs(pairs)
    rates.append(len(pairs) / (time.perf_counter() - started))
for body in bodies:
    started = time.perf_counter()
    reranker.rank(body["query"], body["documents"])
    alone.append(time.perf_counter() - started)
print(json.dumps([statistics.median(rates), statistics.median(alone)]))
"""


def offline(model: str, bodies: list[dict[str, object]], engine: str) -> tuple[float, float]:
    """Without a server: pairs per second of all bodies at once, and the median seconds of one body alone."""
    given = json.dumps([model, engine, bodies])
    shown = subprocess.run([sys.executable, "-c", OFFLINE], input=given, text=True, capture_output=True, check=True)
    rate, alone = json.loads(shown.stdout)
    return rate, alone


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], url: str) -> Iterator[None]:
    """A server process, from the moment at which it answers /health."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/ready").status_code in (200, 404) and httpx.get(f"{url}/health").is_success:
                    break
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(60)


async def load(url: str, bodies: list[dict[str, object]], *, clients: int, seconds: float) -> tuple[Tally, float]:
    """Closed loop: each client sends its next request when the last is answered. Returns the tally and the time."""
    tally = Tally()
    encoded = [json.dumps(body).encode() for body in bodies]
    headers = {"Content-Type": "application/json"}
    end = time.perf_counter() + seconds

    async def client(place: int, session: httpx.AsyncClient) -> None:
        turn = place
        while time.perf_counter() < end:
            started = time.perf_counter()
            try:
                answer = await session.post(url, content=encoded[turn % len(encoded)])
                name = str(answer.status_code)
            except httpx.HTTPError as error:
                name = type(error).__name__
            if name == "200":
                tally.ends.append(time.perf_counter())
                tally.latencies.append(tally.ends[-1] - started)
            else:
                tally.errors[name] = tally.errors.get(name, 0) + 1
            turn += clients

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=120, limits=limits, headers=headers) as session:
        await session.post(url, json=bodies[0])
        started = time.perf_counter()
        end = started + seconds
        await asyncio.gather(*(client(place, session) for place in range(clients)))
        return tally, time.perf_counter() - started


def replicas() -> set[int]:
    """Processes of Ray's that hold a model."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if "ServeReplica:secondpass-model-" in file.read_text():
                found.add(int(file.parent.name))
    return found


async def load_and_kill(url: str, path: str, bodies: list[dict[str, object]], options: argparse.Namespace) -> None:
    """The load for three times the seconds, and a table: before a replica is killed, until it is replaced, after."""
    [clients], began = options.clients, time.perf_counter()
    loading = asyncio.create_task(load(url + path, bodies, clients=clients, seconds=3 * options.seconds))
    await asyncio.sleep(options.seconds)
    before = replicas()
    os.kill(min(before), signal.SIGKILL)
    killed = time.perf_counter()
    await asyncio.sleep(4)  # the front counts replicas every other second
    async with httpx.AsyncClient(timeout=120) as session:
        while True:
            await asyncio.sleep(0.2)
            models = (await session.get(f"{url}/health")).json()["models"]
            if len(replicas() - {min(before)}) == len(before) and models["default"]["replicas"] == len(before):
                break
    replaced = time.perf_counter()
    tally, _ = await loading
    periods = {"before": (began, killed), "until replaced": (killed, replaced), "after": (replaced, tally.ends[-1])}
    for name, (start, end) in periods.items():
        print(row(f"{name} ({end - start:.0f} s)", clients, tally.between(start, end), end - start, options, 0.0))
    print(f"answered {len(tally.latencies)}, others: {tally.errors or 'none'}; longest {max(tally.latencies):.1f} s")


def commands(options: argparse.Namespace, port: int) -> dict[str, tuple[list[str], str]]:
    """How each server is started, and the address that it ranks at."""
    ours = shutil.which("secondpass") or "secondpass"
    model = f"bench={options.model}" if options.model != "default" else "default"
    settings = [f"models={model}", "log_level=warning", *options.set]
    on_ray = ["--on", "ray", "--replicas", str(options.replicas), "--cpus", "0.5"] if options.replicas else []
    found = {
        "secondpass": (
            [ours, "serve", "--port", str(port), *on_ray, *(word for each in settings for word in ("--set", each))],
            "/v1/rerank",
        )
    }
    if options.infinity:
        arguments = f"v2 --port {port} --host 127.0.0.1 --engine torch --device cpu --no-bettertransformer"
        named = ["--model-id", options.model, "--served-model-name", "bench"]
        found["infinity"] = ([options.infinity, *arguments.split(), *named], "/rerank")
    return found


def row(name: str, clients: int, tally: Tally, seconds: float, options: argparse.Namespace, alone: float) -> str:
    latencies = sorted(tally.latencies)
    rate = len(latencies) * options.passages / seconds
    p50, p99 = (1000 * latencies[int(len(latencies) * part)] for part in (0.5, 0.99))
    extra = f"{p50 - 1000 * alone:+.1f}" if clients == 1 else ""
    errors = " ".join(f"{count}x {kind}" for kind, count in tally.errors.items()) or "0"
    return f"| {name} | {clients} | {rate:.0f} | {p50:.1f} | {p99:.1f} | {extra} | {errors} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="embedded, or a folder that both servers can read")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--bodies", type=int, default=64, help="different requests")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--set", nargs="*", default=[], help="settings of secondpass, as in batch_tokens=8192")
    parser.add_argument("--infinity", help="path of infinity_emb, to compare")
    parser.add_argument("--replicas", type=int, default=0, help="of secondpass, on Ray; else one process")
    parser.add_argument("--kill", action="store_true", help="a replica, after --seconds")
    options = parser.parse_args()
    bodies = requests(options.bodies, options.passages)
    rate, alone = offline(options.model, bodies, options.engine)
    print(f"offline: {rate:.0f} pairs/s; one request of {options.passages} alone: {1000 * alone:.1f} ms\n")
    print("| server | clients | pairs/s | p50 ms | p99 ms | over the call without a server, ms | errors |")
    print("|---|---|---|---|---|---|---|")
    port = free_port()
    for name, (command, path) in commands(options, port).items():
        url = f"http://127.0.0.1:{port}"
        with running(command, url):
            if options.kill:
                asyncio.run(load_and_kill(url, path, bodies, options))
                continue
            for clients in options.clients:
                tally, seconds = asyncio.run(load(url + path, bodies, clients=clients, seconds=options.seconds))
                print(row(name, clients, tally, seconds, options, alone), flush=True)


if __name__ == "__main__":
    main()
