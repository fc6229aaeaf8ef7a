"""vLLM's ways to cut, and its `/score`: one to one, one to many, many to many.

Without truncate_prompt_tokens a pair that is too long is refused, as there. Scores are probabilities;
`use_activation: false` asks for logits.
"""

from __future__ import annotations

import time
from typing import Any

from pydantic import create_model

from secondpass.server.dialects import rerank
from secondpass.server.dialects.dialect import Body, Headers, Reply, Route
from secondpass.server.dialects.documents import as_list, read_documents
from secondpass.server.dialects.fields import FIELDS, AnyTexts, Flag, RequestBody, Response, read, truth
from secondpass.server.dialects.rerank import Values, usage
from secondpass.wire.apis import APIS, VLLM_SIGNS, Api
from secondpass.wire.calls import Budgets, Fault, Ranked, Refusal, ScoreCall

# Names under which the two sides of /score arrive
SIDES = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
_NAMES = dict.fromkeys(name for sides in SIDES for name in sides)
_OPTIONS = ("model", "priority", "instruction", "max_tokens_per_doc", *VLLM_SIGNS)

_FIELDS: dict[str, Any] = {name: (AnyTexts | None, None) for name in _NAMES}
_FIELDS |= {name: (FIELDS.get(name, Flag) | None, None) for name in _OPTIONS}
ScoreRequest: type[RequestBody] = create_model(
    "VllmScoreRequest",
    __base__=RequestBody,
    __doc__="Two sides: queries and documents (or items), data_1 and data_2, or text_1 and text_2.",
    **_FIELDS,
)


class VllmUsage(Response):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class VllmScore(Response):
    """The score of one pair."""

    index: int
    object: str
    score: float


class VllmScoreResponse(Response):
    """Scores in input order."""

    id: str
    object: str
    created: int
    model: str
    data: list[VllmScore]
    usage: VllmUsage


def parse_score(body: Any, headers: Headers) -> ScoreCall:
    values = vars(read(ScoreRequest, body))
    left, right = _sides(values)
    one, other = (read_documents(as_list(values[name]), name=name) for name in (left, right))
    if len(one) not in (1, len(other)):
        seen = f"{left} has {len(one)} and {right} {len(other)}"
        raise Refusal(Fault.invalid, f"{seen}; give one of the first, or as many of both", parameter=left)
    return ScoreCall(
        pairs=tuple(zip(one * len(other) if len(one) == 1 else one, other, strict=True)),
        model=values["model"],
        budgets=budgets(values, APIS["vllm"]),
        instruction=values["instruction"],
        priority=values["priority"] or 0,
    )


def write_score(ranked: Ranked, call: ScoreCall, body: Body) -> Reply:
    is_raw = any(truth(body.get(name)) is value for name, value in APIS["vllm"].raw.items())
    rows = [
        {"index": item.index, "object": "score", "score": item.logit if is_raw else item.probability}
        for item in ranked.items
    ]
    head = {"id": ranked.id, "object": "list", "created": int(time.time()), "model": ranked.model}
    return Reply(body={**head, "data": rows, "usage": usage(ranked.cost)})


def budgets(values: Values, api: Api) -> Budgets:
    """max_tokens 0 is no limit; truncate_prompt_tokens -1 is the model's own length."""
    length = values["truncate_prompt_tokens"]
    query, document = values["max_tokens_per_query"] or None, values["max_tokens_per_doc"] or None
    return Budgets(
        max_length=length if length is not None and length > 0 else None,
        max_query_tokens=query,
        max_document_tokens=document,
        may_truncate=length is not None or bool(query or document),
        keep_end=values["truncation_side"] == "left",
    )


def _sides(values: Values) -> tuple[str, str]:
    for left, right in SIDES:
        if values[left] is not None and values[right] is not None:
            return left, right
    there = [name for name in _NAMES if values[name] is not None]
    seen = f"only {there[0]} is given" if there else "none is given"
    message = f"{seen}; two are needed: " + ", or ".join(" and ".join(sides) for sides in SIDES)
    raise Refusal(Fault.malformed, message, parameter=there[0] if there else "queries")


SCORE = Route(
    path="/score",
    documented="/v1/score",
    kind="score",
    parse=parse_score,
    write=write_score,
    request_model=ScoreRequest,
    response_model=VllmScoreResponse,
)
VLLM = rerank.dialect("vllm", SCORE, budgets=budgets)
