from __future__ import annotations

import asyncio
import inspect
import threading

import pytest

from secondpass import Cascade, Reranker
from secondpass.threads import in_thread


class Slow:
    def work(self, number: int, *, times: int = 1) -> tuple[int, int]:
        return number * times, threading.get_ident()

    awork = in_thread(work)


class Other(Slow):
    def work(self, number: int, *, times: int = 1) -> tuple[int, int]:
        return -number * times, threading.get_ident()


def test_the_method_is_computed_in_a_thread_of_its_own() -> None:
    number, thread = asyncio.run(Slow().awork(3, times=2))
    assert number == 6
    assert thread != threading.get_ident()
    assert asyncio.run(Other().awork(3))[0] == -3


def test_a_wrong_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="time"):
        asyncio.run(Slow().awork(3, time=2))  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [Reranker, Cascade])
def test_arank_has_the_options_of_rank(kind: type[Reranker | Cascade]) -> None:
    assert inspect.iscoroutinefunction(kind.arank)
    assert inspect.signature(kind.arank) == inspect.signature(kind.rank)
