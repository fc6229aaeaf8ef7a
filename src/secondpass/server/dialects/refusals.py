"""Refusals as error bodies: the statuses, and what each family of clients reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from secondpass.server.dialects.dialect import Reply
from secondpass.wire.apis import Api
from secondpass.wire.calls import Fault, Refusal

Statuses: TypeAlias = Mapping[Fault, int]

STATUS: Statuses = {
    Fault.malformed: 400,
    Fault.invalid: 400,
    Fault.too_large: 413,
    Fault.unauthorized: 401,
    Fault.forbidden: 403,
    Fault.unknown_model: 404,
    Fault.unsupported: 422,
    Fault.not_found: 404,
    Fault.overloaded: 429,
    Fault.deadline: 504,
    Fault.unavailable: 503,
    Fault.internal: 500,
}
OPENAI_TYPES = {
    Fault.unauthorized: "authentication_error",
    Fault.forbidden: "permission_error",
    Fault.unknown_model: "not_found_error",
    Fault.not_found: "not_found_error",
    Fault.overloaded: "rate_limit_error",
    Fault.deadline: "timeout_error",
    Fault.unavailable: "service_unavailable_error",
    Fault.internal: "internal_error",
}
LLAMACPP_TYPES = {
    Fault.unauthorized: "authentication_error",
    Fault.forbidden: "permission_error",
    Fault.not_found: "not_found_error",
    Fault.unsupported: "not_supported_error",
    Fault.overloaded: "unavailable_error",
    Fault.unavailable: "unavailable_error",
    Fault.internal: "server_error",
    Fault.deadline: "server_error",
}
# (status, error_type). TEI's OpenAPI description says 413 for too many texts; its code answers 422.
TEI_KINDS = {
    Fault.unauthorized: (401, "Unauthorized"),
    Fault.forbidden: (403, "Unauthorized"),
    Fault.not_found: (404, "Validation"),
    Fault.unsupported: (424, "Backend"),
    Fault.internal: (424, "Backend"),
    Fault.deadline: (504, "Overloaded"),
    Fault.overloaded: (429, "Overloaded"),
    Fault.unavailable: (503, "Unhealthy"),
}
JINA_CODES = {
    Fault.unknown_model: "INPUT_MODEL_NOT_FOUND",
    Fault.unauthorized: "AUTH_INVALID_API_KEY",
    Fault.overloaded: "RATE_REQUEST_LIMIT_EXCEEDED",
}


def status_of(refusal: Refusal, statuses: Statuses = STATUS) -> int:
    """A body that is too large is 413 in every dialect; a field that is, what its values are."""
    if refusal.fault is Fault.too_large:
        return 413 if refusal.parameter is None else statuses.get(Fault.invalid, STATUS[Fault.invalid])
    return statuses.get(refusal.fault, STATUS[refusal.fault])


def headers_of(refusal: Refusal) -> dict[str, str]:
    """Retry-After in whole seconds, and in milliseconds for clients that read it; the scheme that a 401 asks for."""
    if refusal.fault is Fault.unauthorized:
        return {"WWW-Authenticate": "Bearer"}
    if refusal.retry_after is None:
        return {}
    milliseconds = math.ceil(refusal.retry_after * 1000)
    return {"Retry-After": str(max(1, math.ceil(milliseconds / 1000))), "retry-after-ms": str(milliseconds)}


def cohere(refusal: Refusal, request_id: str, statuses: Statuses = STATUS) -> Reply:
    """What clients of hosted rerank APIs read: one reads `message`, one `detail`, one a string under `error`."""
    words = refusal.message
    body = {"id": request_id, "message": words, "detail": words, "error": words, "error_type": refusal.fault.value}
    return Reply(status=status_of(refusal, statuses), body=body, headers=headers_of(refusal))


def jina(refusal: Refusal, request_id: str, statuses: Statuses) -> Reply:
    """The same, with Jina's name of the error."""
    reply = cohere(refusal, request_id, statuses)
    code = JINA_CODES.get(refusal.fault, refusal.fault.value.upper())
    return Reply(status=reply.status, body={**reply.body, "code": code}, headers=reply.headers)


def openai(refusal: Refusal, request_id: str, statuses: Statuses) -> Reply:
    """OpenAI's body, which vLLM and infinity also write."""
    status = status_of(refusal, statuses)
    kind = OPENAI_TYPES.get(refusal.fault, "invalid_request_error")
    error = {"message": refusal.message, "type": kind, "param": refusal.parameter, "code": status}
    return Reply(status=status, body={"error": error}, headers=headers_of(refusal))


def infinity(refusal: Refusal, request_id: str, statuses: Statuses) -> Reply:
    """OpenAI's body, but for a refused key and for fields: there it has FastAPI's."""
    reply = openai(refusal, request_id, statuses)
    if refusal.fault is Fault.unauthorized:
        return Reply(status=reply.status, body={"detail": "Unauthorized"}, headers=headers_of(refusal))
    if reply.status == 422:
        location = ["body", refusal.parameter] if refusal.parameter else ["body"]
        detail = [{"loc": location, "msg": refusal.message, "type": refusal.fault.value}]
        return Reply(status=422, body={"detail": detail}, headers=reply.headers)
    return reply


def tei(refusal: Refusal, request_id: str, statuses: Statuses) -> Reply:
    """A string under `error` and its type; a refused key has an empty body, no texts are an error of their own."""
    status, error_type = TEI_KINDS.get(refusal.fault, (422, "Validation"))
    if refusal.fault is Fault.too_large and refusal.parameter is None:
        status = 413
    if refusal.fault is Fault.invalid and refusal.parameter == "texts":
        status, error_type = 400, "Empty"
    body = None if refusal.fault is Fault.unauthorized else {"error": refusal.message, "error_type": error_type}
    return Reply(status=status, body=body, headers=headers_of(refusal))


def llamacpp(refusal: Refusal, request_id: str, statuses: Statuses) -> Reply:
    status = status_of(refusal, statuses)
    kind = LLAMACPP_TYPES.get(refusal.fault, "invalid_request_error")
    error = {"code": status, "message": refusal.message, "type": kind}
    return Reply(status=status, body={"error": error}, headers=headers_of(refusal))


def secondpass(refusal: Refusal, request_id: str, statuses: Statuses) -> Reply:
    error = {"type": refusal.fault.value, "message": refusal.message, "parameter": refusal.parameter}
    status = 413 if refusal.fault is Fault.too_large else status_of(refusal, statuses)
    return Reply(status=status, body={"id": request_id, "error": error}, headers=headers_of(refusal))


def weaviate(refusal: Refusal, request_id: str, statuses: Statuses) -> Reply:
    return Reply(status=status_of(refusal, statuses), body={"error": refusal.message}, headers=headers_of(refusal))


def dashscope(refusal: Refusal, request_id: str, statuses: Statuses) -> Reply:
    code = "".join(word.title() for word in refusal.fault.value.split("_"))
    body = {"code": code, "message": refusal.message, "request_id": request_id}
    return Reply(status=status_of(refusal, statuses), body=body, headers=headers_of(refusal))


ERRORS: Mapping[str, Callable[[Refusal, str, Statuses], Reply]] = {
    "cohere": cohere,
    "jina": jina,
    "openai": openai,
    "infinity": infinity,
    "tei": tei,
    "llamacpp": llamacpp,
    "secondpass": secondpass,
    "weaviate": weaviate,
    "dashscope": dashscope,
}


def refuses(api: Api) -> Callable[[Refusal, str], Reply]:
    """The writer of an API's errors."""
    return partial(_refuse, ERRORS[api.errors], api.statuses)


def _refuse(write: Callable[[Refusal, str, Any], Reply], statuses: Statuses, refusal: Refusal, id: str) -> Reply:
    return write(refusal, id, statuses)
