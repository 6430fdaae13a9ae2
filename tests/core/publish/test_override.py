"""A pin over a recommendation: what is served, and what of the recommendation still holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.records import recommendation

from calibrator.core.publish.override import overlaid
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.publish.snapshot import Override, Rates, State

POLICY = PublishPolicy(fallback_cap=8, min_cap=4, max_cap=100)
BENEATH = replace(recommendation(cap=32), replica_cap=16, replicas=2, rates=Rates(16.0, 3200.0, 320.0))


def pinned(cap: int) -> Override:
    return Override(cap, "incident 7", "ada", 2000.0, 9000.0)


CASES = [
    # asked, cap, per replica, requests per second, queue wait
    (20, 20, 10, 10.0, 0.1),  # lower: the measured rates in proportion, the measured wait still bounds
    (32, 32, 16, 16.0, 0.1),
    (50, 50, 25, 16.0, None),  # higher: never more than was measured, and the wait is unknown
    (500, 100, 50, 16.0, None),
    (1, 4, 2, 2.0, 0.1),
]


@pytest.mark.parametrize(("asked", "cap", "per_replica", "rate", "wait_s"), CASES)
def test_what_is_served(asked: int, cap: int, per_replica: int, rate: float, wait_s: float | None) -> None:
    served = overlaid(BENEATH, pinned(asked), POLICY)
    assert (served.cap, served.replica_cap, served.max_queue_wait_s) == (cap, per_replica, wait_s)
    assert served.rates is not None
    assert served.rates.requests_per_second == pytest.approx(rate)
    assert (served.state, served.grade) == (State.OVERRIDDEN, None)
    assert (served.published_at, served.valid_until) == (2000.0, 9000.0)
    assert (served.version, served.measured_at, served.capacity) == (
        BENEATH.version, BENEATH.measured_at, BENEATH.capacity
    )  # fmt: skip
    assert served.reason.startswith("ada: incident 7")
    assert ("clamped to 4..100" in served.reason) == (asked != cap)


def test_a_replica_never_gets_less_than_one() -> None:
    many = replace(BENEATH, cap=64, replica_cap=2, replicas=32)
    assert overlaid(many, pinned(8), POLICY).replica_cap == 1


def test_all_replicas_together_never_get_more_than_the_pin_where_balance_costs_some_of_the_cap() -> None:
    uneven = replace(BENEATH, cap=70, replica_cap=36, replicas=2)  # a balance factor below 1
    assert overlaid(uneven, pinned(40), POLICY).replica_cap == 20
