"""What an ended sweep may do to the published cap: a table of cases, and what holds for all of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import records

from calibrator.core.publish.balance import Balance, FleetSize
from calibrator.core.publish.recommendation import PublishPolicy, decide, fallback, replica_cap, under_policy
from calibrator.core.publish.snapshot import Recommendation, State
from calibrator.core.records.history import Capacity, History
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import Grade, LevelReport, SweepOutcome, SweepRecord
from calibrator.core.stats.quantile import QuantileEstimate

NOW = 50_000.0
POLICY = PublishPolicy(fallback_cap=8)
FIRST = fallback("chat", POLICY, 1.0)


def published(cap: int, grade: Grade = Grade.CERTIFIED) -> Recommendation:
    return replace(records.recommendation(cap=cap, version=7), grade=grade)


def sweep(grade: Grade | None, estimate: int, certified: int = 0) -> SweepRecord:
    found = Capacity(estimate, estimate, estimate + 5, certified)
    return replace(records.sweep(), grade=grade, capacity=found, levels=())


@pytest.mark.parametrize(
    ("previous", "record", "cap", "grade"),
    [
        # the first measurement is published as it is, up or down; a provisional one says so
        (FIRST, sweep(Grade.CERTIFIED, 100, 100), 90, Grade.CERTIFIED),
        (FIRST, sweep(Grade.CERTIFIED, 5, 5), 4, Grade.CERTIFIED),
        (FIRST, sweep(Grade.AT_MAX, 512, 512), 460, Grade.AT_MAX),
        (FIRST, sweep(Grade.PROVISIONAL, 100, 0), 90, Grade.PROVISIONAL),
        (FIRST, sweep(Grade.PROVISIONAL, 100, 50), 90, Grade.PROVISIONAL),
        (FIRST, sweep(Grade.PROVISIONAL, 1, 0), 1, Grade.PROVISIONAL),
        # ... unless what is published passed its own test after all
        (FIRST, sweep(Grade.PROVISIONAL, 100, 100), 90, Grade.CERTIFIED),
        # later ones rise by half at most, and lower at once
        (published(20), sweep(Grade.CERTIFIED, 100, 100), 30, Grade.CERTIFIED),
        (published(20), sweep(Grade.AT_MAX, 100, 100), 30, Grade.AT_MAX),
        (published(20), sweep(Grade.CERTIFIED, 25, 25), 22, Grade.CERTIFIED),
        (published(20), sweep(Grade.CERTIFIED, 10, 10), 9, Grade.CERTIFIED),
        (published(20), sweep(Grade.PROVISIONAL, 10, 0), 9, Grade.PROVISIONAL),
        # half of 1 is nothing: at least one more
        (published(1), sweep(Grade.CERTIFIED, 100, 100), 2, Grade.CERTIFIED),
        # a provisional one confirms, or raises as far as its own certified level supports
        (published(20), sweep(Grade.PROVISIONAL, 100, 0), 20, Grade.PROVISIONAL),
        (published(20), sweep(Grade.PROVISIONAL, 100, 10), 20, Grade.PROVISIONAL),
        (published(20), sweep(Grade.PROVISIONAL, 100, 30), 27, Grade.CERTIFIED),
        (published(20), sweep(Grade.PROVISIONAL, 100, 90), 30, Grade.CERTIFIED),
        # after `infeasible` the way back is bounded as well: something was measured
        (replace(FIRST, grade=Grade.INFEASIBLE), sweep(Grade.CERTIFIED, 100, 100), 12, Grade.CERTIFIED),
    ],
)
def test_what_a_calibrated_sweep_publishes(
    previous: Recommendation, record: SweepRecord, cap: int, grade: Grade
) -> None:
    decided = decide(record, previous, POLICY, NOW)
    assert decided is not None
    assert (decided.cap, decided.grade, decided.state) == (cap, grade, State.CALIBRATED)
    assert decided.replica_cap == cap
    assert (decided.version, decided.sweep_id) == (previous.version + 1, "s1")
    assert (decided.published_at, decided.valid_until) == (NOW, NOW + POLICY.valid_for_s)


def test_a_bounded_raise_says_what_the_sweep_supports() -> None:
    decided = decide(sweep(Grade.CERTIFIED, 100, 100), published(20), POLICY, NOW)
    assert decided is not None
    assert "the sweep supports 90, raised no further than 30 at once" in decided.reason


@pytest.mark.parametrize("outcome", [None, SweepOutcome.INCONCLUSIVE, SweepOutcome.ERROR, SweepOutcome.INTERRUPTED,
                                     SweepOutcome.CANCELLED])  # fmt: skip
def test_sweeps_that_say_nothing_change_nothing(outcome: SweepOutcome | None) -> None:
    """Even if they carry numbers."""
    assert decide(replace(sweep(Grade.CERTIFIED, 100), outcome=outcome), published(20), POLICY, NOW) is None


def test_measured_levels_without_a_search_change_nothing() -> None:
    assert decide(replace(sweep(Grade.CERTIFIED, 100), mode="levels"), published(20), POLICY, NOW) is None


@pytest.mark.parametrize(("known", "cap"), [(20, 8), (8, 8), (5, 5)])
def test_infeasible_publishes_the_fallback_or_what_is_lower(known: int, cap: int) -> None:
    record = replace(sweep(Grade.INFEASIBLE, 0), outcome=SweepOutcome.INFEASIBLE)
    decided = decide(record, published(known), POLICY, NOW)
    assert decided is not None
    assert (decided.cap, decided.replica_cap, decided.version) == (cap, cap, 8)
    assert (decided.state, decided.grade, decided.valid_until) == (State.FALLBACK, Grade.INFEASIBLE, None)
    assert "the SLA cannot be met" in decided.reason
    assert decide(record, decided, POLICY, NOW) is None, "said once"


def test_bounds_hold_and_a_cap_lifted_to_the_minimum_is_not_called_certified() -> None:
    policy = PublishPolicy(fallback_cap=8, min_cap=6, max_cap=16)
    capped = decide(sweep(Grade.CERTIFIED, 100, 100), FIRST, policy, NOW)
    assert capped is not None
    assert (capped.cap, capped.grade) == (16, Grade.CERTIFIED)
    lifted = decide(sweep(Grade.CERTIFIED, 3, 3), FIRST, policy, NOW)
    assert lifted is not None
    assert (lifted.cap, lifted.grade) == (6, Grade.PROVISIONAL)
    assert "lifted to the configured minimum of 6" in lifted.reason


def test_a_fleet_multiplies_the_replica_cap() -> None:
    decided = decide(sweep(Grade.CERTIFIED, 10, 10), FIRST, POLICY, NOW, FleetSize(3, Balance(busiest_to_mean=1.0)))
    assert decided is not None
    assert (decided.cap, decided.replica_cap, decided.replicas, decided.balance_factor) == (27, 9, 3, 1.0)


@pytest.mark.parametrize(
    ("capacity", "margin", "cap"), [(10, 0.1, 9), (100, 0.07, 93), (1, 0.1, 1), (0, 0.1, 1), (5, 0.0, 5), (5, 1.0, 1)]
)
def test_safety_margin(capacity: int, margin: float, cap: int) -> None:
    """100 * (1 - 0.07) is 92.99999999999999 in floating point."""
    assert replica_cap(capacity, margin) == cap


# --------------------------------------------------------------------------------------------------------- rates, wait
def level(concurrency: int, per_second: float, p99_s: float | None = None) -> LevelReport:
    base = records.sweep().levels[0]
    p99 = None if p99_s is None else QuantileEstimate(p99_s, p99_s, None)
    return replace(
        base,
        concurrency=concurrency,
        n=100,
        requests_per_second=per_second,
        prompt_tokens_per_second=10 * per_second,
        output_tokens_per_second=2 * per_second,
        ttft=replace(base.ttft, p99=p99),
    )


def test_rates_and_queue_wait_come_from_the_level_at_the_cap() -> None:
    record = replace(sweep(Grade.CERTIFIED, 40, 40), levels=(level(8, 4.0), level(48, 16.0, 0.4), level(64, 17.0)))
    decided = decide(record, FIRST, POLICY, NOW)
    assert decided is not None
    assert decided.rates is not None
    assert decided.cap == 36
    assert decided.rates.requests_per_second == pytest.approx(16.0 * 36 / 48)
    assert decided.rates.prompt_tokens_per_minute == pytest.approx(60 * 160.0 * 36 / 48)
    assert decided.rates.output_tokens_per_minute == pytest.approx(60 * 32.0 * 36 / 48)
    assert decided.max_queue_wait_s == pytest.approx(0.1)  # 500 ms allowed, 400 ms used


def test_only_latencies_that_a_queue_adds_to_bound_its_wait() -> None:
    """A limit on the time between tokens says nothing about how long a request may wait before it starts."""
    record = replace(sweep(Grade.CERTIFIED, 40, 40), levels=(level(48, 16.0, 0.4),))
    record = replace(record, history=History((parse_objective("tpot p99 <= 50ms"),)))
    decided = decide(record, FIRST, POLICY, NOW)
    assert decided is not None
    assert decided.max_queue_wait_s is None


def test_rates_are_never_extrapolated_above_the_highest_level() -> None:
    record = replace(sweep(Grade.CERTIFIED, 40, 40), levels=(level(8, 4.0),))
    decided = decide(record, FIRST, POLICY, NOW)
    assert decided is not None
    assert decided.rates is not None
    assert decided.rates.requests_per_second == 4.0
    assert decided.max_queue_wait_s is None


# ------------------------------------------------------------------------------------------------------------- restart
def test_a_stored_cap_under_new_bounds() -> None:
    known = published(32)
    assert under_policy(known, POLICY, NOW) is known
    lowered = under_policy(known, PublishPolicy(fallback_cap=8, max_cap=16), NOW)
    assert (lowered.cap, lowered.replica_cap, lowered.version, lowered.state) == (16, 16, 8, State.CALIBRATED)
    assert lowered.valid_until == known.valid_until, "clamping does not make a measurement younger"
    assert lowered.rates is not None
    assert known.rates is not None
    assert lowered.rates.requests_per_second == known.rates.requests_per_second / 2
    lifted = under_policy(known, PublishPolicy(fallback_cap=8, min_cap=64), NOW)
    assert (lifted.cap, lifted.replica_cap) == (64, 64)
    assert lifted.rates == known.rates, "what was never measured is not promised"
    fleet = under_policy(replace(known, replica_cap=8), PublishPolicy(fallback_cap=8, max_cap=16), NOW)
    assert (fleet.cap, fleet.replica_cap) == (16, 4)


def test_a_fallback_follows_the_configured_one() -> None:
    """After `infeasible` only downwards: nothing was shown to be safe."""
    assert under_policy(FIRST, POLICY, NOW) is FIRST
    for configured in (4, 12):
        assert under_policy(FIRST, PublishPolicy(fallback_cap=configured), NOW).cap == configured
    infeasible = replace(FIRST, grade=Grade.INFEASIBLE)
    assert under_policy(infeasible, PublishPolicy(fallback_cap=12), NOW) is infeasible
    lowered = under_policy(infeasible, PublishPolicy(fallback_cap=4), NOW)
    assert (lowered.cap, lowered.version, lowered.grade) == (4, 2, Grade.INFEASIBLE)


# ---------------------------------------------------------------------------------------------------------- properties
@st.composite
def policies(draw: st.DrawFn) -> PublishPolicy:
    least = draw(st.integers(-3, 50))
    return PublishPolicy(
        fallback_cap=draw(st.integers(-3, 600)),
        min_cap=least,
        max_cap=draw(st.integers(max(1, least), 600)),
        safety_margin_ratio=draw(st.floats(0.0, 0.9)),
        max_increase_ratio=draw(st.floats(1.0, 4.0)),
    )


SWEEPS = st.builds(
    lambda outcome, grade, estimate, certified: replace(
        sweep(grade, estimate, min(certified, estimate)), outcome=outcome
    ),
    st.sampled_from(SweepOutcome),
    st.sampled_from(Grade),
    st.integers(0, 700),
    st.integers(0, 700),
)


@given(policies(), st.lists(SWEEPS, max_size=8), st.integers(1, 4))
def test_whatever_sweeps_say(policy: PublishPolicy, ended: list[SweepRecord], replicas: int) -> None:
    """From the fallback on, through any sequence of sweeps."""
    known = fallback("chat", policy, 1.0)
    for record in ended:
        decided = decide(record, known, policy, NOW, FleetSize(replicas, Balance(busiest_to_mean=1.0)))
        if decided is None:
            continue
        assert decided.version == known.version + 1
        assert 1 <= decided.replica_cap <= decided.cap
        assert max(1, policy.min_cap) <= decided.cap <= max(1, policy.max_cap)
        if decided.cap > known.cap:
            _check_raise(record, known, decided, policy, replicas)
        assert record.outcome in {SweepOutcome.CALIBRATED, SweepOutcome.INFEASIBLE}
        known = decided


def _check_raise(
    record: SweepRecord, known: Recommendation, decided: Recommendation, policy: PublishPolicy, replicas: int
) -> None:
    assert record.outcome is SweepOutcome.CALIBRATED, "nothing else raises"
    assert record.capacity is not None
    is_first = known.state is State.FALLBACK and known.grade is None
    is_proven = record.grade in {Grade.CERTIFIED, Grade.AT_MAX}
    supported = record.capacity.estimate if is_proven or is_first else record.capacity.certified
    floor = policy.clamp(math.floor(supported * (1 - policy.safety_margin_ratio) + 1e-9) * replicas)
    assert decided.cap <= max(floor, policy.clamp(replicas)), "no further than what stands behind it"
    if not is_first:
        assert decided.cap <= max(known.cap + 1, known.cap * policy.max_increase_ratio)


def test_a_ratio_of_one_means_no_growth_at_all() -> None:
    policy = replace(POLICY, max_increase_ratio=1.0)
    decided = decide(sweep(Grade.CERTIFIED, 100, 100), published(20), policy, NOW)
    assert decided is not None
    assert decided.cap == 20


def test_an_unknown_tail_leaves_the_queue_wait_unknown() -> None:
    """A P99 does not bound a p99.9 objective, and one known objective does not stand for another."""
    measured = level(10, 1.0, p99_s=0.4)
    for objectives in (("ttft p99.9 <= 500ms",), ("ttft p99 <= 500ms", "e2e p99 <= 9s")):
        record = sweep(Grade.CERTIFIED, 10, 10)
        record = replace(record, levels=(measured,), history=History(tuple(map(parse_objective, objectives))))
        decided = decide(record, published(8), POLICY, NOW)
        assert decided is not None
        assert decided.max_queue_wait_s is None
