"""A clock that jumps: what waits, expires or decays goes on as if it had not."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from secondpass import Reranker
from secondpass.cognitive import Cognitive
from secondpass.server.body import deadline_of
from secondpass.types import Document
from tests.server.test_workers import BODY, LONG, connect, read_all, served

HOUR, DAY = 3600.0, 86400.0
# Python runs it when it starts: the clock of the wall is off by what a file says.
SITECUSTOMIZE = """
import os, time

def moved(real, unit):
    return lambda: real() + unit(float(open(os.environ["CLOCK_OFFSET"]).read()))

time.time = moved(time.time, float)
time.time_ns = moved(time.time_ns, lambda seconds: int(seconds * 1e9))
"""


@pytest.mark.parametrize("jump", [-400 * DAY, 400 * DAY])
def test_deadlines_and_budgets_do_not_follow_the_clock_of_the_wall(
    model: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    reranker, real = Reranker(model), time.time
    texts = [f"the river {n}" for n in range(20)]
    reranker.rank("which river", texts)
    deadline = deadline_of({"x-deadline-ms": "60000"}, 120.0)
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert 0 < deadline - time.monotonic() <= 60
    assert reranker.rank("which river", texts, budget_ms=60_000).usage.unscored == 0


@pytest.mark.promise("docs/cognitive.md", "with the same clock the same documents have the same figures")
@pytest.mark.parametrize("jump", [-400 * DAY, 0.0, 400 * DAY])
def test_what_was_made_in_the_future_is_new_and_no_more(model: Path, jump: float) -> None:
    now = 1_700_000_000.0
    documents = [Document("the river", {"created": now + jump}), Document("the river ", {"created": now})]
    reranker = Reranker(model)
    ranking = reranker.rank("which river", documents, cognitive=Cognitive(now=now))
    again = reranker.rank("which river", documents, cognitive=Cognitive(now=now))
    assert [hit.parts for hit in ranking] == [hit.parts for hit in again]
    recency = {hit.index: (hit.parts or {}).get("recency", 0.0) for hit in ranking}
    assert recency[0] <= recency[1] + 1e-9


@pytest.mark.slow
@pytest.mark.promise("docs/serving.md", "for a request; a caller may ask for less")
@pytest.mark.promise("docs/serving.md", "the answer is 429; `Retry-After` says when there is room for it")
def test_a_server_whose_clock_jumps_answers_refuses_and_ends_as_before(tmp_path: Path) -> None:
    """An hour and a year, there and back, while it runs: a real server, of which only the clock is another."""
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(SITECUSTOMIZE))
    clock = tmp_path / "clock"

    def jump(seconds: float) -> None:
        (tmp_path / "next").write_text(str(seconds))
        (tmp_path / "next").replace(clock)

    jump(0)
    environment = {
        "CLOCK_OFFSET": str(clock),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    settings = ["--set", "max_queue_requests=2", "--set", "header_timeout_s=0.5"]
    with served(*settings, **environment) as (url, found), ThreadPoolExecutor(12) as pool:

        def post(body: object, **headers: str) -> httpx.Response:
            return httpx.post(f"{url}/v2/rerank", json=body, headers=headers, timeout=60)

        wanted = post(BODY).json()["results"]
        for seconds in (-HOUR, HOUR, -365 * DAY, 365 * DAY, 0.0):
            under_way = pool.submit(post, LONG, **{"x-deadline-ms": "50000"})
            jump(seconds)
            assert under_way.result().status_code == 200
            assert post(BODY, **{"x-deadline-ms": "50000"}).json()["results"] == wanted
            begun = time.monotonic()
            late = {**LONG, "documents": [f"{seconds} {n} {text}" for n, text in enumerate(LONG["documents"] * 4)]}
            assert post(late, **{"x-deadline-ms": "30"}).status_code == 504
            silent = connect(url)
            assert read_all(silent) == b""  # after header_timeout_s
            assert time.monotonic() - begun < 20
            bodies = [{**LONG, "query": f"{seconds} {n}"} for n in range(12)]
            answers = list(pool.map(post, bodies))
            assert {answer.status_code for answer in answers} == {200, 429}
            waits = [int(answer.headers["retry-after"]) for answer in answers if answer.status_code == 429]
            assert min(waits) >= 1 and max(waits) <= 60
            assert httpx.get(f"{url}/health").json()["status"] == "ok"
        code, log = found.stopped(signal.SIGTERM)
    assert code == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert {line["event"] for line in lines} == {"request"} and all(0 <= line["ms"] < 60_000 for line in lines)
    this_year = time.gmtime().tm_year
    assert {this_year - 1, this_year + 1} <= {int(line["time"][:4]) for line in lines}  # it did jump
