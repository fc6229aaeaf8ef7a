"""Cohere's own client, v1 and v2, sync and async; its errors and its retries."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from secondpass.wire.calls import Fault, Refusal
from tests.server.clients.conftest import Live
from tests.server.clients.question import FAKE_MODEL, KEY, PASSAGES, QUERY, RIGHT, Truth

pytestmark = pytest.mark.clients
ask: dict[str, Any] = {"model": FAKE_MODEL, "query": QUERY, "documents": list(PASSAGES)}
spoken = pytest.mark.dialect("cohere", "cohere")


@pytest.fixture
def v2(live: Live) -> Any:
    import cohere

    return cohere.ClientV2(api_key=KEY, base_url=live.url)


@spoken
@pytest.mark.usefixtures("record")
def test_cohere_v2(v2: Any, right: Truth) -> None:
    answer = v2.rerank(**ask, top_n=3, max_tokens_per_doc=2048, priority=1)
    right.check([hit.index for hit in answer.results], [hit.relevance_score for hit in answer.results], top_n=3)
    assert answer.id
    assert answer.meta.api_version.version == "2"
    assert answer.meta.billed_units.search_units == 1


@spoken
@pytest.mark.usefixtures("record")
def test_cohere_v2_async(live: Live, right: Truth) -> None:
    import cohere

    async def ranked() -> Any:
        async with cohere.AsyncClientV2(api_key=KEY, base_url=live.url) as client:
            return await client.rerank(**ask)

    answer = asyncio.run(ranked())
    right.check([hit.index for hit in answer.results], [hit.relevance_score for hit in answer.results])


@spoken
@pytest.mark.usefixtures("record")
def test_cohere_v2_of_yaml_documents(v2: Any) -> None:
    import yaml

    rows = [{"title": "weather", "text": passage} for passage in PASSAGES]
    documents = [yaml.dump(row, sort_keys=False) for row in rows]
    answer = v2.rerank(model=FAKE_MODEL, query=QUERY, documents=documents)
    assert answer.results[0].index == RIGHT


@spoken
@pytest.mark.usefixtures("record")
def test_cohere_v1_of_objects(live: Live, right: Truth) -> None:
    import cohere

    documents = [{"text": passage, "id": str(i)} for i, passage in enumerate(PASSAGES)]
    client = cohere.Client(api_key=KEY, base_url=live.url)
    answer = client.rerank(
        model=FAKE_MODEL, query=QUERY, documents=documents, rank_fields=["text"], return_documents=True, top_n=4
    )
    right.check([hit.index for hit in answer.results], [hit.relevance_score for hit in answer.results], top_n=4)
    assert [hit.document.text for hit in answer.results] == [PASSAGES[hit.index] for hit in answer.results]
    assert answer.results[0].document.id == str(RIGHT)


@spoken
@pytest.mark.usefixtures("record")
def test_cohere_v1_async_by_two_fields(live: Live) -> None:
    import cohere

    async def ranked() -> Any:
        async with cohere.AsyncClient(api_key=KEY, base_url=live.url) as client:
            documents = [{"title": passage, "note": "n"} for passage in PASSAGES]
            return await client.rerank(query=QUERY, documents=documents, rank_fields=["title", "note"])

    assert asyncio.run(ranked()).results[0].index == RIGHT


@pytest.mark.parametrize("tail", ["/", "/azure/deployment/", "/cohere"])
def test_any_prefix_will_do(live: Live, right: Truth, tail: str) -> None:
    """Azure's endpoints are used with a base URL that has a prefix or ends in a slash."""
    import cohere

    answer = cohere.ClientV2(api_key=KEY, base_url=live.url + tail).rerank(**ask)
    right.check([hit.index for hit in answer.results], [hit.relevance_score for hit in answer.results])


def test_a_wrong_key_is_an_unauthorized_error(live: Live) -> None:
    import cohere

    with pytest.raises(cohere.UnauthorizedError) as raised:
        cohere.ClientV2(api_key="another", base_url=live.url).rerank(**ask)
    assert raised.value.body["message"]


@spoken
@pytest.mark.usefixtures("record")
def test_cohere_wrong_value_is_a_bad_request_error(v2: Any) -> None:
    import cohere

    with pytest.raises(cohere.BadRequestError) as raised:
        v2.rerank(**ask, top_n=-1)
    assert raised.value.body["message"] == "top_n is -1; it should be greater than or equal to 0"
    with pytest.raises(cohere.BadRequestError, match="documents is empty"):
        v2.rerank(model=FAKE_MODEL, query=QUERY, documents=[])


@spoken
@pytest.mark.usefixtures("record")
def test_cohere_picture_is_an_unprocessable_entity_error(live: Live) -> None:
    import cohere

    documents = [{"image": "https://example.org/a.png"}]
    with pytest.raises(cohere.UnprocessableEntityError, match="text only"):
        cohere.Client(api_key=KEY, base_url=live.url).rerank(query=QUERY, documents=documents)


def test_an_overloaded_server_is_tried_again_when_it_says(live: Live, v2: Any, right: Truth) -> None:
    live.refuse(*[Refusal(Fault.overloaded, "the queue is full", retry_after=0.2)] * 2)
    started = time.monotonic()
    answer = v2.rerank(**ask)
    assert 0.3 < time.monotonic() - started < 5
    right.check([hit.index for hit in answer.results], [hit.relevance_score for hit in answer.results])
    assert [exchange.status for exchange in live.recorder.take()] == [429, 429, 200]


@pytest.mark.parametrize(
    ("fault", "status", "name"),
    [
        (Fault.overloaded, 429, "TooManyRequestsError"),
        (Fault.unavailable, 503, "ServiceUnavailableError"),
        (Fault.internal, 500, "InternalServerError"),
    ],
)
def test_what_stays_refused_is_an_error_of_its_own(live: Live, v2: Any, fault: Fault, status: int, name: str) -> None:
    import cohere

    live.refuse(*[Refusal(fault, "not now", retry_after=0.05)] * 3)
    with pytest.raises(getattr(cohere, name)) as raised:
        v2.rerank(**ask)
    assert raised.value.body["message"] == "not now"
    assert [exchange.status for exchange in live.recorder.take()] == [status] * 3


def test_a_deadline_is_a_gateway_timeout(live: Live, v2: Any) -> None:
    import cohere

    live.refuse(Refusal(Fault.deadline, "not done in time"))
    with pytest.raises(cohere.GatewayTimeoutError):
        v2.rerank(**ask, request_options={"max_retries": 0})
