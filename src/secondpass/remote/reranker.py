"""RemoteReranker: a query and candidates in, a ranking out, computed by a server."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secondpass.cognitive import Cognitive
from secondpass.errors import RemoteError
from secondpass.public import Opened, for_each_query, hinted
from secondpass.remote.transport import Patience, Transport, shown
from secondpass.scoring.ranking import RankOptions, log_odds, ranked, unscored_hit
from secondpass.text.documents import as_documents, clean_query, is_blank, text_of
from secondpass.types import Document, DocumentLike, EarlyExit, Hit, Progress, Ranking, Usage
from secondpass.wire.apis import APIS, Answer, Api, endpoint, read, request

logger = logging.getLogger("secondpass")
KEY_VARIABLE = "SECONDPASS_API_KEY"
SHORTEST_SECRET = 6  # characters; shorter values of headers are not looked for in errors
MAX_BATCH_BYTES = 4 << 20  # of the texts of one request: half of what this project's server takes
MAX_CONCURRENT = 4  # batches of one call under way at a time


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A checked call."""

    query: str
    documents: list[Document]
    texts: list[str]


class RemoteReranker(Opened):
    """Scores with a server over HTTP: `secondpass serve`, another that speaks its dialects, or a hosted API.

    url: the server's base, as in "http://127.0.0.1:8787", or the whole address of its rerank route.
    dialect: a name of `wire.apis.APIS`, as "secondpass", "cohere" (v2), "jina", "voyage", "tei" or "vllm".
    model: the name that the server knows it by; None: the server's own choice, where the dialect has one.
    api_key: sent as a bearer token; None: that of the environment variable SECONDPASS_API_KEY, if there is one.
    timeout_s limits one try, deadline_s a call with all its batches and retries (429, 502, 503, 504 and broken
    connections, with growing pauses, never shorter than Retry-After says).
    max_batch: documents in one request; None: the dialect's usual limit. Batches are joined in input order.
    scores: "logit" or "probability", where a server's numbers are not what its dialect usually means.
    long_documents: "truncate" or "chunk", for this project's server; None: as its model was loaded.
    ca_file: certificates to trust in place of the usual ones; TLS is always verified.
    fail_open: when the server fails, `rank` keeps the input order, `Ranking.failure` says why, and no hit is scored
    (NaN, is_scored False). `score` raises all the same, since a list of numbers could not say that it is none.

    A score is a raw logit as everywhere. "secondpass", "tei", "nim", "infinity" and "llamacpp" send it; from the
    probability of the others it is the log-odds, held within ±36.7. For models whose activation is not the plain
    sigmoid only "secondpass" has both numbers right. usage.tokens and .truncated are 0 where a server does not say.
    Safe to use from several threads and event loops. Raises RemoteError, and MissingExtra where httpx is missing.
    """

    @hinted
    def __init__(
        self,
        url: str,
        *,
        dialect: str = "secondpass",
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        deadline_s: float = 60.0,
        retries: int = 3,
        backoff_s: float = 0.25,
        max_batch: int | None = None,
        headers: Mapping[str, str] | None = None,
        scores: str | None = None,
        ca_file: str | Path | None = None,
        fail_open: bool = False,
        long_documents: str | None = None,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        self._api = _api(dialect, scores, max_batch)
        if long_documents is not None:
            self._api = _with_long_documents(self._api, long_documents)
        self._dialect, self._model, self._fails_open = dialect, model, fail_open
        key = _carried(os.environ.get(KEY_VARIABLE) if api_key is None else api_key, "api_key")
        more = {name: _carried(value, f"headers[{name!r}]") for name, value in (headers or {}).items()}
        sent = _headers(key, {**self._api.headers, **more})
        self._transport = Transport(
            endpoint(url, self._api.path),
            patience=Patience(timeout_s=timeout_s, deadline_s=deadline_s, retries=retries, backoff_s=backoff_s),
            headers=sent,
            secrets=_secrets(key, *more.values()),
            ca_file=ca_file,
            says_deadline=self._api.takes_deadline,
        )

    @hinted
    def rank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        *,
        top_n: int | None = None,
        rank_fields: Sequence[str] | None = None,
        explain: bool = False,
        budget_ms: float | None = None,
        first_scores: Sequence[float] | None = None,
        early_exit: EarlyExit | float | Mapping[int, float] | None = None,
        cognitive: Cognitive | Mapping[str, Any] | bool | None = None,
        progress: Progress | None = None,
    ) -> Ranking:
        """The documents, best first; equal scores keep their input order. No documents give an empty ranking.

        cognitive is added here, to what the server says. progress hears of documents, a request at a time. explain,
        budget_ms, first_scores and early_exit are refused: a call has `deadline_s`.
        """
        options = RankOptions(
            top_n=top_n,
            rank_fields=rank_fields,
            explain=explain,
            budget_ms=budget_ms,
            first_scores=first_scores,
            early_exit=early_exit,
            cognitive=cognitive,
            progress=progress,
        )
        return self._transport.run(self._rank(_ask(query, documents, rank_fields), options))

    @hinted
    async def arank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        *,
        top_n: int | None = None,
        rank_fields: Sequence[str] | None = None,
        explain: bool = False,
        budget_ms: float | None = None,
        first_scores: Sequence[float] | None = None,
        early_exit: EarlyExit | float | Mapping[int, float] | None = None,
        cognitive: Cognitive | Mapping[str, Any] | bool | None = None,
        progress: Progress | None = None,
    ) -> Ranking:
        """`rank` for asyncio; cancelling it drops the requests."""
        options = RankOptions(
            top_n=top_n,
            rank_fields=rank_fields,
            explain=explain,
            budget_ms=budget_ms,
            first_scores=first_scores,
            early_exit=early_exit,
            cognitive=cognitive,
            progress=progress,
        )
        return await self._transport.arun(self._rank(_ask(query, documents, rank_fields), options))

    rank_many = for_each_query(rank)

    def score(self, query: str, documents: Sequence[DocumentLike]) -> list[float]:
        """Raw logits in input order."""
        return self._transport.run(self._answer(_ask(query, documents))).scores

    async def ascore(self, query: str, documents: Sequence[DocumentLike]) -> list[float]:
        """`score` for asyncio."""
        return (await self._transport.arun(self._answer(_ask(query, documents)))).scores

    def close(self) -> None:
        """Close the connections; a later call opens new ones. Also done when the object is forgotten."""
        self._transport.close()

    def __repr__(self) -> str:
        return f"RemoteReranker({shown(self._transport.address)!r}, dialect={self._dialect!r}, model={self._model!r})"

    async def _rank(self, asked: _Asked, options: RankOptions) -> Ranking:
        started = time.perf_counter()
        why = "a remote reranker"
        options.refuse(why, explain="gets scores alone", budget_ms="has deadline_s", early_exit="gets scores alone")
        filled = [i for i, text in enumerate(asked.texts) if not is_blank(text)]
        sent = replace(asked, texts=[asked.texts[i] for i in filled])
        try:
            answer, failure = await self._answer(sent, options.progress), None
        except RemoteError as error:
            if not self._fails_open:
                raise
            logger.warning("documents keep their order, the reranker failed: %s", error)
            answer, failure = Answer(scores=[], probabilities=[]), str(error)
        numbers = dict(zip(filled, zip(answer.scores, answer.probabilities, strict=True), strict=failure is None))
        # The probability decides where two logits were held at the same limit; the sort keeps the order of equals.
        order = sorted(numbers, key=numbers.__getitem__, reverse=True)
        order += [i for i in range(len(asked.texts)) if i not in numbers]
        usage = Usage(
            rows=len(numbers),
            unscored=len(asked.texts) - len(numbers),
            tokens=answer.tokens,
            truncated=answer.truncated,
            seconds=time.perf_counter() - started,
        )
        hits = [self._hit(asked, i, numbers.get(i), options) for i in order]
        best = ranked(asked.query, hits, options, log_odds)
        return Ranking(asked.query, best, usage, failure, warnings=answer.warnings)

    def _hit(self, asked: _Asked, index: int, numbers: tuple[float, float] | None, options: RankOptions) -> Hit:
        read_text = None if options.rank_fields is None else asked.texts[index]
        hit = unscored_hit(index, asked.documents[index], read_text)
        if numbers is None:
            return hit
        return replace(hit, score=numbers[0], probability=numbers[1], is_scored=True)

    async def _answer(self, asked: _Asked, progress: Progress | None = None) -> Answer:
        """One answer for all documents, whatever the number of requests."""
        num_done = 0

        async def counted(texts: list[str]) -> Answer:
            nonlocal num_done
            answer = await self._batch(asked.query, texts, gate, until)
            num_done += len(texts)
            if progress is not None:
                progress(num_done, len(asked.texts))
            return answer

        until = time.monotonic() + self._transport.patience.deadline_s
        gate = asyncio.Semaphore(MAX_CONCURRENT)
        batches = in_batches(asked.texts, self._api.max_batch)
        tasks = [asyncio.ensure_future(counted(texts)) for texts in batches]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return Answer(
            scores=[score for answer in answers for score in answer.scores],
            probabilities=[probability for answer in answers for probability in answer.probabilities],
            tokens=sum(answer.tokens for answer in answers),
            truncated=sum(answer.truncated for answer in answers),
            warnings=tuple(dict.fromkeys(warning for answer in answers for warning in answer.warnings)),
        )

    async def _batch(self, query: str, texts: list[str], gate: asyncio.Semaphore, until: float) -> Answer:
        async with gate:
            body = await self._transport.post(request(self._api, query, texts, self._model), until)
        try:
            return read(self._api, body, len(texts))
        except RemoteError as error:
            raise RemoteError(f"{shown(self._transport.address)}: {error}") from None


def _api(dialect: str, scores: str | None, max_batch: int | None) -> Api:
    if dialect not in APIS:
        raise ValueError(f"dialect is {dialect!r}; there are {', '.join(APIS)}")
    if scores not in (None, "logit", "probability"):
        raise ValueError(f"scores is {scores!r}; give 'logit' or 'probability', or None for the dialect's own")
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}; give 1 or more, or None for the dialect's limit")
    api = APIS[dialect]
    if scores is not None and api.probability is None:
        api = replace(api, gives="logit" if scores == "logit" else "probability", raw={})
    return api if max_batch is None else replace(api, max_batch=max_batch)


def _with_long_documents(api: Api, long_documents: str) -> Api:
    if api.name != "secondpass":
        raise ValueError(f"long_documents is a field of the dialect 'secondpass', not of {api.name!r}")
    if long_documents not in ("truncate", "chunk"):
        raise ValueError(f"long_documents is {long_documents!r}; give 'truncate' or 'chunk'")
    return replace(api, constants={**api.constants, "long_documents": long_documents})


def in_batches(texts: Sequence[str], max_batch: int) -> list[list[str]]:
    """The texts in requests of at most max_batch and MAX_BATCH_BYTES; a longer text goes alone."""
    batches: list[list[str]] = []
    size = MAX_BATCH_BYTES
    for text in texts:
        more = len(text.encode("utf-8", "surrogatepass")) + 4  # quotes, a comma, a little of what is escaped
        if not batches or len(batches[-1]) >= max_batch or size + more > MAX_BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(text)
        size += more
    return batches


def _carried(text: str | None, name: str) -> str:
    """A key, or a header's value, without the line end that a file leaves on it; it is never in an error."""
    text = (text or "").strip()
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"{name} has characters that a header cannot carry; is it the right text?")
    return text


def _secrets(*values: str) -> list[str]:
    """What is looked for in errors: each value, and what stands in it behind a scheme, as in "Bearer KEY"."""
    found = [part for value in values for part in (value, value.rpartition(" ")[2])]
    return [part for part in found if len(part) >= SHORTEST_SECRET]


def _headers(key: str, more: Mapping[str, str]) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept": "application/json", "user-agent": "secondpass"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    return headers | {name.lower(): value for name, value in more.items()}


def _ask(
    query: str,
    documents: Iterable[DocumentLike],
    rank_fields: Sequence[str] | None = None,
) -> _Asked:
    kept = as_documents(documents, rank_fields)
    texts = [text_of(document, rank_fields, index) for index, document in enumerate(kept)]
    return _Asked(query=clean_query(query), documents=kept, texts=texts)
