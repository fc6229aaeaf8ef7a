"""RemoteReranker and this project's server: local and remote rank alike, in every dialect."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from secondpass import RemoteReranker, Reranker
from secondpass.cognitive import PARTS
from secondpass.errors import RemoteError
from secondpass.remote.reranker import in_batches
from secondpass.server.settings import ModelSource
from secondpass.wire.apis import APIS as FORMS
from tests.checkpoints import tiny_bert
from tests.server.live import serving

QUERY = "How do I keep bread fresh?"
TEXTS = [
    "Fresh bread is sold every morning.",
    "Slice the loaf and freeze it; a slice from the toaster tastes as on the first day.",
    "",
    "In a linen bag a loaf stays good for a week.",
    "The price of bread rose.",
    "In a linen bag a loaf stays good for a week.",
    "面包应放在干燥的地方。",
] * 2
DATED = [
    {"text": TEXTS[1], "created": "2020-01-01", "entities": ["toaster"]},
    {"text": TEXTS[1], "created": "2026-11-01", "supports": 2},
    {"text": TEXTS[3], "accessed": ["2026-11-01", 1763000000], "importance": 1, "confidence": 0.9},
    {"text": TEXTS[4], "created": "2026-11-28"},
    {"text": " ", "created": "2026-11-28"},
]
FILLED = [text for text in TEXTS if text]  # a server puts what has no words last
KEY = "a-key-of-the-test"
MODEL = ModelSource(name="default", path="default", dtype="float32")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(keys=(KEY,), models=(MODEL,)) as url:
        yield url


@pytest.fixture(scope="module")
def local() -> Reranker:
    return Reranker("default", dtype="float32")


@pytest.mark.parametrize(("dialect", "size"), [*((name, None) for name in FORMS), ("secondpass", 5), ("nim", 1)])
def test_local_and_remote_rank_alike(server: str, local: Reranker, dialect: str, size: int | None) -> None:
    there = local.rank(QUERY, TEXTS)
    with RemoteReranker(server, dialect=dialect, api_key=KEY, max_batch=size) as remote:
        here = remote.rank(QUERY, TEXTS)
        assert remote.score(QUERY, FILLED) == pytest.approx(local.score(QUERY, FILLED), abs=2e-3)
    scores = {hit.index: hit.score for hit in there}
    assert [hit.index for hit in here if not hit.is_scored] == [2, 9]  # nothing to read: last, not sent
    order = [scores[hit.index] for hit in here if hit.is_scored]
    assert all(left > right - 2e-3 for left, right in pairwise(order))  # what is nearly equal may change places
    assert [hit.score for hit in here if hit.is_scored] == pytest.approx(order, abs=2e-3)
    assert [hit.probability for hit in here] == pytest.approx(
        [hit.probability for hit in there], abs=1e-3, nan_ok=True
    )
    assert len(here) == len(there)
    if dialect == "secondpass":
        assert here.usage.tokens >= there.usage.tokens > 0  # one row for equal texts of one request


@pytest.mark.slow
@pytest.mark.parametrize("dialect", FORMS)
def test_a_wrong_key_is_said_in_every_dialect(server: str, dialect: str) -> None:
    with RemoteReranker(server, dialect=dialect, api_key="wrong-key-here") as remote:
        with pytest.raises(RemoteError, match="401") as caught:
            remote.score(QUERY, TEXTS)
        assert caught.value.status == 401 and "wrong-key-here" not in str(caught.value)


@pytest.mark.parametrize("base", ["/some/prefix", "/v1", "/"])
def test_below_a_prefix(server: str, local: Reranker, base: str) -> None:
    with RemoteReranker(server + base, dialect="nim", api_key=KEY) as remote:
        assert remote.score(QUERY, TEXTS[:2]) == pytest.approx(local.score(QUERY, TEXTS[:2]), abs=2e-3)


def test_many_tasks_at_once(server: str, local: Reranker) -> None:
    async def all_of_them() -> list[list[float]]:
        with RemoteReranker(server, api_key=KEY) as remote:
            return await asyncio.gather(*(remote.ascore(QUERY, FILLED[i:]) for i in range(8)))

    expected = local.score(QUERY, FILLED)
    for i, scores in enumerate(asyncio.run(all_of_them())):
        assert scores == pytest.approx(expected[i:], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", FORMS)
def test_no_dialect_fails_for_a_long_document(server: str, local: Reranker, dialect: str) -> None:
    base = f"{server}/jina" if dialect == "jina" else server  # no field tells it from Cohere's, the prefix does
    with RemoteReranker(base, dialect=dialect, api_key=KEY) as remote:
        scores = remote.score(QUERY, ["short", "bread " * 700])
    if not dialect.startswith("cohere"):  # which reads it in windows
        assert scores == pytest.approx(local.score(QUERY, ["short", "bread " * 700]), abs=2e-3)


@pytest.mark.slow
def test_what_was_cut_is_counted(server: str, local: Reranker) -> None:
    texts = ["short", "bread " * 2000]
    with RemoteReranker(server, api_key=KEY) as remote:
        usage = remote.rank(QUERY, texts).usage
    there = local.rank(QUERY, texts).usage
    assert (usage.tokens, usage.truncated) == (there.tokens, there.truncated) and usage.truncated == 1


@pytest.mark.slow
def test_long_documents_go_in_bodies_that_the_server_takes(tmp_path: Path) -> None:
    """Ten megabytes in all: more than one request may have."""
    documents = [(f"{place} the river and the old bridge. " * 300)[:10_000] for place in range(1000)]
    with serving(tiny_bert(tmp_path / "model")) as url:
        with RemoteReranker(url, timeout_s=300, deadline_s=600, retries=0) as remote:
            found = remote.rank("the bridge", documents)
    assert sorted(hit.index for hit in found) == list(range(1000))
    batches = in_batches(documents, 1000)
    assert max(sum(map(len, batch)) for batch in batches) <= 4 << 20
    assert [text for batch in batches for text in batch] == documents


@pytest.mark.slow
def test_a_body_that_the_server_does_not_take_is_an_error_that_says_so() -> None:
    with serving("default", max_body_bytes=100_000) as url:
        with pytest.raises(RemoteError, match=r"413|may take less: lower max_batch") as refused:
            RemoteReranker(url, retries=1).score("q", ["a" * 3_000_000])
    assert "cannot be reached" not in str(refused.value)


def test_cognitive_scoring_is_the_same_here_there_and_in_the_servers_own_form(server: str, local: Reranker) -> None:
    settings = {"now": "2026-11-28", "recency": 1.0}
    near = local.rank(QUERY, DATED, cognitive=settings)
    with RemoteReranker(server, api_key=KEY, max_batch=2) as remote:
        far = remote.rank(QUERY, DATED, cognitive=settings)
    body = {"query": QUERY, "documents": DATED, "cognitive": settings}
    headers = {"Authorization": f"Bearer {KEY}"}
    results = httpx.post(f"{server}/api/rank", json=body, headers=headers).json()["results"]
    assert [hit.index for hit in near] == [hit.index for hit in far] == [result["index"] for result in results]
    order = [hit.index for hit in near]
    assert order.index(1) < order.index(0)  # the newer of two that say the same
    for hit, other, result in zip(near, far, results, strict=True):
        if not hit.is_scored:
            assert result["parts"] is None
            continue
        parts = {name: hit.parts[name] for name in PARTS}
        assert result["parts"] == pytest.approx(parts, abs=2e-3)
        assert {name: other.parts[name] for name in PARTS} == pytest.approx(parts, abs=2e-3)
        assert result["score"] == pytest.approx(hit.score, abs=2e-3)
        assert result["probability"] == pytest.approx(hit.probability, abs=1e-3)


@pytest.mark.slow
def test_a_server_names_what_cognitive_scoring_cannot_read_and_without_it_reads_no_fields(server: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}

    def asked(documents: list[object], cognitive: object) -> httpx.Response:
        body = {"query": QUERY, "documents": documents, "cognitive": cognitive}
        return httpx.post(f"{server}/api/rank", json=body, headers=headers)

    for documents, cognitive, said in (
        (["a", {"text": "b", "created": "soon"}], True, "documents[1]: created is 'soon'"),
        (["a"], {"recency": "much"}, "recency is 'much'"),
        (["a"], {"colour": 1}, "cognitive has no 'colour'"),
        (["a"], "yes", "cognitive is a string"),
    ):
        answer = asked(documents, cognitive)
        assert answer.status_code in (400, 422)
        assert said in answer.json()["error"]["message"]
    plain = asked([{"text": "b", "created": "soon"}], None)
    assert plain.status_code == 200
    assert "parts" not in plain.json()["results"][0]
