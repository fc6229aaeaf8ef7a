"""A served index: it answers from what was added, and reads nothing that a request names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from secondpass.search.index import Index
from tests.server.live import serving


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("served")
    (place / "notes").mkdir()
    (place / "notes" / "beans.md").write_text("# Beans\n\nDry beans cook for ninety minutes.\n\n## Salt\n\nLate.\n")
    (place / "outside.txt").write_text("a secret outside of the notes\n")
    index = Index("notes", folder=place / "data", embedder="none", create=True)
    index.add(place / "notes")
    index.close()
    with serving(keys=("key",), index="notes", index_folder=str(place / "data"), mcp=True) as found:
        yield found


def post(url: str, name: str, body: Any, key: str = "key") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/v1/index/{name}", json=body, headers=headers, timeout=60)


def test_it_is_searched_read_and_judged(url: str) -> None:
    answer = post(url, "search", {"query": "how long do beans cook", "top_n": 1, "explain": True, "cognitive": True})
    (hit,) = answer.json()["results"]
    assert "sentence" not in hit
    asked = post(url, "search", {"query": "how long do beans cook", "top_n": 1, "sentences": True}).json()
    assert hit["text"][slice(*asked["results"][0]["sentence"])] == "Dry beans cook for ninety minutes."
    assert hit["text"].startswith("# Beans")
    assert hit["parts"]["bm25_rank"] == 1
    assert hit["parts"]["final"] == pytest.approx(hit["parts"]["relevance"])
    assert post(url, "get", {"id": hit["id"]}).json()["text"] == hit["text"]
    body = {"query": "how long do beans cook", "id": hit["id"], "kind": "used"}
    assert post(url, "feedback", body).json() == {"recorded": "used"}


def test_update_reads_the_folders_of_the_index_alone(url: str) -> None:
    assert post(url, "update", {"path": "/etc"}).status_code == 400
    report = post(url, "update", {}).json()
    assert (report["added"], report["unchanged"]) == (0, 1)
    found = post(url, "search", {"query": "secret outside"}).json()["results"]
    assert all("secret" not in hit["text"] for hit in found)


def test_it_needs_the_key_of_the_server(url: str) -> None:
    assert post(url, "search", {"query": "beans"}, key="wrong").status_code == 401


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("search", {}, "query is missing"),
        ("search", {"query": 7}, "query is a int"),
        ("search", {"query": "q", "top_n": True}, "top_n is a bool"),
        ("search", {"query": "q", "top_n": 1000}, "top_n is 1000; give 1 to 100"),
        ("search", {"query": "q", "depth": 9}, "there is no field 'depth'"),
        ("search", {"query": "q", "since": "soon"}, "since is 'soon'"),
        ("search", {"query": "q", "cognitive": {"recancy": 1}}, "cognitive has no 'recancy'"),
        ("search", [], "the body is no object"),
        ("get", {"id": 999}, "there is no chunk 999"),
        ("feedback", {"query": "beans", "id": 999, "kind": "used"}, "999 is not among what is found"),
    ],
)
def test_bad_requests_are_refused_in_words(url: str, name: str, body: Any, said: str) -> None:
    answer = post(url, name, body)
    assert answer.status_code == 400
    assert said in answer.text


def test_agents_find_it_at_mcp_with_the_key_alone(url: str) -> None:
    anyio = pytest.importorskip("anyio")
    mcp = pytest.importorskip("mcp")
    http = pytest.importorskip("mcp.client.streamable_http")
    httpx2 = pytest.importorskip("httpx2")

    async def talk() -> None:
        async with httpx2.AsyncClient(headers={"Authorization": "Bearer key"}, timeout=60) as client:
            async with mcp.Client(http.streamable_http_client(f"{url}/mcp", http_client=client)) as agent:
                found = await agent.call_tool("search", {"query": "how long do beans cook"})
                assert found.structured_content["passages"][0]["line"] == 1

    anyio.run(talk)
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert httpx.post(f"{url}/mcp", json=body).status_code == 401
