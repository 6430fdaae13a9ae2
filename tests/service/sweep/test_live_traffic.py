"""A sweep beside live users, where there is no easy answer: none may crash it, nor make a capacity out of nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.organic import jump, steady
from support.organic_cases import SLOTS
from support.organic_sweep import Outcome, sweep_beside

from calibrator.core.records.history import Bounds, History
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import EndReason, SweepOutcome, VerdictKind
from calibrator.core.search.policy import next_step
from calibrator.core.search.steps import Conclusion, Measure
from calibrator.stores.documents import SWEEP

TRUE_CAPACITY = 34  # of SLOTS


def lowest_aim(outcome: Outcome) -> int:
    return min(stage.level for stage in outcome.record.history.stages)


def test_levels_that_users_fill_by_themselves_are_not_measured() -> None:
    outcome = sweep_beside(SLOTS, steady(20), seed=1)
    assert lowest_aim(outcome) == 21
    assert all(stage.organic == pytest.approx(20.0, abs=0.5) for stage in outcome.record.history.stages)
    assert outcome.record.levels[0].organic_in_flight == pytest.approx(20.0, abs=0.5)
    assert {progress.organic for progress in outcome.seen if progress.phase == "screen"} == {20.0}


def test_probes_and_users_together_never_exceed_the_level_by_much() -> None:
    outcome = sweep_beside(SLOTS, steady(20), seed=2)
    assert all(seen.in_flight + 20 <= max(21, 1.02 * seen.level) for seen in outcome.seen if seen.phase == "verdict")


@pytest.mark.parametrize("at_s", [6.5, 8.0, 11.0, 14.0])
@pytest.mark.parametrize("lag_s", [0.0, 2.0])
def test_users_that_come_in_mid_level_raise_no_capacity(at_s: float, lag_s: float) -> None:
    """From none to three times the capacity. Users begin 5 s before the sweep, which ends for want of levels."""
    outcome = sweep_beside(SLOTS, jump(0, 100, at_s), seed=1, lag_s=lag_s)
    record = outcome.record
    assert record.outcome in (SweepOutcome.INCONCLUSIVE, SweepOutcome.CALIBRATED)
    assert record.end_reason is EndReason.LIVE_TRAFFIC or record.duration_s < at_s
    assert outcome.found <= TRUE_CAPACITY
    late = [progress for progress in outcome.seen if progress.elapsed_s > at_s + 4.0 - 5.0]
    assert all(progress.in_flight <= 3 for progress in late if progress.organic and progress.organic > 64)


def test_users_above_every_level_leave_nothing_to_measure() -> None:
    outcome = sweep_beside(SLOTS, steady(90), seed=1)
    record = outcome.record
    assert (record.outcome, record.capacity, record.requests) == (SweepOutcome.INCONCLUSIVE, None, 0)
    assert record.end_reason is EndReason.LIVE_TRAFFIC
    assert "live traffic alone holds about 90" in record.reason, "with the number"


def test_users_above_the_capacity_make_no_backend_infeasible() -> None:
    """The lowest level that is left fails, but what lies below is not known: the published cap stays."""
    outcome = sweep_beside(SLOTS, steady(45), seed=1)
    assert outcome.record.outcome is SweepOutcome.INCONCLUSIVE
    assert outcome.record.end_reason is EndReason.LIVE_TRAFFIC


def test_a_level_that_was_asked_for_but_is_full_of_users_is_inconclusive() -> None:
    record = sweep_beside(SLOTS, steady(20), seed=1, levels=(10, 30)).record
    full, held = record.levels
    assert full.verdict.kind is VerdictKind.INCONCLUSIVE
    assert "live traffic alone holds about 20 in flight, so 10 could not be held" in full.verdict.reasons
    assert held.n == 200
    assert held.achieved_concurrency == pytest.approx(30.0, abs=0.5)


def test_an_engine_without_gauges_is_measured_as_if_alone_and_the_record_says_so() -> None:
    outcome = sweep_beside(SLOTS, steady(8), seed=1, sees=False)
    assert outcome.found == pytest.approx(TRUE_CAPACITY - 8, abs=3)
    assert any("live traffic is not visible" in warning for warning in outcome.record.warnings)
    assert all(stage.organic is None for stage in outcome.record.history.stages)
    assert all(progress.organic is None for progress in outcome.seen)


def test_a_record_of_an_older_release_is_still_read() -> None:
    record = replace(sweep_beside(SLOTS, steady(8), seed=1).record, samples=b"")  # stores keep them apart
    assert not any("live traffic" in warning for warning in record.warnings)
    assert SWEEP.read(SWEEP.write(record)) == record
    older = json.loads(SWEEP.write(record))
    del older["history"]["organic_floor"]
    for stage in older["history"]["stages"]:
        del stage["organic"], stage["level_lost"]
    for level in older["levels"]:
        del level["organic_in_flight"]
    read = SWEEP.read(json.dumps(older))
    assert read.history.organic_floor == 0
    assert all(stage.organic is None and not stage.invalid_reasons for stage in read.history.stages)


def test_the_search_begins_above_the_floor_and_ends_where_no_level_is_left() -> None:
    history = History((parse_objective("ttft p99 <= 1s"),))
    first = next_step(replace(history, organic_floor=30), Bounds(max_level=64))
    assert isinstance(first, Measure)
    assert first.level == 31
    assert isinstance(next_step(replace(history, organic_floor=64), Bounds(max_level=64)), Conclusion)
