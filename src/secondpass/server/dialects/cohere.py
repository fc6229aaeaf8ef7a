"""Cohere's rerank, v1 and v2, and what is posted to the same addresses by LiteLLM, Azure, Open WebUI and others.

Long documents are read in windows and the best one counts: v2 reads max_tokens_per_doc tokens of each (4096 unless
given), v1 max_chunks_per_doc windows (10). Answers carry what other clients of these addresses look for as well.
"""

from __future__ import annotations

from dataclasses import replace

from secondpass.server.dialects.dialect import Dialect, Route
from secondpass.server.dialects.refusals import refuses
from secondpass.server.dialects.rerank import Values, routes
from secondpass.wire.apis import APIS, Api
from secondpass.wire.calls import Budgets, Fault, Refusal

MAX_DOCUMENTS = 10_000  # of one request, windows counted in v1
DEFAULT_CHUNKS = 10
DEFAULT_TOKENS = 4096


def budgets_v1(values: Values, api: Api) -> Budgets:
    """At most max_chunks_per_doc windows of each document. Raises Refusal for more than 10,000 in all."""
    count, chunks = _checked(values), values["max_chunks_per_doc"]
    if chunks is not None and chunks * count > MAX_DOCUMENTS:
        seen = f"max_chunks_per_doc {chunks} of {count} documents is {chunks * count}"
        raise _too_many(f"{seen}; at most {MAX_DOCUMENTS} are read in one request")
    most = chunks or max(1, min(DEFAULT_CHUNKS, MAX_DOCUMENTS // max(1, count)))
    return Budgets(max_document_tokens=_tokens(values), in_windows=most > 1, max_windows=most)


def budgets_v2(values: Values, api: Api) -> Budgets:
    """The first max_tokens_per_doc tokens of each document, in as many windows as they need."""
    _checked(values)
    return Budgets(max_document_tokens=_tokens(values) or DEFAULT_TOKENS, in_windows=True)


def _checked(values: Values) -> int:
    """The number of documents. Raises Refusal for too many, and for a query without a word, as Cohere does."""
    count = len(values["documents"])
    if count > MAX_DOCUMENTS:
        raise _too_many(f"documents has {count}; at most {MAX_DOCUMENTS} are read in one request")
    if not values["query"].strip():
        raise Refusal(Fault.invalid, "query is empty; give the words that are looked for", parameter="query")
    return count


def _tokens(values: Values) -> int | None:
    tokens: int | None = values["max_tokens_per_doc"]
    if tokens == 0:
        message = "max_tokens_per_doc is 0; it should be greater than or equal to 1"
        raise Refusal(Fault.invalid, message, parameter="max_tokens_per_doc")
    return tokens


def _too_many(message: str) -> Refusal:
    return Refusal(Fault.too_large, message, parameter="documents")


def _routes(prefix: str = "", **changes: str) -> tuple[Route, ...]:
    v2, v1 = (replace(APIS[name], **changes) for name in ("cohere", "cohere-v1"))  # type: ignore[arg-type]
    found = (*routes(v2, budgets=budgets_v2), *routes(v1, budgets=budgets_v1))
    return tuple(replace(route, documented=prefix + route.documented) for route in found)


COHERE = Dialect(name="cohere", title="Cohere", routes=_routes(), refuse=refuses(APIS["cohere"]))
# For applications that apply the sigmoid themselves: Dify's OpenAI-compatible provider does.
LOGITS = Dialect(
    name="logits",
    title="Cohere, with logits",
    routes=tuple(replace(route, is_usual=False) for route in _routes("/logits", gives="logit")),
    refuse=refuses(APIS["cohere"]),
)
