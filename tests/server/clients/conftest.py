"""A live server of the embedded model, which can be told to refuse first, and what the clients sent to it.

SECONDPASS_SERVE is a command that starts a server elsewhere, on Ray for instance; the tests then speak through it.
"""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from secondpass.server.dialects import choose
from secondpass.wire.calls import Ranked, Refusal, RerankCall
from tests.server.clients import recorder
from tests.server.clients.question import KEY, Truth, truth
from tests.server.clients.recorder import Exchange, Recorder

# Nothing leaves the machine, neither for the clients' own statistics nor for their price lists.
os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    HAYSTACK_TELEMETRY_ENABLED="False",
    ANONYMIZED_TELEMETRY="False",
    DO_NOT_TRACK="1",
    LANGCHAIN_TRACING_V2="false",
)


@dataclass
class Live:
    """The server: its address, what it refuses first, and the exchanges of one test."""

    url: str
    refusals: deque[Refusal]
    recorder: Recorder

    def refuse(self, *refusals: Refusal) -> None:
        """The next rankings are refused, one by each of these."""
        self.refusals.extend(refusals)

    def exchange(self) -> Exchange:
        """The only exchange since the last time."""
        taken = self.recorder.take()
        assert len(taken) == 1
        return taken[0]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    if command := os.environ.get("SECONDPASS_SERVE"):
        yield from server_of(shlex.split(command), tmp_path_factory.mktemp("server") / "log")
    else:
        yield from server_here()


def server_of(command: list[str], log: Path) -> Iterator[Live]:
    from tests.scale.served import serve
    from tests.server.clients.passing import Passing
    from tests.server.live import running

    refusals: deque[Refusal] = deque()
    kept = Recorder()
    with serve([*command, "--port", "0"], key=KEY, log=log) as served:
        app = kept.wrap(Passing(served.url, refusals))
        with running(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")) as url:
            yield Live(url, refusals, kept)


def server_here() -> Iterator[Live]:
    from secondpass.server.service import CallContext, Service
    from secondpass.server.settings import Settings
    from tests.server.live import serving

    refusals: deque[Refusal] = deque()

    class Refusing(Service):
        """The service itself, behind refusals as an overloaded or stopping one gives them."""

        async def rerank(self, call: RerankCall, context: CallContext) -> Ranked:
            if refusals:
                raise refusals.popleft()
            return await super().rerank(call, context)

    kept = Recorder()
    with serving(Refusing(Settings()), keys=(KEY,), wrap=kept.wrap) as url:
        yield Live(url, refusals, kept)


@pytest.fixture
def live(server: Live) -> Iterator[Live]:
    server.recorder.take()
    yield server
    assert not server.refusals, "the client did not try as often as expected"
    server.refusals.clear()


@pytest.fixture(scope="session")
def right() -> Truth:
    return truth()


@pytest.fixture
def record(live: Live, request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks that each request of a test was read in the dialect of its `dialect` mark, and keeps it if told to."""
    yield
    taken = live.recorder.take()
    assert taken, "nothing arrived"
    package, wanted = request.node.get_closest_marker("dialect").args
    for number, exchange in enumerate(taken):
        found, _ = choose(exchange.path, exchange.request, exchange.headers, exchange.method)
        if exchange.method == "POST":
            assert found.name == wanted
        if os.environ.get("SECONDPASS_RECORD"):
            name = request.node.name.removeprefix("test_").replace("[", "_").rstrip("]").replace("/", "_")
            recorder.write(f"{name}_{number}" if number else name, package, found.name, exchange)
