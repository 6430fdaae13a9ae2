"""A whole sweep on virtual time: policy, stages, warm-up, budgets, failures; only the backend is scripted."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from support.scripted_backend import Answer, ScriptedBackend, failing
from support.scripted_sweep import ORDER, Inspector, Listener, knee, parts_for, sweep
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.records.history import Bounds
from calibrator.core.records.sample import FailureKind, ProbeRequest
from calibrator.core.records.sample_log import unpack
from calibrator.core.records.sweep import Grade, SweepOutcome, VerdictKind
from calibrator.errors import ExitCode, UnreachableError
from calibrator.service.sweep.run import run_sweep


@pytest.mark.parametrize("slots", [1, 3, 8, 23])
def test_finds_a_knee(slots: int) -> None:
    record, backend, _ = sweep(knee(slots))
    assert record.outcome is SweepOutcome.CALIBRATED
    assert record.capacity is not None
    assert abs(record.capacity.estimate - slots) <= max(1, 0.15 * slots)
    assert record.capacity.estimate <= slots, "an overestimate of a hard knee is the worst outcome"
    assert backend.peak_in_flight <= max(2, 2 * slots) + 1
    assert backend.in_flight == 0
    assert backend.closed


def test_every_request_is_in_the_books() -> None:
    record, backend, _ = sweep(knee(8))
    assert record.requests == pytest.approx(len(backend.requests), abs=backend.peak_in_flight)
    ended = dict(record.outcomes)
    assert ended["ok"] + ended["violation"] == pytest.approx(len(backend.requests), abs=2 * backend.peak_in_flight)
    assert ended["failed"] == 0


def test_every_ended_request_can_be_exported_with_its_level() -> None:
    record, _, listener = sweep(knee(8))
    rows = unpack(record.samples).rows
    assert Counter(row.outcome for row in rows) == {name: n for name, n in record.outcomes if n}
    assert sum(row.completion_tokens or 0 for row in rows) == record.output_tokens
    assert {row.level for row in rows} == {level.concurrency for level in record.levels}
    counted = Counter(row.level for row in rows if row.phase == "counted")
    assert counted[8] >= max(level.n for level in record.levels) - 8, "all but those in flight at the end"
    assert all(record.started_at <= row.started_at <= (record.ended_at or 0.0) for row in rows)
    assert all(not partial.samples for partial in listener.records), "only the ended record carries them"


def test_the_record_states_the_conditions() -> None:
    record, _, _ = sweep(knee(8))
    assert record.provenance.objectives == ("ttft p99 <= 200ms",)
    assert record.provenance.engine == "scripted"
    assert record.provenance.prompt_tokens_achieved == 256
    assert record.warnings == ("a warning",)
    assert record.history.stages
    assert {level.concurrency for level in record.levels} == {stage.level for stage in record.history.stages}


def test_a_backend_that_never_breaks_is_at_max() -> None:
    record, _, _ = sweep(lambda *_: Answer(0.05, 1.0))
    assert record.grade is Grade.AT_MAX
    assert record.capacity is not None
    assert record.capacity.estimate == 64


def test_a_backend_that_breaks_at_one_is_infeasible() -> None:
    record, _, _ = sweep(lambda *_: Answer(0.6, 1.0))
    assert record.outcome is SweepOutcome.INFEASIBLE
    assert record.grade is Grade.INFEASIBLE


def test_a_backend_that_fails_every_request_is_an_error_not_a_small_capacity() -> None:
    record, _, _ = sweep(lambda *_: failing(FailureKind.STATUS, 503))
    assert record.outcome is SweepOutcome.ERROR
    assert "every request failed" in record.reason
    assert record.capacity is None


def test_a_backend_that_dies_in_mid_sweep_ends_it_with_the_reason() -> None:
    def dies(request: ProbeRequest, in_flight: int) -> Answer:
        return knee(8)(request, in_flight) if request.request_id < 60 else failing(FailureKind.CONNECT, None)

    record, backend, _ = sweep(dies)
    assert record.outcome is SweepOutcome.ERROR
    assert record.error_exit_code == ExitCode.UNREACHABLE
    assert "stopped accepting connections" in record.reason
    assert backend.in_flight == 0


@pytest.mark.parametrize(("status", "code"), [(401, ExitCode.UNREACHABLE), (404, ExitCode.CONFIGURATION)])
def test_a_mistake_of_ours_stops_the_sweep(status: int, code: ExitCode) -> None:
    record, _, _ = sweep(lambda *_: failing(FailureKind.STATUS, status))
    assert (record.outcome, record.error_exit_code) == (SweepOutcome.ERROR, code)
    assert record.remedy


def test_an_unreachable_backend_is_an_error_with_its_remedy() -> None:
    record, _, _ = sweep(knee(8), inspector=Inspector(UnreachableError("It is off.", "Switch it on.")))
    assert (record.outcome, record.reason, record.remedy) == (SweepOutcome.ERROR, "It is off.", "Switch it on.")
    assert record.error_exit_code == ExitCode.UNREACHABLE


def test_refusals_above_a_queue_limit_count_against_the_sla() -> None:
    """Accepted requests stay fast while the surplus is refused: the refusals must set the capacity."""
    record, _, _ = sweep(lambda _, in_flight: Answer(0.05, 1.0) if in_flight <= 6 else failing())
    assert record.capacity is not None
    assert record.capacity.estimate <= 6


@pytest.mark.parametrize(
    "bounds",
    [Bounds(max_level=64, requests=300, requests_per_level=0), Bounds(max_level=64, duration_s=60.0)],
)
def test_budgets_end_a_sweep(bounds: Bounds) -> None:
    record, _, _ = sweep(knee(23), replace(ORDER, bounds=bounds))
    assert record.requests <= bounds.requests + bounds.requests_per_level * 64 + 64
    assert record.duration_s <= bounds.duration_s + 2.0
    assert record.grade in (None, Grade.PROVISIONAL, Grade.CERTIFIED)


def test_fixed_levels_are_measured_exactly_and_on_their_own() -> None:
    order = replace(ORDER, levels=(4, 16, 8), requests_per_level=200)
    record, _, _ = sweep(knee(8), order)
    assert record.mode == "levels"
    assert (record.capacity, record.grade) == (None, None)
    assert [(level.concurrency, level.n) for level in record.levels] == [(4, 200), (8, 200), (16, 200)]
    kinds = {level.concurrency: level.verdict.kind for level in record.levels}
    assert kinds[16] is VerdictKind.EXCEEDED
    assert VerdictKind.EXCEEDED not in (kinds[4], kinds[8])
    assert {level.concurrency: round(level.achieved_concurrency) for level in record.levels} == {4: 4, 8: 8, 16: 16}


def test_going_down_waits_until_the_total_has_fallen() -> None:
    order = replace(ORDER, levels=(32, 2), requests_per_level=50)
    _, backend, _ = sweep(lambda *_: Answer(0.05, 1.0), order)
    counted = [r for r in backend.requests if r.label.stage == 2 and r.label.phase == "counted"]
    assert len(counted) >= 50


def test_progress_and_partial_records_come_while_it_runs() -> None:
    record, _, listener = sweep(knee(8))
    assert listener.seen[0].phase == "preflight"
    assert {progress.phase for progress in listener.seen} >= {"preflight", "ramp", "screen"}
    assert [len(partial.history.stages) for partial in listener.records] == list(range(1, len(listener.records) + 1))
    assert all(partial.outcome is None for partial in listener.records)
    assert len(listener.records) == len(record.history.stages)


def test_cancelling_ends_all_probes_within_a_second() -> None:
    backend = ScriptedBackend(knee(40))

    async def scenario() -> float:
        clock, loop = LoopClock(), asyncio.get_running_loop()
        task = asyncio.create_task(run_sweep(ORDER, parts_for(backend, clock, ORDER, Inspector()), Listener()))
        await asyncio.sleep(30.0)
        assert backend.in_flight > 1
        cancelled_s = loop.time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
        return loop.time() - cancelled_s

    assert run_virtual(scenario()) <= 1.0
    assert backend.in_flight == 0
    assert backend.closed


def test_the_engine_s_own_gauges_are_kept_with_the_level() -> None:
    record, _, _ = sweep(knee(8))
    by_level = {level.concurrency: level.server for level in record.levels}
    assert all(peak.scrapes > 0 for peak in by_level.values())
    top = max(by_level)
    assert by_level[top].running_requests is not None
    assert by_level[top].running_requests > 1


def test_the_same_seed_gives_the_same_sweep() -> None:
    first, second = sweep(knee(8))[0], sweep(knee(8))[0]
    assert first.history == second.history
