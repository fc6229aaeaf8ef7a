"""Schemathesis makes requests of the OpenAPI description, right ones and wrong ones, and checks the answers by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from secondpass.server.openapi import describe
from tests.checkpoints import tiny_bert
from tests.server.live import serving

schemathesis = pytest.importorskip("schemathesis")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")
not_a_server_error = pytest.importorskip("schemathesis.checks").not_a_server_error
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

OPERATIONS = [(method, path) for path, methods in describe()["paths"].items() for method in methods]
# Not whether a request must be accepted: dialects share addresses, and each reads its own fields.
CHECKS = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tiny_bert(tmp_path_factory.mktemp("models") / "bert")
    with serving(folder) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_described(description: Any, method: str, path: str) -> None:
    operation = description[path][method.upper()]
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    for mode in modes if method == "post" else modes[:1]:
        check(operation.as_strategy(generation_mode=mode))


def check(cases: Any) -> None:
    found = [not_a_server_error, *(getattr(openapi_checks, name) for name in CHECKS)]

    @given(case=cases)
    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def holds(case: Any) -> None:
        case.call_and_validate(checks=found, timeout=30)

    holds()
