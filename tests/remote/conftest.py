"""A server that every test of a module may ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.remote.loopback import Loopback, by_length, loopback


@pytest.fixture(scope="module")
def lengths() -> Iterator[Loopback]:
    with loopback(by_length) as server:
        yield server
