from __future__ import annotations

import pytest

from secondpass.server.queue import PATIENCE, Queue, QueuedRequest, RequestSlice
from secondpass.types import Row, Run

SPEED = 0.001  # seconds per token


def request(*lengths: int, arrived: float = 0.0, **options: object) -> QueuedRequest:
    rows = [Row([1] * length, (1, length)) for length in lengths]
    return QueuedRequest(rows=rows, arrived=arrived, **options)  # type: ignore[arg-type]


def queue(*requests: QueuedRequest) -> Queue:
    found = Queue()
    for each in requests:
        found.add(each)
    return found


def taken(portions: list[RequestSlice]) -> list[tuple[QueuedRequest, list[int]]]:
    return [(portion.request, portion.indices) for portion in portions]


def test_a_batch_is_cut_where_it_is_full() -> None:
    long = request(40, 40, 40)
    waiting = queue(long)
    assert taken(waiting.take(100, seconds_per_token=SPEED)) == [(long, [2, 1])]
    assert (len(waiting), waiting.tokens) == (1, 40)
    assert taken(waiting.take(100, seconds_per_token=SPEED)) == [(long, [0])]
    assert (len(waiting), waiting.tokens) == (0, 0)


@pytest.mark.promise("docs/serving.md", "Short requests are not kept behind long ones")
def test_a_short_request_goes_before_a_long_one_that_came_first() -> None:
    long, short = request(*[50] * 20, arrived=0.0), request(10, arrived=1.0)
    portions = queue(long, short).take(100, seconds_per_token=SPEED)
    assert taken(portions) == [(short, [0]), (long, [19])]


def test_a_long_request_is_overtaken_for_a_bounded_time() -> None:
    long = request(*[50] * 20)  # 1000 tokens: a second alone
    patience = PATIENCE * 1000 * SPEED
    in_time, late = request(10, arrived=patience - 1), request(10, arrived=patience + 1)
    portions = queue(long, late, in_time).take(60, seconds_per_token=SPEED)
    assert [portion.request for portion in portions] == [in_time, long]


def test_rows_of_a_request_fill_a_batch_longest_first() -> None:
    mixed = request(5, 50, 20)
    assert taken(queue(mixed).take(71, seconds_per_token=SPEED)) == [(mixed, [1, 2])]


def test_a_row_longer_than_a_batch_comes_alone() -> None:
    long, other = request(200), request(300)
    waiting = queue(long, other)
    assert taken(waiting.take(100, seconds_per_token=SPEED)) == [(long, [0])]
    assert taken(waiting.take(100, seconds_per_token=SPEED)) == [(other, [0])]


def test_priority_comes_before_others_of_its_time() -> None:
    usual, urgent = request(10), request(10, arrived=0.1, priority=-1)
    assert taken(queue(usual, urgent).take(100, seconds_per_token=SPEED)) == [(urgent, [0]), (usual, [0])]


@pytest.mark.promise("docs/security.md", "no priority counts for more than two seconds")
def test_no_priority_of_a_client_keeps_another_waiting_for_long() -> None:
    usual = request(10)
    steady = [request(90, arrived=second / 2, priority=-1_000_000) for second in range(20)]
    waiting = queue(usual, *steady)
    order = [portion.request for _ in range(21) for portion in waiting.take(90, seconds_per_token=SPEED)]
    assert order.index(usual) < 8


def test_a_long_request_is_not_overtaken_until_its_deadline_has_passed() -> None:
    long = request(*[50] * 20, deadline=3.0)  # a second of work
    short = [request(10, arrived=moment / 100) for moment in range(300)]
    waiting = queue(long, *short)
    assert waiting.before(long, seconds_per_token=SPEED) - long.tokens < sum(each.tokens for each in short) / 2


def test_a_short_request_has_little_before_it() -> None:
    waiting = queue(*[request(*[500] * 20) for _ in range(5)])
    assert waiting.before(request(10, arrived=1.0), seconds_per_token=SPEED) == 0


def test_requests_of_another_run_are_not_joined() -> None:
    plain, layered = request(10), request(10, arrived=1.0, run=Run(cutoff_layers=(8,)))
    waiting = queue(plain, layered)
    assert taken(waiting.take(100, seconds_per_token=SPEED)) == [(plain, [0])]
    assert taken(waiting.take(100, seconds_per_token=SPEED)) == [(layered, [0])]


def test_what_is_cancelled_or_late_is_dropped() -> None:
    cancelled, late, good = request(10), request(10, deadline=5.0), request(10, deadline=6.0)
    waiting = queue(cancelled, late, good)
    cancelled.future.cancel()
    assert waiting.drop(5.0) == [late]
    assert taken(waiting.take(100, seconds_per_token=SPEED)) == [(good, [0])]
