"""Which sweeps may start, and with what limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calibrator.core.admission.admission import (
    DAY_S,
    Admitted,
    Deferral,
    DeferralReason,
    SafetyLimits,
    Situation,
    Spending,
    admit,
)
from calibrator.core.admission.schedule import Schedule, Window
from calibrator.core.records.history import Bounds
from calibrator.core.search.cost import SweepCost

NOW = 1_800_000_000.0  # 08:00 UTC
COST = SweepCost(1000, 3000, 90_000, 270_000, 10_000, 30_000, 1200.0)
MOMENT = Situation(NOW, is_asked=False, organic=3.0, cap=20, capacity=24, replicas=1, spent=())
MORNING = Schedule(windows=(Window(tuple(range(7)), 7 * 60, 9 * 60),))
NIGHT = Schedule(windows=(Window(tuple(range(7)), 22 * 60, 6 * 60),))
HOUR_S = 3600.0


def ask(limits: SafetyLimits, moment: Situation = MOMENT, schedule: Schedule = Schedule()) -> Admitted | Deferral:  # noqa: B008 - frozen
    return admit(limits, schedule, Bounds(), COST, moment)


def spent(hours_ago: float, requests: int = 0, tokens: int = 0, overload_s: float = 0.0) -> Spending:
    return Spending(NOW - hours_ago * HOUR_S, requests, tokens, overload_s)


@pytest.mark.parametrize(
    ("limits", "moment", "schedule", "wanted", "asked"),
    [  # `wanted` for the schedule, `asked` for a person
        (SafetyLimits(), MOMENT, Schedule(), None, None),
        (SafetyLimits(observe=True), MOMENT, Schedule(), DeferralReason.OBSERVE, DeferralReason.OBSERVE),
        (SafetyLimits(), MOMENT, NIGHT, DeferralReason.WINDOW, None),
        (SafetyLimits(), replace(MOMENT, organic=16.0), Schedule(), DeferralReason.BUSY, None),
        (SafetyLimits(), replace(MOMENT, organic=15.9), Schedule(), None, None),
        (SafetyLimits(), replace(MOMENT, organic=None), Schedule(), None, None),
        (SafetyLimits(start_below_ratio=None), replace(MOMENT, organic=99.0), Schedule(), None, None),
        (SafetyLimits(requests_per_day=999), MOMENT, Schedule(), DeferralReason.REQUESTS, DeferralReason.REQUESTS),
        (SafetyLimits(requests_per_day=1000), MOMENT, Schedule(), None, None),
        (SafetyLimits(tokens_per_day=99_999), MOMENT, Schedule(), DeferralReason.TOKENS, DeferralReason.TOKENS),
        (SafetyLimits(tokens_per_day=50_000, tokens=50_000), MOMENT, Schedule(), None, None),  # a sweep costs no more
        (SafetyLimits(max_probe_share=1.0), MOMENT, Schedule(), DeferralReason.PROBE_SHARE, DeferralReason.PROBE_SHARE),
        (SafetyLimits(max_probe_share=0.7), replace(MOMENT, replicas=2), Schedule(), None, None),
        (SafetyLimits(max_probe_share=0.1), replace(MOMENT, capacity=None), Schedule(), None, None),
    ],
)
def test_the_first_rule_that_holds_a_sweep_back(
    limits: SafetyLimits,
    moment: Situation,
    schedule: Schedule,
    wanted: DeferralReason | None,
    asked: DeferralReason | None,
) -> None:
    for is_asked, expected in ((False, wanted), (True, asked)):
        answer = ask(limits, replace(moment, is_asked=is_asked), schedule)
        assert (answer.reason if isinstance(answer, Deferral) else None) is expected


def test_a_budget_of_a_day_is_free_again_when_enough_of_it_is_a_day_old() -> None:
    limits = SafetyLimits(requests_per_day=2500)
    moment = replace(MOMENT, spent=(spent(20, 800), spent(10, 800), spent(2, 800), spent(25, 9000)))
    answer = ask(limits, moment)
    assert isinstance(answer, Deferral)
    assert "2,400 of 2,500 requests" in answer.message, "what is older than a day is forgotten"
    assert answer.until == NOW - 10 * HOUR_S + DAY_S, "without the first two there is room for 1,000"
    assert isinstance(ask(limits, replace(moment, now=answer.until)), Admitted)
    assert isinstance(ask(limits, replace(moment, now=answer.until - 1.0)), Deferral)


def test_a_budget_below_one_sweep_is_never_free() -> None:
    answer = ask(SafetyLimits(requests_per_day=10))
    assert isinstance(answer, Deferral)
    assert answer.until is None


def test_the_rest_of_a_day_goes_with_the_sweep() -> None:
    limits = SafetyLimits(requests_per_day=5000, tokens_per_day=300_000, tokens=250_000, overload_per_day_s=100.0)
    answer = ask(limits, replace(MOMENT, spent=(spent(3, 1500, 120_000, 40.0),)))
    assert isinstance(answer, Admitted)
    assert (answer.limits.requests, answer.limits.tokens) == (3500, 180_000)
    assert answer.bounds.overload_s == 60.0


def test_spent_overload_holds_back() -> None:
    answer = ask(SafetyLimits(overload_per_day_s=60.0), replace(MOMENT, spent=(spent(3, overload_s=60.0),)))
    assert isinstance(answer, Deferral)
    assert (answer.reason, answer.until) == (DeferralReason.OVERLOAD, NOW - 3 * HOUR_S + DAY_S)


def test_a_sweep_ends_when_its_window_closes_unless_a_person_asked() -> None:
    answer, asked = ask(SafetyLimits(), MOMENT, MORNING), ask(SafetyLimits(), replace(MOMENT, is_asked=True), MORNING)
    assert isinstance(answer, Admitted)
    assert isinstance(asked, Admitted)
    assert (answer.limits.ends_at, asked.limits.ends_at) == (NOW + HOUR_S, None)


def test_the_share_limits_the_levels() -> None:
    answer = ask(SafetyLimits(max_probe_share=0.75), replace(MOMENT, replicas=4))
    assert isinstance(answer, Admitted)
    assert answer.bounds.max_level == 72


def test_observe_tells_what_a_sweep_would_cost() -> None:
    answer = ask(SafetyLimits(observe=True))
    assert isinstance(answer, Deferral)
    assert "1,000 requests and 100,000 tokens" in answer.message
