"""What a dialect is: routes as data, pure functions between JSON bodies and calls; no web framework."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel

from secondpass.wire.calls import EmbedCall, Ranked, Refusal, RerankCall, ScoreCall, ServerCard, Vectors

Body: TypeAlias = Mapping[str, Any]
Headers: TypeAlias = Mapping[str, str]  # names in lower case
Call: TypeAlias = RerankCall | ScoreCall | EmbedCall
Answer: TypeAlias = Ranked | Vectors | ServerCard
Kind: TypeAlias = Literal["rerank", "score", "embed", "info", "models", "health"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One HTTP answer. body is a JSON value, or its bytes; None is an empty body."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Route:
    """One address of a dialect.

    documented is the full path as the dialect's own documentation has it; "{model}" in it is one or more segments,
    which parse finds in the body as `model` where the body has none. path is the tail that is matched: "/v1" may
    always stand before it. is_usual: it answers a body that is surely no other dialect's.
    parse reads a body, or raises Refusal. It is None for kinds that are asked with GET and no body: info, models
    and health, whose answer is a ServerCard.
    write takes the answer, the call and the body that it was read from (None and {} with GET), or raises Refusal.
    """

    path: str
    documented: str
    kind: Kind
    write: Callable[[Any, Any, Body], Reply]
    response_model: type[BaseModel] | None
    parse: Callable[[Any, Headers], Call] | None = None
    request_model: type[BaseModel] | None = None
    is_usual: bool = False

    @property
    def method(self) -> str:
        return "GET" if self.parse is None else "POST"


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What shows that a body on an address of several dialects is of this one."""

    documents: str | None = None  # the field of the documents, where it has a name of its own
    fields: frozenset[str] = frozenset()
    headers: frozenset[str] = frozenset()
    models: str | None = None
    unless: frozenset[str] = frozenset()

    def strength(self, body: Body, headers: Headers) -> int:
        """0 for none. The documents' own name or a header weighs more than options, an option more than a model."""
        if self.documents in body or not self.headers.isdisjoint(headers):
            return 100
        model = body.get("model")
        is_named = self.models is not None and isinstance(model, str) and re.fullmatch(self.models, model)
        return 10 * len(self.fields & body.keys()) + bool(is_named and self.unless.isdisjoint(body))


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one family of clients writes calls and reads answers. refuse writes a refusal as these clients read it."""

    name: str
    title: str
    routes: tuple[Route, ...]
    refuse: Callable[[Refusal, str], Reply]
    signs: Signs = Signs()
