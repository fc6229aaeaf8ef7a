"""Blocking methods for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")


def in_thread(call: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """The same method with the same options, to be awaited: computed in a thread, so that the loop goes on."""

    @wraps(call)
    async def awaited(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        own: Callable[P, R] = getattr(self, call.__name__)  # a subclass may have its own
        return await asyncio.to_thread(own, *args, **kwargs)

    awaited.__doc__ = f"`{call.__name__}` for asyncio: computed in a thread, so that the loop goes on."
    return awaited
