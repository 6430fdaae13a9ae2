"""What triggers may cause is bounded: each kind by its cool-down, all together by the rest after any sweep."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from calibrator.core.admission.triggers import COOL_DOWN_S, Cause, TriggerKind, TriggerPolicy, Triggers

POLICY = TriggerPolicy()
RESTART = Cause(TriggerKind.RESTART, "it started anew", 600.0)
DRIFT = Cause(TriggerKind.DRIFT, "prompts changed", 0.0)


def test_a_cause_waits_until_it_may_be_measured() -> None:
    triggers = Triggers(POLICY).with_cause(RESTART)
    assert triggers.due(599.0) is None
    due = triggers.due(600.0)
    assert due is not None
    assert (due.reason, due.may_raise, due.is_warm) == ("restart: it started anew", False, True)


def test_a_new_version_is_measured_from_scratch_and_with_a_restart_never_raises() -> None:
    triggers = Triggers(POLICY).with_cause(Cause(TriggerKind.VERSION, "1 became 2", 600.0))
    due = triggers.due(600.0)
    assert due is not None
    assert (due.may_raise, due.is_warm) == (True, False)
    due = triggers.with_cause(RESTART).due(600.0)
    assert due is not None
    assert (due.may_raise, due.is_warm) == (False, False)
    assert due.reason == "version: 1 became 2; restart: it started anew"


def test_the_newest_of_a_kind_stands_for_all() -> None:
    """A rolling update is one sweep, some time after its last restart."""
    triggers = Triggers(POLICY).with_cause(RESTART).with_cause(Cause(TriggerKind.RESTART, "another", 900.0))
    assert triggers.due(700.0) is None
    assert triggers.due(900.0) is not None


def test_any_sweep_answers_what_was_ready_and_nothing_else() -> None:
    triggers = Triggers(POLICY).with_cause(RESTART).with_cause(DRIFT).sweep_started(100.0)
    assert set(triggers.waiting) == {TriggerKind.RESTART}
    assert triggers.why(600.0) == "restart: it started anew"


def test_no_triggered_sweep_follows_another_at_once() -> None:
    triggers = Triggers(POLICY).sweep_ended(1000.0).with_cause(DRIFT)
    assert triggers.due(1000.0 + POLICY.rest_s - 1.0) is None
    assert triggers.due(1000.0 + POLICY.rest_s) is not None


def test_a_kind_that_is_off_does_nothing() -> None:
    policy = TriggerPolicy(cool_down_s={TriggerKind.RESTART: 60.0})
    assert Triggers(policy).with_cause(DRIFT).due(1e9) is None


def test_a_cause_that_is_gone_is_forgotten() -> None:
    assert Triggers(POLICY).with_cause(DRIFT).without(TriggerKind.DRIFT).due(1e9) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(TriggerKind), st.integers(0, 2 * 86_400)), max_size=200), st.integers(60, 1200)
)
def test_whatever_happens_sweeps_are_never_back_to_back(causes: list[tuple[TriggerKind, int]], takes_s: int) -> None:
    """Two days, causes at random: between a sweep's end and the next start lies the rest, between two of a kind its
    cool-down."""
    triggers, started = Triggers(POLICY), list[int]()
    spent: dict[TriggerKind, int] = {}
    ends_s = -1
    pending = sorted(causes, key=lambda cause: cause[1])
    for now_s in range(0, 2 * 86_400, 60):
        while pending and pending[0][1] <= now_s:
            kind, _ = pending.pop(0)
            triggers = triggers.with_cause(Cause(kind, "x", float(now_s)))
        if 0 <= ends_s <= now_s:
            triggers, ends_s = triggers.sweep_ended(float(now_s)), -1
        if ends_s < 0 and (due := triggers.due(float(now_s))) is not None:
            started.append(now_s)
            for kind in due.kinds:
                assert now_s - spent.get(kind, -1e9) >= COOL_DOWN_S[kind]
                spent[kind] = now_s
            spent |= dict.fromkeys(triggers.waiting, now_s)  # a sweep answers them too
            triggers, ends_s = triggers.sweep_started(float(now_s)), now_s + takes_s
    assert all(later - earlier >= takes_s + POLICY.rest_s for earlier, later in pairwise(started))
