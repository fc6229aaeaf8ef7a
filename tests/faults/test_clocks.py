"""A clock that jumps: what waits, expires or decays goes on as if it had not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from secondpass import Reranker
from secondpass.cognitive import Cognitive
from secondpass.server.body import deadline_of
from secondpass.types import Document

DAY = 86400.0


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
