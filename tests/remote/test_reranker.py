"""RemoteReranker against servers on loopback that are busy or wrong: what is asked, joined, tried again, said."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from secondpass import Document, RemoteReranker
from secondpass.errors import RemoteError
from tests.remote.loopback import GOOD, TEXTS, Loopback, Reply, Seen, by_length, client, cohere, in_turn, loopback

KEY = "sk-do-not-tell"


def test_rank_has_documents_scores_and_usage() -> None:
    documents = ["a", {"text": "bb", "source": 7}, Document("ccc")]
    with loopback(in_turn(Reply(cohere([0.2, 0.9, 0.5]) | {"usage": {"total_tokens": 12}}))) as server:
        ranking = client(server, model="m").rank("q", documents, top_n=2)
        assert server.seen[0].body == {"model": "m", "query": "q", "documents": TEXTS}
    assert [(hit.index, hit.rank, hit.probability) for hit in ranking] == [(1, 1, 0.9), (2, 2, 0.5)]
    assert [hit.score for hit in ranking] == pytest.approx([math.log(9), 0.0])
    assert ranking[0].document["source"] == 7
    assert (ranking.usage.rows, ranking.usage.tokens, ranking.failure) == (3, 12, None)


def test_score_keeps_the_order_of_the_input(lengths: Loopback) -> None:
    with client(lengths) as remote:
        assert remote.score("q", TEXTS) == pytest.approx([0.5, 1.0, 1.5])
        assert remote.score("q", []) == []
        assert len(remote.rank("q", [])) == 0


def test_async_says_the_same(lengths: Loopback) -> None:
    with client(lengths) as remote:

        async def both() -> None:
            assert await remote.ascore("q", TEXTS) == remote.score("q", TEXTS)
            assert (await remote.arank("q", TEXTS)).texts == ["ccc", "bb", "a"]

        asyncio.run(both())
        asyncio.run(both())  # another event loop, the same connections


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_batches_are_joined_in_input_order(lengths: Loopback, size: int) -> None:
    texts = ["x" * (i * 7 % 23) for i in range(40)]
    before = len(lengths.seen)
    with client(lengths, dialect="tei", max_batch=size) as remote:
        assert remote.score("q", texts) == [len(text) / 2 for text in texts]
    assert len(lengths.seen) - before == math.ceil(40 / size)


def test_a_dialects_limit_holds_by_default(lengths: Loopback) -> None:
    before = len(lengths.seen)
    with client(lengths, dialect="tei") as remote:
        remote.score("q", ["x"] * 70)
    assert sorted(len(seen.body["texts"]) for seen in lengths.seen[before:]) == [6, 32, 32]


def test_equal_scores_keep_input_order_and_certain_ones_keep_theirs() -> None:
    with loopback(in_turn(Reply(cohere([1e-300, 0.5, 0.0, 0.5, 1e-200])))) as server:
        assert [hit.index for hit in client(server).rank("q", list("abcde"))] == [1, 3, 4, 0, 2]


@pytest.mark.slow
def test_threads_share_a_reranker(lengths: Loopback) -> None:
    with client(lengths, max_batch=3) as remote, ThreadPoolExecutor(8) as pool:
        texts = [["x" * (i + j) for j in range(10)] for i in range(20)]
        for asked, scores in zip(texts, pool.map(lambda t: remote.score("q", t), texts), strict=True):
            assert scores == pytest.approx([len(text) / 2 for text in asked])


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_passing_failures_are_tried_again(status: int) -> None:
    with loopback(in_turn(Reply({"message": "busy"}, status), Reply({}, status), GOOD)) as server:
        assert client(server).rank("q", TEXTS)[0].index == 1
        assert len(server.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 500, 501])
def test_other_failures_are_said_at_once(status: int) -> None:
    with loopback(in_turn(Reply({"message": "not so"}, status), GOOD)) as server:
        with pytest.raises(RemoteError, match=f"{status} .*: not so") as caught:
            client(server).score("q", TEXTS)
        assert caught.value.status == status and len(server.seen) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"id": "1", "message": "of cohere"}, "of cohere"),
        ({"detail": "of voyage"}, "of voyage"),
        ({"detail": [{"loc": ["body"], "msg": "of fastapi", "type": "x"}]}, "of fastapi"),
        ({"error": {"message": "of openai", "code": 400}}, "of openai"),
        ({"error": "of tei", "error_type": "Validation"}, "of tei"),
        (b"<html><head><title>413 Too Large</title></head></html>", "413 Too Large"),
        (b"\xff\xfe no text", "400 Bad Request$"),
    ],
)
def test_the_words_of_every_kind_of_server_are_shown(body: Any, said: str) -> None:
    with loopback(in_turn(Reply(body, 400))) as server, pytest.raises(RemoteError, match=said):
        client(server).score("q", TEXTS)


def test_retries_end() -> None:
    with loopback(in_turn(Reply({"message": "busy"}, 503))) as server:
        with pytest.raises(RemoteError, match=r"503 .*busy \(tried 3 times\)"):
            client(server, retries=2).score("q", TEXTS)
        assert len(server.seen) == 3


@pytest.mark.promise("docs/serving.md", "never shorter than `Retry-After` says")
def test_retry_after_is_honoured() -> None:
    with loopback(in_turn(Reply({}, 429, {"Retry-After": "0.3"}), GOOD)) as server:
        started = time.monotonic()
        client(server).score("q", TEXTS)
        assert time.monotonic() - started >= 0.3


@pytest.mark.promise("docs/serving.md", "A pause that the deadline does not allow fails at once")
@pytest.mark.parametrize("asked", ["3600", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_a_wait_that_the_deadline_forbids_fails_at_once(asked: str) -> None:
    with loopback(in_turn(Reply({"message": "later"}, 429, {"Retry-After": asked}), GOOD)) as server:
        started = time.monotonic()
        with pytest.raises(RemoteError, match="later"):
            client(server).score("q", TEXTS)
        assert time.monotonic() - started < 5 and len(server.seen) == 1


def test_the_deadline_is_over_all_batches() -> None:
    with loopback(in_turn(Reply(is_silent=True))) as server:
        started = time.monotonic()
        with pytest.raises(RemoteError, match="no answer within"):
            client(server, max_batch=1, deadline_s=0.3).score("q", ["a"] * 20)
        assert time.monotonic() - started < 10


def test_one_failed_batch_fails_the_call() -> None:
    def script(seen: Seen) -> Reply:
        return Reply({"message": "no"}, 400) if "bad" in seen.body["documents"] else by_length(seen)

    with loopback(script) as server, pytest.raises(RemoteError, match="no"):
        client(server, max_batch=2).score("q", ["a", "b", "c", "bad", "d"])


@pytest.mark.promise(
    "docs/serving.md", "Answers that are no JSON, lack a document, have one twice, or have NaN are errors that say so"
)
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<!doctype html>\n<html><title>Sign in</title></html>", "web page"),
        (b"", r"not JSON \(0 bytes"),
        (b'{"results": [', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xff", "not JSON"),
        (b'{"results": [{"index": 0, "relevance_score": NaN}]}', "is nan"),
        ({"rankings": []}, "is it the right dialect"),
        (cohere([0.1, 0.2]), "2 of 3 documents"),
        (cohere([0.1, 0.2, 0.3, 0.4]), "3 documents were sent"),
        (cohere([0.1, 0.2, 3.0]), "no probability"),
    ],
)
def test_wrong_answers_are_said(body: Any, said: str) -> None:
    with loopback(in_turn(Reply(body))) as server, pytest.raises(RemoteError, match=said) as caught:
        client(server).score("q", TEXTS)
    assert str(caught.value).startswith("http://127.0.0.1")


def test_scores_may_be_said_to_be_logits() -> None:
    with loopback(in_turn(Reply(cohere([4.0, -9.0])))) as server:
        assert client(server, scores="logit").score("q", ["a", "b"]) == [4.0, -9.0]


@pytest.mark.promise("docs/serving.md", "gives the documents in their input order with `Ranking.failure` set")
@pytest.mark.parametrize(
    "reply",
    [
        Reply({"message": "busy"}, 503),
        Reply({"message": "no such key"}, 401),
        Reply(b"<html></html>"),
        Reply(cohere([0.1])),
        Reply(b"", 302, {"Location": "http://user@[x/"}),
        Reply({}, 429, {"Retry-After": "Thu, 31 Dec 2026 23:59:59 +99999999999999999999"}),
    ],
)
def test_fail_open_keeps_the_order_and_says_so(reply: Reply, caplog: pytest.LogCaptureFixture) -> None:
    with loopback(in_turn(reply)) as server, caplog.at_level(logging.WARNING, logger="secondpass"):
        remote = client(server, retries=1, fail_open=True)
        ranking = remote.rank("q", TEXTS, top_n=2)
        with pytest.raises(RemoteError):
            remote.score("q", TEXTS)
    assert [(hit.index, hit.rank) for hit in ranking] == [(0, 1), (1, 2)]
    assert all(math.isnan(hit.score) and math.isnan(hit.probability) for hit in ranking)
    assert ranking.failure is not None and ranking.failure in caplog.text and server.url in ranking.failure
    assert (ranking.usage.rows, ranking.usage.unscored) == (0, 3)
    assert not any(hit.is_scored for hit in ranking)


def test_fail_open_is_not_for_mistakes_of_the_caller(lengths: Loopback) -> None:
    remote = client(lengths, fail_open=True)
    with pytest.raises(TypeError, match="query"):
        remote.rank(None, TEXTS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top_n"):
        remote.rank("q", TEXTS, top_n=0)
    with pytest.raises(TypeError, match=r"documents\[1\]"):
        remote.rank("q", ["a", 2])  # type: ignore[list-item]


@pytest.mark.promise("docs/serving.md", "neither key nor header values are ever in an error or a log")
def test_the_key_is_sent_and_never_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with loopback(in_turn(Reply({"message": f"{KEY} is no key; nor is gate-pass-1"}, 401))) as server:
        remote = client(server, api_key=KEY + "\n", headers={"X-Gate": "gate-pass-1"})
        with pytest.raises(RemoteError) as caught:
            remote.score("q", TEXTS)
        assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
        assert server.seen[0].headers["x-gate"] == "gate-pass-1"
    everything = f"{caught.value} {caught.getrepr()} {remote!r} {caplog.text}"
    assert KEY not in str(caught.value) and "gate-pass-1" not in str(caught.value)
    assert KEY not in f"{remote!r} {caplog.text}" and "[secret] is no key" in everything


@pytest.mark.promise("docs/serving.md", "neither key nor header values are ever in an error or a log")
def test_a_value_as_a_file_has_it_is_sent_without_its_line_end() -> None:
    """The client's own error quotes a value that cannot be sent."""
    with loopback(in_turn(Reply({"message": f"{KEY} is no key"}, 401))) as server:
        with pytest.raises(RemoteError, match=r"\[secret\] is no key"):
            client(server, headers={"Authorization": f"Bearer {KEY}\n"}).score("q", TEXTS)
        assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    with pytest.raises(ValueError, match=r"headers\['X-Gate'\] has characters that a header cannot carry") as caught:
        RemoteReranker("http://127.0.0.1:1", headers={"X-Gate": f"{KEY}\r\nX: y"})
    assert KEY not in str(caught.value)


def test_the_key_may_come_from_the_environment(lengths: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDPASS_API_KEY", KEY)
    client(lengths).score("q", TEXTS)
    client(lengths, api_key="").score("q", TEXTS)
    assert lengths.seen[-2].headers["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in lengths.seen[-1].headers


def test_headers_replace_the_usual_ones(lengths: Loopback) -> None:
    client(lengths, api_key=KEY, headers={"AUTHORIZATION": "Token x"}).score("q", TEXTS)
    assert lengths.seen[-1].headers["authorization"] == "Token x"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dialect": "coher"}, "dialect is 'coher'; there are secondpass, cohere"),
        ({"scores": "raw"}, "scores is 'raw'"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"deadline_s": math.nan}, "deadline_s is nan"),
        ({"retries": -1}, "retries is -1"),
        ({"api_key": "two\nlines"}, "api_key has characters"),
        ({"api_key": "ключ"}, "api_key has characters"),
        ({"headers": {"X-Gate": "schlüssel"}}, r"headers\['X-Gate'\] has characters"),
    ],
)
def test_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RemoteReranker("http://127.0.0.1:1", **options)
