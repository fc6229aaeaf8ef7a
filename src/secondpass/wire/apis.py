"""Rerank APIs as data: a row says how one asks and answers. The server writes by it, RemoteReranker reads by it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit, urlunsplit

from secondpass.calibration import sigmoid
from secondpass.errors import RemoteError
from secondpass.wire.calls import Fault

MAX_LOGIT = math.log(2.0**53 - 1)  # logit of the largest double below 1
_ROUTES = ("rerank", "reranking", "rerankings", "reranks", "text-rerank", "ranking", "rank")
Errors = Literal["cohere", "jina", "openai", "infinity", "tei", "llamacpp", "secondpass", "weaviate", "dashscope"]


@dataclass(frozen=True, kw_only=True)
class Returned:
    """How documents are given back: the field that asks for them, and their name and form in a result."""

    asked_by: str = "return_documents"
    unasked: bool = False
    name: str = "document"
    form: Literal["object", "text", "parts"] = "object"  # {"text": ...} and other fields, a string, vLLM's


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """The field that says whether long texts are cut: its value that refuses, and what holds where it is absent.

    inside: the object that holds it.
    """

    name: str
    inside: str | None = None
    refuses: bool | str = False
    cuts_unasked: bool = True


@dataclass(frozen=True, kw_only=True)
class Api:
    """One API. The defaults are Cohere's names, which most others took over.

    path is where its clients post; served are the addresses at which this project's server documents it. score is
    the number that is a raw logit when gives is "logit", its activation when gives is "probability"; probability
    names the second where both are there. results None: the answer itself is the list.
    """

    name: str
    title: str
    path: str
    served: tuple[str, ...] = ()
    is_usual: bool = False  # answers a body at its addresses that is surely nobody's
    is_lenient: bool = False  # an instruction that the model does not take is left out, with a warning
    # The request
    documents: str = "documents"
    top: str = "top_n"
    fields: tuple[str, ...] = ()  # that are read beside query, documents, model and top
    reads_objects: bool = False  # documents may be objects with `text`; else strings only
    reads_query_objects: bool = False
    takes_one: bool = False  # a single document may stand without its list
    wraps_texts: bool = False  # clients send {"text": ...} in place of a string
    nested: tuple[str, str] | None = None  # the objects that hold query and documents, and the other options
    returned: Returned | None = None
    truncation: Truncation | None = None
    raw: Mapping[str, bool] = field(default_factory=dict)  # fields, and their values, that ask for logits
    # The answer
    results: str | None = "results"
    inside: str | None = None  # the object that holds the results
    score: str = "relevance_score"
    probability: str | None = None
    gives: Literal["probability", "logit"] = "probability"
    constant: tuple[str, str] | None = None  # what every result says beside
    is_sorted: bool = True  # else in input order, and without an index
    head: tuple[str, ...] = ("id", "object", "model", "created", "usage")
    object: str = "rerank"
    usage: tuple[str, ...] = ("prompt_tokens", "completion_tokens", "total_tokens")
    errors: Errors = "cohere"
    statuses: Mapping[Fault, int] = field(default_factory=dict)  # where they are not the usual ones
    # What shows that a body is this API's
    signs: frozenset[str] = frozenset()  # fields that only its clients send
    headers: Mapping[str, str] = field(default_factory=dict)  # and headers, with what RemoteReranker writes in them
    models: str | None = None  # a pattern of its models' names
    unless: frozenset[str] = frozenset()  # fields that say that it is not, whatever the model
    # What RemoteReranker sends
    constants: Mapping[str, Any] = field(default_factory=dict)
    sends_top: bool = False  # the number of texts, where it tells a server of several dialects which is meant
    takes_deadline: bool = False  # as a header, so that the server drops what nobody waits for
    max_batch: int = 1000

    @property
    def has_logits(self) -> bool:
        """Whether a server answers RemoteReranker with logits: by itself, or because it is asked for them."""
        return self.gives == "logit" or any(self.constants.get(name) is value for name, value in self.raw.items())


COHERE_FIELDS = ("rank_fields", "max_chunks_per_doc", "max_tokens_per_doc", "priority", "instruction")
VLLM_SIGNS = (
    "truncate_prompt_tokens",
    "truncation_side",
    "max_tokens_per_query",
    "use_activation",
    "activation",  # the older name of use_activation
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "cache_salt",
)

APIS: Mapping[str, Api] = {
    row.name: row
    for row in (
        Api(
            name="secondpass",
            title="secondpass",
            path="/api/rank",
            reads_objects=True,
            score="score",
            probability="probability",
            gives="logit",
            errors="secondpass",
            takes_deadline=True,
        ),
        Api(
            name="cohere",
            title="Cohere",
            path="/v2/rerank",
            is_usual=True,
            is_lenient=True,  # SiliconFlow's clients send an instruction to any model
            fields=COHERE_FIELDS,
            reads_objects=True,
            returned=Returned(),
            head=("id", "object", "model", "created", "usage", "meta"),
        ),
        Api(
            name="cohere-v1",
            title="Cohere",
            path="/v1/rerank",
            is_usual=True,
            is_lenient=True,  # SiliconFlow's clients send an instruction to any model
            fields=COHERE_FIELDS,
            reads_objects=True,
            returned=Returned(),
            head=("id", "object", "model", "created", "usage", "meta"),
            constants={"return_documents": False},
        ),
        Api(
            name="jina",
            title="Jina",
            path="/v1/rerank",
            fields=("max_doc_length", "max_query_length"),
            reads_objects=True,
            reads_query_objects=True,
            returned=Returned(unasked=True),
            truncation=Truncation(name="truncation"),
            errors="jina",
            statuses={Fault.unknown_model: 400},
            # Its models are also served by others, and asked for by Cohere's client.
            models=r"(jinaai/)?jina-.*",
            unless=frozenset(COHERE_FIELDS),
            constants={"return_documents": False},
        ),
        Api(
            name="voyage",
            title="Voyage AI",
            path="/v1/rerank",
            top="top_k",
            returned=Returned(form="text"),
            truncation=Truncation(name="truncation"),
            results="data",
            head=("object", "model", "usage"),
            object="list",
            usage=("total_tokens",),
            # Its client makes a MalformedRequestError of 422, an InvalidRequestError of 400.
            statuses={Fault.malformed: 422, Fault.unsupported: 400, Fault.unknown_model: 400},
            signs=frozenset({"top_k"}),
            models=r"rerank-(lite-)?\d.*",  # rerank-2.5, rerank-lite-1; Cohere's have a letter there
            constants={"return_documents": False, "truncation": True},
            sends_top=True,
        ),
        Api(
            name="tei",
            title="Text Embeddings Inference",
            path="/rerank",
            documents="texts",
            fields=("truncation_direction",),
            returned=Returned(asked_by="return_text", name="text", form="text"),
            truncation=Truncation(name="truncate"),
            raw={"raw_scores": True},
            results=None,
            score="score",
            errors="tei",
            constants={"raw_scores": True, "truncate": True, "return_text": False},
            max_batch=32,
        ),
        # Its switch for logits has had several names, and an unknown name is ignored: the default is what is sure.
        Api(
            name="vllm",
            title="vLLM",
            path="/rerank",
            served=("/v1/rerank", "/v2/rerank"),
            fields=(*VLLM_SIGNS, "max_tokens_per_doc", "instruction", "priority"),
            reads_objects=True,
            reads_query_objects=True,
            takes_one=True,
            returned=Returned(unasked=True, form="parts"),
            raw={"use_activation": False, "activation": False},
            head=("id", "model", "usage"),
            errors="openai",
            statuses={Fault.unsupported: 400},
            signs=frozenset(VLLM_SIGNS),
            constants={"truncate_prompt_tokens": -1},
        ),
        Api(
            name="nim",
            title="NVIDIA NIM",
            path="/v1/ranking",
            served=("/v1/ranking", "/v1/retrieval/{model}/reranking", "/nim/rerank"),
            documents="passages",
            top="top_k",  # not in NIM's description; LiteLLM sends it
            reads_objects=True,
            reads_query_objects=True,
            wraps_texts=True,
            truncation=Truncation(name="truncate", refuses="NONE", cuts_unasked=False),
            results="rankings",
            score="logit",
            gives="logit",
            head=("usage",),
            constants={"truncate": "END"},
            max_batch=32,
        ),
        Api(
            name="infinity",
            title="infinity",
            path="/rerank",
            served=("/infinity/rerank",),  # it gives documents back as strings
            returned=Returned(form="text"),
            raw={"raw_scores": True},
            errors="infinity",
            statuses={
                Fault.malformed: 422,
                Fault.invalid: 422,
                Fault.unsupported: 400,
                Fault.unknown_model: 400,
            },
            signs=frozenset({"raw_scores"}),
            constants={"raw_scores": True, "return_documents": False},
        ),
        Api(
            name="llamacpp",
            title="llama.cpp",
            path="/v1/reranking",
            served=("/v1/reranking", "/llamacpp/rerank"),
            is_usual=True,
            gives="logit",  # as its rank pooling does
            head=("model", "object", "usage"),
            object="list",
            errors="llamacpp",
            statuses={Fault.unsupported: 501, Fault.unknown_model: 400},
        ),
        Api(
            name="mixedbread",
            title="Mixedbread",
            path="/v1/reranking",
            served=("/v1/reranking", "/mixedbread/rerank"),
            documents="input",
            top="top_k",
            fields=("rank_fields", "instruction"),
            is_lenient=True,
            reads_objects=True,
            returned=Returned(asked_by="return_input", name="input"),
            results="data",
            score="score",
            constant=("object", "rank_result"),
            head=("id", "object", "model", "created", "usage", "top_k", "return_input"),
            object="list",
            constants={"return_input": False},
        ),
        Api(
            name="pinecone",
            title="Pinecone",
            path="/rerank",
            fields=("rank_fields", "parameters"),
            reads_objects=True,
            returned=Returned(unasked=True),
            truncation=Truncation(name="truncate", inside="parameters", refuses="NONE"),
            results="data",
            score="score",
            head=("model", "usage"),
            usage=("rerank_units",),
            headers={"x-pinecone-api-version": "2025-10"},
            constants={"return_documents": False},
            max_batch=100,
        ),
        Api(
            name="dashscope",
            title="DashScope",
            path="/api/v1/services/rerank/text-rerank/text-rerank",
            fields=("instruct",),
            is_lenient=True,
            nested=("input", "parameters"),
            returned=Returned(),
            inside="output",
            head=("request_id", "usage"),
            usage=("total_tokens",),
            errors="dashscope",
            constants={"return_documents": False},
            max_batch=500,
        ),
        Api(
            name="dashscope-compatible",
            title="DashScope, flat",
            path="/compatible-api/v1/reranks",
            served=("/v1/reranks",),
            fields=("instruct",),
            is_lenient=True,
            returned=Returned(),
            max_batch=500,
        ),
        Api(
            name="isaacus",
            title="Isaacus",
            path="/v1/rerankings",
            documents="texts",
            score="score",
            head=("usage",),
            usage=("input_tokens",),
        ),
        # The module that calls Weaviate's own container reads the scores by their place.
        Api(
            name="weaviate",
            title="Weaviate's reranker-transformers",
            path="/rerank",
            served=("/weaviate/rerank",),
            fields=("property",),
            returned=Returned(unasked=True, form="text"),
            results="scores",
            score="score",
            is_sorted=False,
            head=("query",),
            errors="weaviate",
            signs=frozenset({"property"}),
            constants={"property": ""},
            max_batch=32,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Logits and probabilities in the order of the request's documents; tokens and truncated 0 where not said.

    warnings are the server's, for the person who reads the scores.
    """

    scores: list[float]
    probabilities: list[float]
    tokens: int = 0
    truncated: int = 0
    warnings: tuple[str, ...] = ()


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


def request(api: Api, query: str, texts: Sequence[str], model: str | None) -> dict[str, Any]:
    """The body that asks for a score of every text; the best few are taken here, since batches are compared."""
    named = {} if model is None else {"model": model}
    asked = {
        "query": {"text": query} if api.wraps_texts else query,
        api.documents: [{"text": text} for text in texts] if api.wraps_texts else list(texts),
    }
    options = ({api.top: len(texts)} if api.sends_top else {}) | dict(api.constants)
    if api.nested is None:
        return named | asked | options
    return named | {api.nested[0]: asked, api.nested[1]: options}


def read(api: Api, body: Any, count: int) -> Answer:
    """What the server answered for `count` documents. Raises RemoteError for anything but one number for each."""
    holder = body.get(api.inside) if api.inside is not None and isinstance(body, dict) else body
    items = holder if api.results is None else holder.get(api.results) if isinstance(holder, dict) else None
    if not isinstance(items, list):
        where = "a list" if api.results is None else f"a list under {api.results!r}"
        raise RemoteError(f"the answer is {_shape(body)}; {where} is needed: is it the right dialect?")
    scores, probabilities = [math.nan] * count, [math.nan] * count
    seen: set[int] = set()
    for position, item in enumerate(items):
        index = _index(item if api.is_sorted else {"index": position}, count, seen)
        seen.add(index)
        scores[index], probabilities[index] = _numbers(api, item, index)
    if len(seen) != count:
        missing = next(index for index in range(count) if index not in seen)
        raise RemoteError(f"the answer has {len(seen)} of {count} documents; the first without a score is {missing}")
    tokens, truncated = _cost(body)
    return Answer(
        scores=scores, probabilities=probabilities, tokens=tokens, truncated=truncated, warnings=_warnings(body)
    )


def _index(item: Any, count: int, seen: set[int]) -> int:
    index = item.get("index") if isinstance(item, dict) else None
    if not isinstance(index, int) or isinstance(index, bool):
        raise RemoteError(f"the answer has an item without a whole number 'index': {_shape(item)}")
    if not 0 <= index < count:
        raise RemoteError(f"the answer has index {index}; {count} documents were sent")
    if index in seen:
        raise RemoteError(f"the answer has index {index} twice")
    return index


def _numbers(api: Api, item: Mapping[str, Any], index: int) -> tuple[float, float]:
    """Logit and probability of one item."""
    value = _number(item, api.score, index)
    if api.probability is not None:
        return value, _probability(_number(item, api.probability, index), index)
    if api.has_logits:
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


def _warnings(body: Any) -> tuple[str, ...]:
    """Where our own form has them, or Cohere's."""
    holders = [body, body.get("meta")] if isinstance(body, dict) else []
    found = next((each["warnings"] for each in holders if isinstance(each, dict) and "warnings" in each), None)
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()


def _cost(body: Any) -> tuple[int, int]:
    """Tokens read and documents cut, as far as the answer says."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return 0, 0
    tokens, truncated = (
        usage.get("total_tokens", usage.get("tokens", usage.get("input_tokens"))),
        usage.get("truncated"),
    )
    return (tokens if isinstance(tokens, int) else 0), (truncated if isinstance(truncated, int) else 0)


def _shape(value: Any) -> str:
    """What a value is, without what it says: answers may repeat documents."""
    if isinstance(value, dict):
        return "an object with " + (", ".join(repr(str(name)[:40]) for name in list(value)[:8]) or "nothing in it")
    return "a list" if isinstance(value, list) else "null" if value is None else f"a {type(value).__name__}"


def logit(p: float) -> float:
    """The inverse of sigmoid, held within ±36.7: a double next to 1 says no more."""
    if p <= 0 or p >= 1:
        return math.copysign(MAX_LOGIT, p - 0.5)
    return min(max(math.log(p) - math.log1p(-p), -MAX_LOGIT), MAX_LOGIT)
