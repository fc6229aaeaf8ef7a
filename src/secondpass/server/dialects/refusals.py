"""Refusals as error bodies: the statuses, and the two bodies that most clients read."""

from __future__ import annotations

import math
from collections.abc import Mapping

from secondpass.server.dialects.dialect import Reply
from secondpass.server.dialects.fields import Response
from secondpass.wire.calls import Fault, Refusal

STATUS: Mapping[Fault, int] = {
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
    Fault.cancelled: 499,
    Fault.internal: 500,
}

_OPENAI_TYPES = {
    Fault.unauthorized: "authentication_error",
    Fault.forbidden: "permission_error",
    Fault.unknown_model: "not_found_error",
    Fault.not_found: "not_found_error",
    Fault.overloaded: "rate_limit_error",
    Fault.deadline: "timeout_error",
    Fault.unavailable: "service_unavailable_error",
    Fault.internal: "internal_error",
}


class Failure(Response):
    """What clients of hosted rerank APIs read: one reads `message`, one `detail`, one a string under `error`."""

    id: str
    message: str
    detail: str
    error: str
    error_type: str


def status_of(refusal: Refusal, statuses: Mapping[Fault, int] = STATUS) -> int:
    """A body that is too large is 413 in every dialect; a field that is, what its values are."""
    if refusal.fault is Fault.too_large:
        return 413 if refusal.parameter is None else statuses.get(Fault.invalid, 400)
    return statuses.get(refusal.fault, STATUS[refusal.fault])


def headers_of(refusal: Refusal) -> dict[str, str]:
    """Retry-After in whole seconds, and in milliseconds for clients that read it; the scheme that a 401 asks for."""
    if refusal.fault is Fault.unauthorized:
        return {"WWW-Authenticate": "Bearer"}
    if refusal.retry_after is None:
        return {}
    milliseconds = math.ceil(refusal.retry_after * 1000)
    return {"Retry-After": str(max(1, math.ceil(milliseconds / 1000))), "retry-after-ms": str(milliseconds)}


def failure(refusal: Refusal, request_id: str, statuses: Mapping[Fault, int] = STATUS) -> Reply:
    """The body that clients of Cohere, Jina, Voyage and NIM all read."""
    words = refusal.message
    body = Failure(id=request_id, message=words, detail=words, error=words, error_type=refusal.fault.value)
    return Reply(status=status_of(refusal, statuses), body=body.model_dump(), headers=headers_of(refusal))


def openai_failure(refusal: Refusal, request_id: str, statuses: Mapping[Fault, int] = STATUS) -> Reply:
    """OpenAI's body, which vLLM and infinity also write."""
    status = status_of(refusal, statuses)
    error = {
        "message": refusal.message,
        "type": _OPENAI_TYPES.get(refusal.fault, "invalid_request_error"),
        "param": refusal.parameter,
        "code": status,
    }
    return Reply(status=status, body={"error": error}, headers=headers_of(refusal))
