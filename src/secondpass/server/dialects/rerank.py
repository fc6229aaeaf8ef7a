"""A rerank API by its row: requests read, answers written, both described."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import GenericAlias
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, RootModel, create_model

from secondpass.server.dialects.dialect import Body, Dialect, Headers, Reply, Route, Signs
from secondpass.server.dialects.documents import as_list, read_document, read_documents, read_texts, refuse_media
from secondpass.server.dialects.fields import (
    FIELDS,
    AnyTexts,
    Documents,
    Flag,
    RequestBody,
    Response,
    TextOrObject,
    Texts,
    truth,
)
from secondpass.server.dialects.fields import read as read_fields
from secondpass.server.dialects.refusals import refuses
from secondpass.wire.apis import APIS, Api
from secondpass.wire.calls import Budgets, Cost, Item, Ranked, RerankCall

UNNAMED = "default/not-specified"  # what infinity's client sends as the model when none is named
Values: TypeAlias = Mapping[str, Any]  # the fields of a request by name; None where it has none
UNIT = 100  # documents, or windows of long ones, that are one unit of search


def budgets_of(values: Values, api: Api) -> Budgets:
    """How texts are shortened, as far as the row says it."""
    return Budgets(
        max_query_tokens=values.get("max_query_length") or None,
        max_document_tokens=values.get("max_doc_length") or None,
        may_truncate=_may_cut(values, api),
        keep_end=(values.get("truncation_direction") or "").lower() == "left",
    )


def _may_cut(values: Values, api: Api) -> bool:
    if api.truncation is None:
        return True
    inside = api.truncation.inside
    value = (values if inside is None else values.get(inside) or {}).get(api.truncation.name)
    return api.truncation.cuts_unasked if value is None else value != api.truncation.refuses


def parse(
    body: Any, headers: Headers, *, api: Api, budgets: Callable[[Values, Api], Budgets] = budgets_of
) -> RerankCall:
    """The call that a body of this API is. Raises Refusal."""
    values = _values(body, api)
    model, query = values["model"], values["query"]
    return RerankCall(
        query=read_document(query, "query") if api.reads_query_objects else query,
        documents=_texts(values, api),
        model=None if model == UNNAMED else model,
        top_n=values[api.top] or None,
        budgets=budgets(values, api),
        instruction=values.get("instruction") or values.get("instruct"),
        priority=values.get("priority") or 0,
        is_lenient=api.is_lenient,
    )


def _values(body: Any, api: Api) -> Values:
    values = vars(read_fields(request_model(api), body))
    if api.nested is None:
        return values
    asked, options = (values[name] for name in api.nested)
    none: Values = dict.fromkeys(_options(api))
    return {**none, **values, **vars(asked), **(vars(options) if options else {})}


def _texts(values: Values, api: Api) -> tuple[str, ...]:
    given: Any = as_list(values[api.documents]) if api.takes_one else values[api.documents]
    if not api.reads_objects:
        return read_texts(given, api.documents)
    if api.wraps_texts:
        for i, passage in enumerate(given):
            if isinstance(passage, Mapping):
                refuse_media(passage, f"{api.documents}[{i}]")
    return read_documents(given, name=api.documents, rank_fields=values.get("rank_fields"))


def write(ranked: Ranked, call: RerankCall, body: Body, *, api: Api) -> Reply:
    """The answer to a call, with what the row says of its head."""
    is_raw = api.gives == "logit" or any(truth(_given(body, api, name)) is value for name, value in api.raw.items())
    items = ranked.items if api.is_sorted else sorted(ranked.items, key=lambda item: item.index)
    documents = _documents(body, call, api)
    rows = [_result(item, documents, api, is_raw=is_raw) for item in items]
    if api.results is None:
        return Reply(body=rows)
    results = {api.results: rows}
    head = {name: HEAD[name](ranked, call, body, api) for name in api.head}
    return Reply(body={**head, **({api.inside: results} if api.inside else results)})


def _given(body: Body, api: Api, name: str) -> Any:
    """What a body says under an option's name."""
    holder = body if api.nested is None else body.get(api.nested[1]) or {}
    return holder.get(name)


def _documents(body: Body, call: RerankCall, api: Api) -> list[Any] | None:
    """What is given back of each document; None where nothing is asked for."""
    returned = api.returned
    if returned is None:
        return None
    asks = truth(_given(body, api, returned.asked_by))
    if returned.form != "parts" and not (returned.unasked if asks is None else asks):
        return None
    if returned.form == "parts":
        return [{"text": text, "multi_modal": None} for text in call.documents]
    if returned.form == "text" or not api.reads_objects:
        return list(call.documents) if returned.form == "text" else [{"text": text} for text in call.documents]
    return [dict(one) if isinstance(one, Mapping) else {"text": one} for one in body[api.documents]]


def _result(item: Item, documents: list[Any] | None, api: Api, *, is_raw: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"index": item.index} if api.is_sorted else {}
    row[api.score] = item.logit if is_raw else item.probability
    if documents is not None and api.returned is not None:
        row[api.returned.name] = documents[item.index]
    return row | (dict([api.constant]) if api.constant else {})


def usage(cost: Cost, names: tuple[str, ...] = ("prompt_tokens", "total_tokens")) -> dict[str, int]:
    """Tokens read, or units of search, by the names that an API has for them."""
    figures = {"completion_tokens": 0, "rerank_units": units(cost)}
    return {name: figures.get(name, cost.tokens) for name in names}


def units(cost: Cost, num_documents: int = 0) -> int:
    return max(1, -(-max(cost.rows, num_documents) // UNIT))


def _meta(ranked: Ranked, call: RerankCall, body: Body, api: Api) -> dict[str, Any]:
    """Cohere's: what is billed, and what was not read as it was sent."""
    warnings = [f"{ranked.cost.truncated} texts were too long and were cut"] if ranked.cost.truncated else []
    meta: dict[str, Any] = {
        "api_version": {"version": "1" if "/v1/" in api.path else "2"},
        "billed_units": {"search_units": units(ranked.cost, len(call.documents))},
        "tokens": {"input_tokens": ranked.cost.tokens, "output_tokens": 0},
    }
    warnings += ranked.warnings
    return meta | ({"warnings": warnings} if warnings else {})


HEAD: Mapping[str, Callable[[Ranked, RerankCall, Body, Api], Any]] = {
    "id": lambda ranked, call, body, api: ranked.id,
    "request_id": lambda ranked, call, body, api: ranked.id,
    "object": lambda ranked, call, body, api: api.object,
    "model": lambda ranked, call, body, api: ranked.model,
    "created": lambda ranked, call, body, api: int(time.time()),
    "usage": lambda ranked, call, body, api: usage(ranked.cost, api.usage),
    "meta": _meta,
    "query": lambda ranked, call, body, api: call.query,
    "top_k": lambda ranked, call, body, api: len(ranked.items),
    "return_input": lambda ranked, call, body, api: truth(body.get("return_input")) is True,
}
HEAD_TYPES: Mapping[str, Any] = {"created": int, "meta": dict[str, Any], "top_k": int, "return_input": bool}


def routes(api: Api, **quirks: Any) -> tuple[Route, ...]:
    """One route for each address; quirks are parse, budgets and write, where the row does not say all."""
    budgets = {"budgets": quirks["budgets"]} if "budgets" in quirks else {}
    return tuple(
        Route(
            path=_tail(documented, api),
            documented=documented,
            kind="rerank",
            parse=quirks.get("parse", partial(parse, api=api, **budgets)),
            write=quirks.get("write", partial(write, api=api)),
            request_model=request_model(api),
            response_model=response_model(api),
            is_usual=api.is_usual and not documented.startswith(f"/{api.name}/"),
        )
        for documented in api.served or (api.path,)
    )


def _tail(documented: str, api: Api) -> str:
    """What is matched of an address: "/v1", or the API's own name, may stand before it."""
    return documented.removeprefix(f"/{api.name}").removeprefix("/v1")


def signs(api: Api) -> Signs:
    own = None if api.documents == "documents" else api.documents
    return Signs(
        documents=own, fields=api.signs, headers=frozenset(api.headers), models=api.models, unless=api.unless
    )


def dialect(name: str, *more: Route, **quirks: Any) -> Dialect:
    """The dialect of the row with this name."""
    api = APIS[name]
    return Dialect(
        name=name,
        title=api.title,
        routes=(*routes(api, **quirks), *more),
        refuse=refuses(api),
        signs=signs(api),
    )


@cache
def _models(name: str) -> tuple[type[RequestBody], type[BaseModel]]:
    return _request_model(APIS[name]), _response_model(APIS[name])


def request_model(api: Api) -> type[RequestBody]:
    return _models(api.name)[0]


def response_model(api: Api) -> type[BaseModel]:
    return _models(api.name)[1]


def _word(api: Api) -> str:
    return "".join(part.title() for part in api.name.split("-"))


def _options(api: Api) -> dict[str, Any]:
    """The fields that may be absent, with their types."""
    names = {name: FIELDS[name] for name in (api.top, *api.fields) if name not in api.raw}
    names |= dict.fromkeys(api.raw, Flag)
    if api.returned is not None and api.returned.form != "parts":
        names[api.returned.asked_by] = Flag
    if api.truncation is not None and api.truncation.inside is None:
        refuses = api.truncation.refuses
        names[api.truncation.name] = Flag if refuses is False else Literal["NONE", "END"]
    return {name: (kind | None, None) for name, kind in names.items()}


def _request_model(api: Api) -> type[RequestBody]:
    word, model = _word(api), {"model": (str | None, None)}
    texts: Any = AnyTexts if api.takes_one else Documents if api.reads_objects else Texts
    asked = {"query": (TextOrObject if api.reads_query_objects else str, ...), api.documents: (texts, ...)}
    if api.nested is None:
        return _created(f"{word}Request", f"A request of {api.title}.", {**asked, **model, **_options(api)})
    inner = _created(f"{word}Input", "The query and its documents.", asked)
    options = _created(f"{word}Options", "How they are ranked.", _options(api))
    nested = {api.nested[0]: (inner, ...), api.nested[1]: (options | None, None)}
    return _created(f"{word}Request", f"A request of {api.title}.", {**model, **nested})


def _response_model(api: Api) -> type[BaseModel]:
    word = _word(api)
    item: dict[str, Any] = {"index": (int, ...)} if api.is_sorted else {}
    item[api.score] = (float, ...)
    if api.returned is not None:
        item[api.returned.name] = ((str if api.returned.form == "text" else dict[str, Any]) | None, None)
    if api.constant is not None:
        item[api.constant[0]] = (str, ...)
    rows: Any = GenericAlias(list, (_answer(f"{word}Result", f"One text; {api.score} is its {api.gives}.", item),))
    if api.results is None:
        return create_model(
            f"{word}Response", __base__=RootModel, __doc__="A bare list, best first.", root=(rows, ...)
        )
    figures = {name: (int, ...) if name != "completion_tokens" else (int, 0) for name in api.usage}
    head: dict[str, Any] = {name: (HEAD_TYPES.get(name, str), ...) for name in api.head}
    if "usage" in head:
        head["usage"] = (_answer(f"{word}Usage", "What was read.", figures), ...)
    results: dict[str, Any] = {api.results: (rows, ...)}
    if api.inside is not None:
        results = {api.inside: (_answer(f"{word}Output", "The results.", results), ...)}
    order = "best first" if api.is_sorted else "in the order of the documents"
    return _answer(f"{word}Response", f"Results, {order}.", {**head, **results})


def _created(name: str, words: str, fields: dict[str, Any]) -> type[RequestBody]:
    return create_model(name, __base__=RequestBody, __doc__=words, **fields)


def _answer(name: str, words: str, fields: dict[str, Any]) -> type[Response]:
    return create_model(name, __base__=Response, __doc__=words, **fields)
