"""What is remembered comes back as it was, and is bounded."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from pydantic import TypeAdapter
from pydantic_core import to_json

from calibrator.core.admission.triggers import COOL_DOWN_S, Cause, TriggerKind, TriggerPolicy, Triggers
from calibrator.core.publish.checkpoint import (
    SLICES_KEPT,
    PackedHistogram,
    TrafficCheckpoint,
    TriggerCheckpoint,
    packed,
    restored_triggers,
    trigger_checkpoint,
    unpacked,
)
from calibrator.core.records.server_load import Histogram
from calibrator.core.workload.live_mix import LiveMix

BOUNDS = (*(float(2**power) for power in range(24)), math.inf)
POLICY = TriggerPolicy()


def mix(number: int) -> LiveMix:
    histogram = Histogram(BOUNDS, tuple(float(number * index) for index in range(len(BOUNDS))))
    return LiveMix(900.0, 123.456, histogram, None if number % 2 else histogram, 1e6, 1e5, 1e6, 3e5)


def test_slices_come_back_as_they_were() -> None:
    slices = [(900.0 * number, mix(number)) for number in range(20, 0, -1)]
    text = to_json(packed(slices), inf_nan_mode="strings")
    assert unpacked(TypeAdapter(TrafficCheckpoint).validate_json(text)) == slices


def test_months_of_traffic_stay_a_small_document() -> None:
    checkpoint = packed([(900.0 * number, mix(1_000_002)) for number in range(3000, 0, -1)])
    assert len(checkpoint.slices) == SLICES_KEPT
    assert checkpoint.slices[-1].ago_s == 900.0, "the newest are kept"
    assert len(to_json(checkpoint, inf_nan_mode="strings")) < 400_000


def test_a_memory_that_does_not_fit_together_is_refused() -> None:
    (one,) = packed([(1.0, mix(1))]).slices
    with pytest.raises(LookupError):
        unpacked(TrafficCheckpoint((), (one,)))
    short = replace(one, prompts=PackedHistogram(0, (1.0,)))
    with pytest.raises(ValueError, match="buckets"):
        unpacked(TrafficCheckpoint((BOUNDS,), (short,)))


def test_cool_downs_go_on_where_they_were() -> None:
    cause = Cause(TriggerKind.RESTART, "it started anew", 600.0)
    known = Triggers(POLICY).with_cause(cause).sweep_started(1000.0).sweep_ended(1100.0, has_answered=False)
    known = known.with_cause(replace(cause, ready_s=1900.0))
    text = to_json(trigger_checkpoint(known, 1500.0))
    again = restored_triggers(TypeAdapter(TriggerCheckpoint).validate_json(text), Triggers(POLICY), 50.0)
    assert again.spent_s == {TriggerKind.RESTART: -450.0}
    assert again.waiting[TriggerKind.RESTART].ready_s == 450.0
    assert (again.sweep_ended_s, again.owed) == (-350.0, {TriggerKind.RESTART})
    assert again.due(-450.0 + COOL_DOWN_S[TriggerKind.RESTART] - 1.0) is None
    assert again.due(-450.0 + COOL_DOWN_S[TriggerKind.RESTART]) is not None


def test_nothing_in_a_memory_makes_a_cool_down_longer_than_it_is() -> None:
    """Values of a hand that edits, or of another policy."""
    absurd = TriggerCheckpoint(spent_ago_s={TriggerKind.DRIFT: -1e12}, sweep_ended_ago_s=-1e12)
    again = restored_triggers(absurd, Triggers(POLICY), 0.0).with_cause(Cause(TriggerKind.DRIFT, "x", 0.0))
    assert again.due(COOL_DOWN_S[TriggerKind.DRIFT]) is not None


def test_what_happened_since_the_start_is_newer_than_the_memory() -> None:
    old = trigger_checkpoint(Triggers(POLICY).with_cause(Cause(TriggerKind.RESTART, "old", 9.0)).sweep_ended(5.0), 8.0)
    now = Triggers(POLICY).with_cause(Cause(TriggerKind.RESTART, "new", 700.0)).sweep_ended(90.0)
    again = restored_triggers(old, now, 100.0)
    assert again.waiting[TriggerKind.RESTART].words == "new"
    assert again.sweep_ended_s == 90.0
