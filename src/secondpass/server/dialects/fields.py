"""The fields of JSON bodies by name, read by pydantic models that refuse in one sentence which names the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from secondpass.wire.calls import Fault, Refusal

_KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
_LARGEST = 2**31 - 1
# what pydantic says of a value that has the right type and is out of range
_RANGES = ("greater_than", "less_than", "literal_error", "too_short", "too_long")


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), "an object")


def _integral(value: object) -> object:
    """3.0 is an integer in JSON, and "3" means one; beyond the largest that anything here counts to is that."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return min(whole, _LARGEST) if isinstance(whole, int) and not isinstance(whole, bool) else whole


def truth(value: object) -> object:
    """A boolean that a client wrote as text, as RAGFlow's does, is one."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


_TEXT_OR_OBJECT = {"anyOf": [{"type": "string"}, {"type": "object"}]}

Whole = Annotated[int, BeforeValidator(_integral)]
Count = Annotated[Whole, Field(ge=0)]
Positive = Annotated[Whole, Field(ge=1)]
Above = Annotated[float, Field(gt=0)]
Flag = Annotated[bool, BeforeValidator(truth)]
# Checked one by one in documents.py, which says what is wrong with which
Documents = Annotated[list[Any], WithJsonSchema({"type": "array", "items": _TEXT_OR_OBJECT, "minItems": 1})]
Texts = Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1})]
AnyTexts = Annotated[
    Any,
    WithJsonSchema(
        {"anyOf": [*_TEXT_OR_OBJECT["anyOf"], {"type": "array", "items": _TEXT_OR_OBJECT, "minItems": 1}]}
    ),
]
TextOrObject = Annotated[Any, WithJsonSchema(_TEXT_OR_OBJECT)]
# What a field is called, it is in every API that has it; all of them may be absent or null.
FIELDS: Mapping[str, Any] = {
    "model": str,
    "top_n": Count,
    "top_k": Count,
    "priority": Whole,
    "instruction": str,
    "instruct": str,
    "property": str,
    "parameters": dict[str, Any],
    "rank_fields": list[str],
    "max_chunks_per_doc": Positive,
    "max_tokens_per_doc": Count,
    "max_tokens_per_query": Count,
    "max_doc_length": Count,
    "max_query_length": Count,
    "truncate_prompt_tokens": Annotated[Whole, Field(ge=-1)],
    "truncation_side": Literal["left", "right"],
    "truncation_direction": Literal["Left", "Right", "left", "right"],
    "chat_template_kwargs": dict[str, Any],
    "mm_processor_kwargs": dict[str, Any],
    "cache_salt": str,
}


class RequestBody(BaseModel):
    """A request body: no value is converted to another type, fields that are not known are let through."""

    model_config = ConfigDict(strict=True, extra="allow")


class Response(BaseModel):
    """A response body; exact, so that what is documented is what is written."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


R = TypeVar("R", bound=RequestBody)


def read(model: type[R], body: object) -> R:
    """The body as a request of this model. Raises Refusal: malformed for wrong types, invalid for values."""
    if not isinstance(body, dict):
        raise Refusal(Fault.malformed, f"the body is {kind(body)}; a JSON object is needed")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_context=False)[0], model) from None


def _refusal(error: Mapping[str, Any], model: type[RequestBody]) -> Refusal:
    """pydantic's first complaint in words; numbers are quoted, texts never are."""
    name, given = field_name(error["loc"]), error["input"]
    if error["type"] == "missing":
        return Refusal(Fault.malformed, f"{name} is missing", parameter=name)
    if error["type"] == "extra_forbidden":
        there = ", ".join(model.model_fields) or "none"
        return Refusal(Fault.invalid, f"there is no field {name!r}; there are {there}", parameter=name)
    is_range = error["type"].startswith(_RANGES)
    seen = str(given)[:40] if is_range and isinstance(given, int | float) else kind(given)
    wanted = error["msg"].removeprefix("Input should be ")
    fault = Fault.invalid if is_range else Fault.malformed
    return Refusal(fault, f"{name} is {seen}; it should be {wanted}", parameter=name)


def field_name(path: Sequence[int | str]) -> str:
    """documents[3].text of ("documents", 3, "text")."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part[:40]}" for part in path)
    return "".join(parts).removeprefix(".")
