"""What the server says decides how a sweep ends: what cannot be measured, a quota, our mistakes, broken answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from support.plain_parts import Listener, NoTelemetry
from support.records import ANSWER
from support.scripted_backend import Answer, ScriptedBackend
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import Metric, parse_objective
from calibrator.core.records.sample import Failure, FailureKind, ProbeRequest
from calibrator.core.records.sweep import Grade, SweepOutcome, SweepRecord
from calibrator.core.report.curve import Limit, read_curve
from calibrator.core.search.burst_mode import BurstMode
from calibrator.core.workload.classes import PromptFactory, TokenScale, Workload
from calibrator.errors import QUOTA_REMEDY, ExitCode
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.backend import Adjustment, BackendFacts, Blindness, Unmeasurable
from calibrator.ports.load import LoadGenerator
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.service.sweep.failures import FailureTally
from calibrator.service.sweep.run import SweepParts, run_sweep

OBJECTIVES = (parse_objective("ttft p90 <= 200ms"), parse_objective("e2e p90 <= 2s"))
ORDER = SweepOrder("s1", "chat", Target("http://backend/v1", "m"), OBJECTIVES, Workload(), Bounds(max_level=16), seed=1)
FACTS = BackendFacts("m", TokenScale(), forces_length=True)
QUOTA = Failure(FailureKind.QUOTA, "60 requests per minute (retry-after: 12)", 429)


@dataclass
class Knowing:
    facts: BackendFacts

    async def inspect(self, workload: Workload) -> BackendFacts:
        return self.facts


def sweep(
    answer: Callable[[ProbeRequest, int], Answer], order: SweepOrder = ORDER, facts: BackendFacts = FACTS
) -> tuple[SweepRecord, ScriptedBackend]:
    backend = ScriptedBackend(answer)

    async def scenario() -> SweepRecord:
        clock = LoopClock()

        def load(known: BackendFacts) -> LoadGenerator:
            prompts = PromptFactory(order.workload, known.token_scale, order.seed)
            return ClosedLoop(backend, prompts, order.objectives, clock, cpu_s=lambda: 0.0)

        return await run_sweep(order, SweepParts(Knowing(facts), NoTelemetry(), load, clock), Listener())

    return run_virtual(scenario()), backend


def good(*_: object) -> Answer:
    return Answer(0.05, 1.0)


def every(nth: int, failure: Failure) -> Callable[[ProbeRequest, int], Answer]:
    return lambda request, _: Answer(e2e_s=0.01, failure=failure) if request.request_id % nth == nth - 1 else good()


@pytest.mark.parametrize(("metric", "is_refused"), [(Metric.TTFT, True), (Metric.TPOT, False)])
def test_an_objective_that_cannot_be_measured_here_is_refused_before_any_load(
    metric: Metric,
    is_refused: bool,  # noqa: FBT001 - pytest passes parameters by name
) -> None:
    blind = Unmeasurable(metric, Blindness.BUFFERED, "Answers arrive in one piece.", "Turn buffering off.")
    record, backend = sweep(good, facts=replace(FACTS, unmeasurable=(blind,)))
    if not is_refused:
        assert record.outcome is SweepOutcome.CALIBRATED
        return
    assert (record.outcome, record.error_exit_code) == (SweepOutcome.ERROR, ExitCode.CONFIGURATION)
    assert record.capacity is None
    assert "'ttft p90 <= 200ms' cannot be measured here (buffered): Answers arrive in one piece." in record.reason
    assert record.remedy == "Turn buffering off."
    assert backend.requests == []


@pytest.mark.parametrize("levels", [(), (4, 8)])
def test_a_quota_ends_the_sweep_and_is_no_capacity(levels: tuple[int, ...]) -> None:
    """17 % of the requests, as a token bucket that fills again does it."""
    record, backend = sweep(every(6, QUOTA), replace(ORDER, levels=levels, requests_per_level=100 if levels else 0))
    assert (record.outcome, record.error_exit_code) == (SweepOutcome.ERROR, ExitCode.UNREACHABLE)
    assert (record.capacity, record.grade) == (None, None)
    assert QUOTA.detail in record.reason
    assert "quota" in record.reason
    assert record.remedy == QUOTA_REMEDY
    assert backend.in_flight == 0
    assert sum(backend.answer(request, 0).failure is not None for request in backend.requests) <= 2


def test_a_quota_that_the_burst_runs_into_leaves_what_the_search_found() -> None:
    def answer(request: ProbeRequest, _: int) -> Answer:
        return Answer(e2e_s=0.01, failure=QUOTA) if request.request_id > last else good()

    last = 10**9
    record, _ = sweep(answer)
    last = record.requests
    again, _ = sweep(answer, replace(ORDER, burst=BurstMode.REPORT))
    assert (again.outcome, again.capacity, again.grade) == (record.outcome, record.capacity, Grade.AT_MAX)


def test_failures_that_spare_the_objective_are_told_and_limit() -> None:
    """One request in sixteen breaks off: within a P90, and not a word about it would be wrong."""
    record, _ = sweep(every(16, Failure(FailureKind.TRUNCATED, "broke off: out of memory")))
    assert record.outcome is SweepOutcome.CALIBRATED
    assert any("broke off: out of memory" in warning for warning in record.warnings)
    insight = read_curve(record.levels, OBJECTIVES, record.capacity)
    assert insight is not None
    assert insight.limit is Limit.FAILURES


def test_single_failures_are_no_warning() -> None:
    record, _ = sweep(every(500, Failure(FailureKind.RESET, "gone")))
    assert not any("gone" in warning for warning in record.warnings)


def test_an_error_event_that_names_a_mistake_of_ours_ends_the_sweep() -> None:
    """llama.cpp and others find a prompt too long when they have begun to answer."""
    record, _ = sweep(every(5, Failure(FailureKind.ERROR_EVENT, "exceeds the context", 400)))
    assert (record.outcome, record.error_exit_code) == (SweepOutcome.ERROR, ExitCode.CONFIGURATION)
    assert "exceeds the context" in record.reason


def test_the_record_states_what_was_sent_otherwise() -> None:
    adjustments = (Adjustment("ignore_eos"), Adjustment("max_tokens", "max_completion_tokens"))
    record, _ = sweep(good, facts=replace(FACTS, adjustments=adjustments))
    assert record.provenance.adjustments == ("ignore_eos left out", "max_tokens sent as max_completion_tokens")


def test_failures_that_name_their_request_are_counted_together() -> None:
    tally = FailureTally()
    for number in range(8):
        failure = Failure(FailureKind.ERROR_EVENT, f"cannot accept request calibrator-20261130-6aab6b-{number}: dead")
        tally.add([replace(ANSWER, failure=failure)])
    assert tally.commonest[1] == 8
