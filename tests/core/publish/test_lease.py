"""Beliefs about a lease: never two instances that lead at the same true moment, whatever is slow, lost or paused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import records

from calibrator.core.publish.lease import LEAST_LEASE_S, SOLE, Ask, LeasePolicy, LeaseState, is_settled_by

POLICY = LeasePolicy()
PROBES_END_S = 1.0  # after leading has ended (DESIGN section 7)


# -------------------------------------------------------------------------------------------------------------- tables
def test_the_times_of_the_usual_lease() -> None:
    times = (POLICY.lease_s, POLICY.valid_s, POLICY.renew_every_s, POLICY.answer_limit_s, POLICY.retry_s)
    assert times == (15.0, 10.0, 5.0, 3.0, 1.0)


@pytest.mark.parametrize("lease_s", [LEAST_LEASE_S, 15.0, 60.0])
def test_probes_have_time_to_end_and_two_attempts_fit_into_the_validity(lease_s: float) -> None:
    policy = LeasePolicy(lease_s)
    assert policy.lease_s - policy.valid_s >= PROBES_END_S
    assert policy.renew_every_s + policy.answer_limit_s + policy.retry_s < policy.valid_s


def test_validity_counts_from_the_question_and_not_from_the_answer() -> None:
    state = LeaseState().acquired(7, asked_s=100.0, policy=POLICY)
    assert state.is_leading(109.9)
    assert not state.is_leading(110.0)


@pytest.mark.parametrize(
    ("state", "now_s", "ask"),
    [
        (LeaseState(), 0.0, Ask.ACQUIRE),
        (LeaseState(3, 110.0, 105.0), 104.9, Ask.NOTHING),
        (LeaseState(3, 110.0, 105.0), 105.0, Ask.RENEW),
        (LeaseState(3, 110.0, 105.0), 500.0, Ask.RENEW),  # it expired here, but may still be free
        (LeaseState().refused(50.0, POLICY), 50.5, Ask.NOTHING),
        (LeaseState().refused(50.0, POLICY).due_now(), 50.5, Ask.ACQUIRE),
        (LeaseState(3, 110.0, 105.0).due_now(), 100.0, Ask.NOTHING),  # a holder has nothing to hurry for
        (LeaseState().acquired(1, 0.0, SOLE), 1e12, Ask.NOTHING),
    ],
)
def test_what_is_asked_next(state: LeaseState, now_s: float, ask: Ask) -> None:
    assert state.ask(now_s) is ask


def test_a_failure_neither_ends_nor_lengthens_the_lead() -> None:
    before = LeaseState(3, 110.0, 105.0)
    after = before.failed(106.0, POLICY)
    assert (after.epoch, after.until_s, after.due_s) == (3, 110.0, 107.0)


def test_a_sole_instance_leads_until_it_lets_go() -> None:
    assert LeaseState().acquired(1, 0.0, SOLE).is_leading(1e12)


@pytest.mark.parametrize(
    ("cap", "measured_at", "is_void"),
    [
        (20, 500.0, False),  # the recommendation that was lowered, or its like for another number of replicas
        (20, None, False),  # a fallback
        (10, 500.0, True),  # not higher
        (20, 1500.0, True),  # measured since
    ],
)
def test_a_lowering_that_was_not_stored_is_void_only_by_evidence(
    *, cap: int, measured_at: float | None, is_void: bool
) -> None:
    lowered = replace(records.recommendation("chat", 5, 12), published_at=1000.0)
    stored = replace(records.recommendation("chat", 9, cap), published_at=2000.0, measured_at=measured_at)
    assert is_settled_by(stored, lowered) is is_void


# ------------------------------------------------------------------------------------------ the state machine of leases
@dataclass
class Row:
    """The database's side, by its own clock."""

    holder: int | None = None
    epoch: int = 0
    expires_s: float = -math.inf


@dataclass
class Question:
    """On its way: sent, perhaps carried out, not answered yet."""

    ask: Ask
    asked_s: float  # the asker's clock
    epoch: int
    answer: int | bool | None = None
    is_done: bool = False


@dataclass
class Instance:
    """`pace`: its monotonic clock against true time."""

    pace: float
    state: LeaseState = field(default_factory=LeaseState)
    question: Question | None = None


class Leases(RuleBasedStateMachine):
    """Three instances, one row. Messages take any time, answers get lost, whole instances pause.

    `now_s` is true time. Clocks differ in pace by up to 500 ppm, which is what NTP allows at worst.
    """

    @initialize(paces=st.lists(st.floats(-5e-4, 5e-4), min_size=3, max_size=3))
    def begin(self, paces: list[float]) -> None:
        self.now_s = 0.0
        self.row = Row()
        self.instances = [Instance(1.0 + pace) for pace in paces]
        self.epochs_led: list[int] = []

    def time_at(self, one: Instance) -> float:
        return self.now_s * one.pace

    @rule(which=st.integers(0, 2))
    def ask(self, which: int) -> None:
        one = self.instances[which]
        now_s = self.time_at(one)
        wanted = one.state.ask(now_s)
        if one.question is None and wanted is not Ask.NOTHING:
            one.question = Question(wanted, now_s, one.state.epoch)

    @rule(which=st.integers(0, 2))
    def carry_out(self, which: int) -> None:
        question = self.instances[which].question
        if question is None or question.is_done:
            return
        question.is_done, row = True, self.row
        if question.ask is Ask.RENEW:
            question.answer = (row.holder, row.epoch) == (which, question.epoch)
            if question.answer:
                row.expires_s = self.now_s + POLICY.lease_s
        elif row.holder in (None, which) or row.expires_s < self.now_s:
            self.row = Row(which, row.epoch + 1, self.now_s + POLICY.lease_s)
            question.answer = self.row.epoch

    @rule(which=st.integers(0, 2), is_lost=st.booleans())
    def answer(self, *, which: int, is_lost: bool) -> None:
        one = self.instances[which]
        question, now_s = one.question, self.time_at(one)
        if question is None:
            return
        one.question = None
        if is_lost or not question.is_done:
            one.state = one.state.failed(now_s, POLICY)
        elif question.ask is Ask.RENEW and question.answer:
            one.state = one.state.renewed(question.asked_s, POLICY)
        elif question.ask is Ask.ACQUIRE and question.answer:
            one.state = one.state.acquired(int(question.answer), question.asked_s, POLICY)
        else:
            one.state = one.state.refused(now_s, POLICY)

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0, 3.0, 5.0, 9.0, 15.1, 60.0]))
    def pass_time(self, seconds: float) -> None:
        """Also how an instance is paused: it does nothing meanwhile."""
        self.now_s += seconds

    @precondition(lambda self: self.row.holder is not None)
    @rule()
    def release(self) -> None:
        holder = self.row.holder
        assert holder is not None
        one = self.instances[holder]
        if one.question is None and one.state.epoch == self.row.epoch:
            self.row.holder = None
            one.state = one.state.refused(self.time_at(one), POLICY)

    @invariant()
    def never_two_that_probe(self) -> None:
        """Not even while the probes of the one before are ending."""
        if not hasattr(self, "instances"):
            return
        probing = [
            number
            for number, one in enumerate(self.instances)
            if one.state.epoch > 0 and self.time_at(one) < one.state.until_s + PROBES_END_S
        ]
        leading = [
            number for number, one in enumerate(self.instances) if one.state.is_leading(self.time_at(one))
        ]  # fmt: skip
        assert len(leading) <= 1
        assert not leading or probing == leading
        self.epochs_led += [self.instances[number].state.epoch for number in leading]
        assert self.epochs_led == sorted(self.epochs_led), "epochs only grow"


class TestLeases(Leases.TestCase):  # type: ignore[misc,name-defined] # made by hypothesis at run time
    settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
