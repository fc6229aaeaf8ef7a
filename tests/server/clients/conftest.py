"""A live server of the embedded model, which can be told to refuse first, and what the clients sent to it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

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
def server() -> Iterator[Live]:
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
