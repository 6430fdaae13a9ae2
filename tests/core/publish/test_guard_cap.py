"""From a guard's event to what is published: never above what was certified, never below the minimum, never 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import records

from calibrator.core.live.change_test import GuardAction, GuardEvent, GuardReason
from calibrator.core.publish.guard_cap import after_event, cut, step_up
from calibrator.core.publish.recommendation import PublishPolicy, decide, fallback, under_policy
from calibrator.core.publish.snapshot import Rates, Recommendation, State
from calibrator.stores.documents import RECOMMENDATION

POLICY = PublishPolicy(fallback_cap=8)
CALIBRATED = replace(
    fallback("chat", POLICY, 1.0), cap=100, replica_cap=37, state=State.CALIBRATED, rates=Rates(10.0, 100.0, 50.0)
)


def lowered(times: int, known: Recommendation = CALIBRATED, policy: PublishPolicy = POLICY) -> Recommendation:
    for _ in range(times):
        known = cut(known, 0.2, "breach", policy, 5.0) or known
    return known


def test_a_cut_takes_a_fifth_and_remembers_what_was_before_the_first() -> None:
    once, twice = lowered(1), lowered(2)
    assert (once.cap, once.replica_cap, once.state, once.version) == (80, 29, State.GUARDED, CALIBRATED.version + 1)
    assert (twice.cap, twice.replica_cap) == (64, 23)
    assert once.rates == Rates(8.0, 80.0, 40.0)
    assert once.before_cut == twice.before_cut
    assert once.before_cut is not None
    assert (once.before_cut.cap, once.before_cut.replica_cap, once.before_cut.since) == (100, 37, 5.0)
    assert "breach; lowered from 100 to 80" in once.reason


@pytest.mark.parametrize(("cap", "min_cap", "expected"), [(3, 1, 2), (2, 1, 1), (10, 9, 9)])
def test_a_cut_is_at_least_one_and_ends_at_the_minimum(cap: int, min_cap: int, expected: int) -> None:
    policy = replace(POLICY, min_cap=min_cap)
    known = replace(CALIBRATED, cap=cap, replica_cap=cap)
    once = lowered(1, known, policy)
    assert once.cap == expected
    least = lowered(30, known, policy)
    assert (least.cap, least.replica_cap >= 1) == (min_cap, True)
    assert cut(least, 0.2, "breach", policy, 5.0) is None


@pytest.mark.parametrize("cuts", [1, 2, 5, 40])
@pytest.mark.parametrize(("cap", "replica_cap"), [(100, 37), (7, 7), (2, 1)])
def test_steps_lead_back_exactly_to_what_was_published(cuts: int, cap: int, replica_cap: int) -> None:
    known = lowered(cuts, replace(CALIBRATED, cap=cap, replica_cap=replica_cap))
    seen = [known]
    while (higher := step_up(seen[-1], 0.2, "clean", POLICY, 9.0)) is not None:
        assert (seen[-1].cap, seen[-1].replica_cap) < (higher.cap, higher.replica_cap) <= (cap, replica_cap)
        seen.append(higher)
    assert (seen[-1].cap, seen[-1].replica_cap, seen[-1].state, seen[-1].before_cut) == (
        cap, replica_cap, State.CALIBRATED, None
    )  # fmt: skip
    assert all(one.state is State.GUARDED for one in seen[:-1])


def test_a_lower_maximum_ends_the_way_back() -> None:
    policy = replace(POLICY, max_cap=90)
    assert (higher := step_up(lowered(1), 0.2, "clean", policy, 9.0)) is not None
    assert (higher.cap, higher.state) == (90, State.CALIBRATED)


def test_a_guarded_fallback_leads_back_to_the_fallback_and_does_not_bind_the_first_sweep() -> None:
    guarded = lowered(2, fallback("chat", POLICY, 1.0))
    assert (guarded.state, guarded.cap) == (State.GUARDED, 4)
    assert (first := decide(records.sweep(), guarded, POLICY, 9.0)) is not None
    assert (first.cap, first.state, first.before_cut) == (32, State.CALIBRATED, None)


def test_the_guarded_cap_and_the_way_back_survive_a_restart() -> None:
    guarded = lowered(1)
    stored = RECOMMENDATION.read(RECOMMENDATION.write(guarded))
    assert under_policy(stored, POLICY, 9.0) == guarded


def test_events() -> None:
    event = GuardEvent(GuardAction.CUT, GuardReason.LATENCY, "breach")
    assert (after := after_event(event, CALIBRATED, 0.5, POLICY, 5.0)) is not None
    assert after.cap == 50
    assert after_event(replace(event, action=GuardAction.REPORT), CALIBRATED, 0.5, POLICY, 5.0) is None
    clean = replace(event, action=GuardAction.RAISE, reason=None)
    assert after_event(clean, CALIBRATED, 0.5, POLICY, 5.0) is None, "nothing is guarded"
    assert after_event(clean, after, 0.5, POLICY, 5.0) is not None
