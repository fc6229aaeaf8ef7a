"""Spans for OpenTelemetry where its API is installed; nothing where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def span(name: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """A server span under the caller's `traceparent`; None without OpenTelemetry.

    What goes wrong inside is recorded by OpenTelemetry itself. Set attributes with `describe`.
    """
    tracer = _tracer()
    if tracer is None:
        yield None
        return
    from opentelemetry import propagate, trace

    context = propagate.extract(dict(headers))
    with tracer.start_as_current_span(name, context=context, kind=trace.SpanKind.SERVER) as found:
        yield found


def describe(span: Any, attributes: Mapping[str, str | int | float]) -> None:
    if span is not None:
        span.set_attributes(dict(attributes))


@cache
def _tracer() -> Any:
    try:
        from opentelemetry import trace
    except ImportError:  # the name alone says little: protocol packages and what an uninstall leaves have it too
        return None
    return trace.get_tracer("secondpass")
