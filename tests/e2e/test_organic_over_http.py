"""Total concurrency over real HTTP: live users beside a sweep in a process of its own, within 20 % of the truth.

The engines are those of the virtual-time table on a slower clock, so that the truth is the same and the machine's own
noise is small beside the limits. `pytest -s` prints what was found, and what a sweep finds that ignores its users.
"""

from __future__ import annotations

import asyncio

import pytest
from support.organic import steady
from support.organic_cases import PREFILL, SLOTS, truth_of
from support.organic_http import slowed, sweep_over_http
from support.organic_sweep import Engine
from support.quiet_machine import TEST_LIMIT_S, judge

from calibrator.core.records.history import Bounds

TOLERANCE_RATIO = 0.20
BOUNDS = Bounds(max_level=64, requests=900, duration_s=120.0)
LIMIT_S = 400.0
LUCK = 1  # a stall moves one answer, and one sweep in ten may err


@pytest.mark.timeout(TEST_LIMIT_S)
@pytest.mark.parametrize(
    ("engine", "factor", "users", "lag_s"),
    [
        pytest.param(SLOTS, 5.0, 20, 0.0, marks=pytest.mark.long),
        (PREFILL, 2.0, 8, 0.0),
        pytest.param(SLOTS, 5.0, 8, 2.0, marks=pytest.mark.long),
    ],
    ids=["slots, 20 users", "prefill, 8 users", "slots, 8 users, gauges 2 s late"],
)
def test_the_capacity_over_http_is_that_of_all_requests(
    engine: Engine, factor: float, users: int, lag_s: float
) -> None:
    truth = truth_of(engine)
    slow = slowed(engine, factor)

    def attempt() -> None:
        record = asyncio.run(asyncio.wait_for(sweep_over_http(slow, steady(users), BOUNDS, lag_s=lag_s), LIMIT_S))
        found = 0 if record.capacity is None else record.capacity.estimate
        print(f"\n{engine.name}, {users} users, lag {lag_s:g} s: truth {truth}, found {found}, "
              f"{record.requests} requests, {record.duration_s:.0f} s: {record.reason}")  # fmt: skip
        assert not record.levels or record.levels[0].concurrency > users
        assert abs(found / truth - 1.0) <= TOLERANCE_RATIO

    judge(attempt, luck=LUCK)
