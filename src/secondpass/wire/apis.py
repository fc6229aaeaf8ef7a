"""How each rerank API writes a request and an answer, as data; what an answer must hold; no HTTP here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from secondpass.errors import RemoteError

MAX_LOGIT = math.log(2.0**53 - 1)  # logit of the largest double below 1
_ROUTES = ("rerank", "reranking", "ranking", "rank")


@dataclass(frozen=True, kw_only=True)
class Form:
    """One API: where it listens, what its fields are called, and what its numbers mean.

    results None: the answer itself is the list. score is the name of the number that is a raw logit when gives is
    "logit" and its activation when gives is "probability"; probability names the second where both are there.
    """

    path: str
    documents: str = "documents"
    results: str | None = "results"
    score: str = "relevance_score"
    probability: str | None = None
    gives: str = "probability"
    top: str | None = None  # sent as the number of texts, where it tells a server that speaks several dialects which
    takes_deadline: bool = False  # as a header, so that the server drops what nobody waits for
    wraps_texts: bool = False  # {"text": ...} in place of a string
    constants: Mapping[str, Any] = field(default_factory=dict)
    max_batch: int = 1000


FORMS: Mapping[str, Form] = {
    "secondpass": Form(
        path="/api/rank", score="score", probability="probability", gives="logit", takes_deadline=True
    ),
    "cohere": Form(path="/v2/rerank"),
    "cohere-v1": Form(path="/v1/rerank", constants={"return_documents": False}),
    "jina": Form(path="/v1/rerank", constants={"return_documents": False}),
    "voyage": Form(
        path="/v1/rerank", results="data", top="top_k", constants={"return_documents": False, "truncation": True}
    ),
    "tei": Form(
        path="/rerank",
        documents="texts",
        results=None,
        score="score",
        gives="logit",
        constants={"raw_scores": True, "truncate": True, "return_text": False},
        max_batch=32,
    ),
    # Its switch for logits has had several names, and an unknown name is ignored: the default is what is sure.
    "vllm": Form(path="/rerank", constants={"truncate_prompt_tokens": -1}),
    "nim": Form(
        path="/v1/ranking",
        documents="passages",
        results="rankings",
        score="logit",
        gives="logit",
        wraps_texts=True,
        constants={"truncate": "END"},
        max_batch=32,
    ),
    "infinity": Form(path="/rerank", gives="logit", constants={"raw_scores": True, "return_documents": False}),
    "llamacpp": Form(path="/v1/reranking", gives="logit"),
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Logits and probabilities in the order of the request's documents; tokens and truncated 0 where not said."""

    scores: list[float]
    probabilities: list[float]
    tokens: int = 0
    truncated: int = 0


def endpoint(url: str, path: str) -> str:
    """The address to post to: url is a server's base, with or without the path's version, or the whole address."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"url cannot be read as an address: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"url is {_without_login(parts)!r}; give one such as 'http://127.0.0.1:8787'")
    if parts.username is not None or parts.password is not None:
        raise ValueError("url carries a user name or password; give api_key or headers in its place")
    base = parts.path.rstrip("/")
    version, _, tail = path.lstrip("/").rpartition("/")
    if base.rpartition("/")[2] in _ROUTES:
        whole = base
    elif version and base.rpartition("/")[2] == version:
        whole = f"{base}/{tail}"
    else:
        whole = base + path
    return urlunsplit((parts.scheme, parts.netloc, whole, parts.query, ""))


def _without_login(parts: SplitResult) -> str:
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def request(form: Form, query: str, texts: Sequence[str], model: str | None) -> dict[str, Any]:
    """The body that asks for a score of every text; the best few are taken here, since batches are compared."""
    body: dict[str, Any] = {"model": model} if model is not None else {}
    body["query"] = {"text": query} if form.wraps_texts else query
    body[form.documents] = [{"text": text} for text in texts] if form.wraps_texts else list(texts)
    return body | ({form.top: len(texts)} if form.top else {}) | dict(form.constants)


def read(form: Form, body: Any, count: int) -> Answer:
    """What the server answered for `count` documents. Raises RemoteError for anything but one number for each."""
    items = body if form.results is None else body.get(form.results) if isinstance(body, dict) else None
    if not isinstance(items, list):
        where = "a list" if form.results is None else f"a list under {form.results!r}"
        raise RemoteError(f"the answer is {_shape(body)}; {where} is needed: is it the right dialect?")
    scores, probabilities = [math.nan] * count, [math.nan] * count
    seen: set[int] = set()
    for item in items:
        index = _index(item, count, seen)
        seen.add(index)
        scores[index], probabilities[index] = _numbers(form, item, index)
    if len(seen) != count:
        missing = next(index for index in range(count) if index not in seen)
        raise RemoteError(f"the answer has {len(seen)} of {count} documents; the first without a score is {missing}")
    tokens, truncated = _cost(body)
    return Answer(scores=scores, probabilities=probabilities, tokens=tokens, truncated=truncated)


def _index(item: Any, count: int, seen: set[int]) -> int:
    index = item.get("index") if isinstance(item, dict) else None
    if not isinstance(index, int) or isinstance(index, bool):
        raise RemoteError(f"the answer has an item without a whole number 'index': {_shape(item)}")
    if not 0 <= index < count:
        raise RemoteError(f"the answer has index {index}; {count} documents were sent")
    if index in seen:
        raise RemoteError(f"the answer has index {index} twice")
    return index


def _numbers(form: Form, item: Mapping[str, Any], index: int) -> tuple[float, float]:
    """Logit and probability of one item."""
    value = _number(item, form.score, index)
    if form.probability is not None:
        return value, _probability(_number(item, form.probability, index), index)
    if form.gives == "logit":
        return value, sigmoid(value)
    return logit(_probability(value, index)), value


def _number(item: Mapping[str, Any], name: str, index: int) -> float:
    value = item.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RemoteError(f"the answer's item of document {index} has no number {name!r}: {_shape(item)}")
    number = math.inf if abs(value) >= 1e300 else float(value)  # a whole number may be too long for a double
    if not math.isfinite(number):
        raise RemoteError(f"the answer's {name!r} of document {index} is {number}; the model may be broken")
    return number


def _probability(value: float, index: int) -> float:
    if not 0 <= value <= 1:
        raise RemoteError(
            f"document {index} has {value}, which is no probability; if this server gives logits, say scores='logit'"
        )
    return value


def _cost(body: Any) -> tuple[int, int]:
    """Tokens read and documents cut, as far as the answer says."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return 0, 0
    tokens, truncated = usage.get("total_tokens", usage.get("tokens")), usage.get("truncated")
    return (tokens if isinstance(tokens, int) else 0), (truncated if isinstance(truncated, int) else 0)


def _shape(value: Any) -> str:
    """What a value is, without what it says: answers may repeat documents."""
    if isinstance(value, dict):
        return "an object with " + (", ".join(repr(str(name)[:40]) for name in list(value)[:8]) or "nothing in it")
    return "a list" if isinstance(value, list) else "null" if value is None else f"a {type(value).__name__}"


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def logit(p: float) -> float:
    """The inverse of sigmoid, held within ±36.7: a double next to 1 says no more."""
    if p <= 0 or p >= 1:
        return math.copysign(MAX_LOGIT, p - 0.5)
    return min(max(math.log(p) - math.log1p(-p), -MAX_LOGIT), MAX_LOGIT)
