"""A measured capacity for a fleet, and what becomes of a published cap when the fleet changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import records
from support.fakes import capacity

from calibrator.core.publish.balance import Balance, FleetSize
from calibrator.core.publish.recommendation import PublishPolicy, decide, fallback, for_fleet
from calibrator.core.publish.snapshot import CapBeforeCut, Recommendation, State
from calibrator.core.records.sweep import Grade, SweepOutcome, SweepRecord

POLICY = PublishPolicy(fallback_cap=8)
NOW = 1_000.0
EVEN = Balance(busiest_to_mean=1.0)


def sweep(estimate: int) -> SweepRecord:
    full = records.sweep("s1")
    return replace(
        full, outcome=SweepOutcome.CALIBRATED, grade=Grade.CERTIFIED, capacity=capacity(estimate), aborted=None
    )


def published(estimate: int, fleet: FleetSize, policy: PublishPolicy = POLICY) -> Recommendation:
    decided = decide(sweep(estimate), fallback("chat", policy, 0.0), policy, NOW, fleet)
    assert decided is not None
    return decided


def test_the_recommendation_says_how_many_replicas_and_which_factor() -> None:
    made = published(40, FleetSize(4))
    assert (made.replica_cap, made.cap, made.replicas) == (36, 96, 4)
    assert made.balance_factor == pytest.approx(96 / (4 * 36))


def test_the_smallest_measured_replica_decides() -> None:
    made = published(40, FleetSize(2, EVEN, smallest_other=20))
    assert (made.replica_cap, made.cap) == (18, 36)
    assert "the smallest replica measured holds 20" in made.reason
    assert published(20, FleetSize(2, EVEN, smallest_other=40)).cap == 36


def test_a_member_of_a_group_gets_its_part() -> None:
    half = published(40, FleetSize(1, share=0.5))
    assert (half.replica_cap, half.cap) == (18, 18)
    assert "50% of the engine group's" in half.reason
    assert published(1, FleetSize(1, share=0.01)).cap == 1


@pytest.mark.parametrize(
    ("before", "after", "cap"),
    [
        (FleetSize(2, EVEN), FleetSize(4, EVEN), 144),
        (FleetSize(4, EVEN), FleetSize(3, EVEN), 108),
        (FleetSize(4, EVEN), FleetSize(0, EVEN), 144),  # none ready: the last cap stays
        (FleetSize(4), FleetSize(4, Balance(busiest_to_mean=1.2)), 120),  # the balance became known
        (FleetSize(4), FleetSize(4), 96),
    ],
)
def test_another_fleet(before: FleetSize, after: FleetSize, cap: int) -> None:
    known = published(40, before)
    fitted = for_fleet(known, POLICY, after, NOW + 1.0)
    assert (fitted.cap, fitted.replica_cap) == (cap, 36)
    assert (fitted is known) == (cap == known.cap)
    assert fitted.valid_until == known.valid_until, "nothing was measured anew"
    if fitted is not known:
        assert (fitted.version, fitted.published_at) == (known.version + 1, NOW + 1.0)
        assert fitted.replicas == after.replicas


def test_rates_follow_the_cap_and_bounds_hold() -> None:
    policy = PublishPolicy(fallback_cap=8, max_cap=100)
    known = published(40, FleetSize(2, EVEN), policy)
    fitted = for_fleet(known, policy, FleetSize(4, EVEN), NOW)
    assert (known.cap, fitted.cap) == (72, 100)
    assert known.rates is not None
    assert fitted.rates is not None
    assert fitted.rates.requests_per_second == pytest.approx(known.rates.requests_per_second * 100 / 72)


def test_a_fallback_is_about_the_whole_backend() -> None:
    known = fallback("chat", POLICY, 0.0)
    four = for_fleet(known, POLICY, FleetSize(4), NOW)
    assert (four.cap, four.replica_cap) == (8, 2)
    assert for_fleet(four, POLICY, FleetSize(1), NOW).replica_cap == 2, "a replica's part only falls"


def test_a_guarded_cap_finds_back_to_no_more_than_the_new_fleet_carries() -> None:
    known = published(40, FleetSize(4, EVEN))
    guarded = replace(
        known, cap=100, replica_cap=25, state=State.GUARDED, before_cut=CapBeforeCut(144, 36, State.CALIBRATED, NOW)
    )
    fitted = for_fleet(guarded, POLICY, FleetSize(2, EVEN), NOW)
    assert fitted.state is State.GUARDED
    assert fitted.before_cut is not None
    assert (fitted.cap, fitted.before_cut.cap) == (50, 72)


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1.0, 0.5, 0.3, 0.01]), st.booleans())
def test_whatever_the_fleet(estimate: int, before: int, after: int, share: float, is_even: bool) -> None:  # noqa: FBT001 - drawn
    balance = EVEN if is_even else Balance()
    known = published(estimate, FleetSize(before, balance, share))
    fitted = for_fleet(known, POLICY, FleetSize(after, balance, share), NOW)
    for one in (known, fitted):
        assert 1 <= one.replica_cap <= one.cap
        assert one.replica_cap <= max(1, estimate)
    if after > before:
        assert fitted.cap >= known.cap - before, "rounding of the shares aside"
    if after < before:
        assert fitted.cap <= known.cap
    if after == before:
        assert for_fleet(known, POLICY, FleetSize(before, balance, share), NOW) is known
