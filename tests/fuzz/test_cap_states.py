"""The life of a published cap as a state machine: sweeps of every outcome and grade, the guard, fleets, pins, restarts
under another configuration and the passing of time, in any order.

What must hold after each of them, whatever came before:
- the cap is within the configured bounds and at least 1, and so is a replica's part of it;
- it never rises without evidence: above what the last calibrating sweep published for a replica, times the replicas;
  only a minimum that was configured since then may have lifted it, and that stays so until the next sweep;
- one sweep raises it no further than configured, and no further than what it certified;
- every change has a new, higher version, and rates are never those of more than was measured;
- a pin is served while it lasts, whatever happens underlying; after its end the recommendation is back as it is by
  then.
"""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support import records
from support.web_fakes import fallback as fresh_view

from calibrator.core.publish.balance import Balance, FleetSize
from calibrator.core.publish.guard_cap import cut, step_up
from calibrator.core.publish.override import overlaid
from calibrator.core.publish.recommendation import PublishPolicy, decide, fallback, for_fleet, replica_cap, under_policy
from calibrator.core.publish.snapshot import Override, Recommendation, State
from calibrator.core.records.history import Capacity
from calibrator.core.records.sweep import Grade, SweepOutcome, SweepRecord

CAPS = st.integers(1, 300)
DAY_S = 86_400.0
MARGIN_RATIO = 0.1
SILENT = [SweepOutcome.ERROR, SweepOutcome.INTERRUPTED, SweepOutcome.CANCELLED, SweepOutcome.INCONCLUSIVE]


@st.composite
def policies(draw: st.DrawFn) -> PublishPolicy:
    low, resting, high = sorted(draw(st.tuples(CAPS, CAPS, CAPS)))
    return PublishPolicy(
        fallback_cap=resting,
        min_cap=low,
        max_cap=high,
        safety_margin_ratio=MARGIN_RATIO,  # another one would move what the evidence is taken for
        max_increase_ratio=draw(st.sampled_from([1.0, 1.5, 10.0])),
        valid_for_s=DAY_S,
    )


def calibrating(grade: Grade, estimate: int, certified: int) -> SweepRecord:
    found = Capacity(estimate, estimate, estimate + 5, certified)
    return replace(records.sweep(), grade=grade, capacity=found, levels=())


class CapLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.policy = PublishPolicy(fallback_cap=8, min_cap=2, max_cap=200)
        self.now = 1000.0
        self.known = fallback("chat", self.policy, self.now)
        self.replicas = 1
        self.proven: int | None = None  # what a sweep published for one replica; None: the fallback is all there is
        self.resting = self.known.cap  # the configured fallback, while nothing was measured
        self.lifted = self.policy.min_cap  # the highest minimum since the last sweep that published
        self.pin: Override | None = None

    @property
    def fleet(self) -> FleetSize:
        return FleetSize(self.replicas, Balance(busiest_to_mean=1.0))

    def take(self, new: Recommendation | None) -> None:
        if new is None or new is self.known:
            return
        assert new.version == self.known.version + 1
        self.known = new

    # ------------------------------------------------------------------------------------------------ sweeps
    @rule(
        grade=st.sampled_from([Grade.CERTIFIED, Grade.AT_MAX, Grade.PROVISIONAL]),
        estimate=CAPS,
        certified_ratio=st.sampled_from([0.0, 0.3, 1.0]),
        may_raise=st.booleans(),
    )
    def sweep(self, grade: Grade, estimate: int, certified_ratio: float, may_raise: bool) -> None:  # noqa: FBT001 - a rule
        certified = estimate if grade is not Grade.PROVISIONAL else math.floor(estimate * certified_ratio)
        was, policy = self.known, self.policy
        is_first = was.state in {State.FALLBACK, State.GUARDED} and was.grade is None
        new = decide(calibrating(grade, estimate, certified), was, policy, self.now, self.fleet, may_raise=may_raise)
        assert new is not None
        if new.cap > was.cap:
            assert may_raise or new.cap <= policy.min_cap
            supported = estimate if is_first else certified
            backed = self.replicas * replica_cap(supported, policy.safety_margin_ratio) if supported else 0
            assert new.cap <= max(policy.min_cap, backed), "no further than what it certified"
            if not is_first and new.cap > policy.min_cap:
                assert new.cap <= max(was.cap + 1, was.cap * policy.max_increase_ratio + 1e-6)
                assert policy.max_increase_ratio > 1.0
        self.take(new)
        # A cap that does not divide by the replicas leaves each of them less than its part.
        self.proven, self.lifted = max(new.replica_cap, math.ceil(new.cap / self.replicas)), policy.min_cap
        assert new.state is State.CALIBRATED
        assert new.before_cut is None, "the guard's cut ends with a sweep"

    @rule()
    def sweep_finds_it_infeasible(self) -> None:
        record = replace(calibrating(Grade.INFEASIBLE, 0, 0), outcome=SweepOutcome.INFEASIBLE)
        new = decide(record, self.known, self.policy, self.now, self.fleet)
        assert new is None or new.cap <= max(self.known.cap, self.policy.min_cap)
        self.take(new)
        self.proven, self.resting = None, self.known.cap

    @rule(outcome=st.sampled_from(SILENT), estimate=CAPS)
    def sweep_says_nothing(self, outcome: SweepOutcome, estimate: int) -> None:
        record = replace(calibrating(Grade.CERTIFIED, estimate, estimate), outcome=outcome)
        assert decide(record, self.known, self.policy, self.now, self.fleet) is None

    # ------------------------------------------------------------------------------------------------- guard
    @rule(ratio=st.sampled_from([0.05, 0.2, 0.9]))
    def guard_cuts(self, ratio: float) -> None:
        new = cut(self.known, ratio, "breach", self.policy, self.now)
        assert new is None or new.cap < self.known.cap
        self.take(new)

    @precondition(lambda self: self.known.state is State.GUARDED)
    @rule(ratio=st.sampled_from([0.05, 0.2, 0.9]))
    def guard_steps_up(self, ratio: float) -> None:
        before_cut = self.known.before_cut
        assert before_cut is not None
        new = step_up(self.known, ratio, "clean", self.policy, self.now)
        assert new is not None
        assert new.cap <= max(before_cut.cap, self.policy.min_cap), "never above what was published before the cut"
        self.take(new)

    # ----------------------------------------------------------------------------------- scrape_context, restarts
    @rule(replicas=st.integers(0, 6))
    def fleet_changes(self, replicas: int) -> None:
        new = for_fleet(self.known, self.policy, FleetSize(replicas, Balance(busiest_to_mean=1.0)), self.now)
        if replicas == 0:
            assert new is self.known, "without a replica the last cap stays"
            return
        self.replicas = replicas
        self.take(new)

    @rule(policy=policies())
    def restart_under(self, policy: PublishPolicy) -> None:
        self.policy = policy
        self.lifted = max(self.lifted, policy.min_cap)
        self.take(under_policy(self.known, policy, self.now))
        if self.known.state is State.FALLBACK:
            self.resting = self.known.cap

    @rule(seconds=st.sampled_from([1.0, 3600.0, 3 * DAY_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(cap=st.integers(1, 1000), seconds=st.sampled_from([60.0, DAY_S]))
    def person_pins(self, cap: int, seconds: float) -> None:
        self.pin = Override(cap, "incident", "ada", self.now, self.now + seconds)

    # -------------------------------------------------------------------------------------------- what must hold
    @invariant()
    def within_bounds(self) -> None:
        assert 1 <= self.policy.min_cap <= self.known.cap <= self.policy.max_cap
        assert self.known.replica_cap >= 1
        assert self.known.before_cut is None or self.known.state is State.GUARDED

    @invariant()
    def never_above_its_evidence(self) -> None:
        if self.proven is None:
            assert self.known.cap <= max(self.lifted, self.resting)
        else:
            assert self.known.capacity is not None
            measured = replica_cap(self.known.capacity.estimate, MARGIN_RATIO)
            one = max(
                self.proven, min(self.lifted, measured)
            )  # a lifted one counts for new replicas as far as measured
            assert self.known.cap <= max(self.lifted, self.known.replicas * one)
            assert self.known.replica_cap <= max(self.lifted, self.proven)

    @invariant()
    def ages_but_is_never_taken_away(self) -> None:
        view = replace(fresh_view(), recommendation=self.known, override=None)
        is_old = self.known.valid_until is not None and self.now > self.known.valid_until
        assert view.state_at(self.now) is (State.STALE if is_old else self.known.state)
        assert view.served_cap == self.known.cap

    @invariant()
    def a_pin_lasts_as_long_as_it_says(self) -> None:
        if self.pin is None or self.now >= self.pin.expires_at:
            self.pin = None
            return
        served = overlaid(self.known, self.pin, self.policy)
        assert served.cap == self.policy.clamp(self.pin.cap)
        assert served.replica_cap >= 1
        assert (served.state, served.grade, served.valid_until) == (State.OVERRIDDEN, None, self.pin.expires_at)
        assert served.version == self.known.version, "what lies underlying is not touched"


TestCapLife = CapLife.TestCase
TestCapLife.settings = settings(settings.get_profile("fuzz"), stateful_step_count=30)
