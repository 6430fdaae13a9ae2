"""The burst after a sweep: N at once from idle, each once; bounded, and beside the steady state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from support.scripted_backend import Answer, ScriptedBackend, failing
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.records.history import Capacity
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import FailureKind, ProbeRequest
from calibrator.core.records.sweep import BurstReport, Grade, SweepOutcome, VerdictKind
from calibrator.core.search.burst import BurstBits, burst_verdict
from calibrator.core.search.burst_mode import BurstMode
from calibrator.core.search.steps import Conclusion
from calibrator.core.workload.classes import PromptFactory, TokenScale, Workload
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.load import Batch
from calibrator.service.sweep.burst import IDLE_S, LEAST_BURSTS, LIMIT_S, MOST_BURSTS, Burster

SLA = (parse_objective("ttft p99 <= 200ms"),)


def burst(
    answer: Callable[[ProbeRequest, int], Answer], level: int
) -> tuple[BurstReport | None, ScriptedBackend, float, list[Batch]]:
    """Report, backend, seconds and batches."""
    backend, batches = ScriptedBackend(answer), list[Batch]()

    async def scenario() -> tuple[BurstReport | None, float]:
        clock = LoopClock()
        load = ClosedLoop(backend, PromptFactory(Workload(), TokenScale(), 1), SLA, clock, cpu_s=lambda: 0.0)
        await load.start()
        burster = Burster(load, clock, SLA, batches.append)
        await burster.measure(level, None)
        report = burster.report
        took_s = clock.monotonic()
        await load.stop()
        assert backend.in_flight == 0
        return report, took_s

    report, took_s = run_virtual(scenario())
    return report, backend, took_s, batches


@pytest.mark.parametrize(("level", "bursts"), [(8, 15), (40, LEAST_BURSTS), (1, MOST_BURSTS)])
def test_n_arrive_at_once_each_sends_once_and_idle_lies_between(level: int, bursts: int) -> None:
    report, backend, took_s, _ = burst(lambda _, in_flight: Answer(0.01 * in_flight, 0.5), level)
    assert report is not None
    assert (report.bursts, report.n, report.metric) == (bursts, bursts * level, "ttft")
    assert backend.peak_in_flight == level
    assert Counter(request.label.stage for request in backend.requests).most_common()[0][1] == level
    assert took_s > bursts * (IDLE_S + 0.5)
    assert report.burst.p50 is not None
    assert report.burst.p50.value_s == pytest.approx(0.01 * max(1, level / 2), rel=0.3)
    assert report.exceedances == bursts * max(0, level - 20)  # the 21st waits longer than 200 ms


def test_answers_quicker_than_a_poll_are_not_counted_twice() -> None:
    report, *_ = burst(lambda *_: Answer(0.001, 0.002), 8)
    assert report is not None
    assert report.n == report.bursts * 8


def test_failures_are_exceedances_without_a_latency() -> None:
    report, *_ = burst(lambda *_: failing(FailureKind.STATUS, 503), 8)
    assert report is not None
    assert report.exceedances == report.n
    assert report.burst.p50 is None or report.burst.p50.value_s == float("inf")


def test_a_backend_that_never_ends_a_request_ends_the_burst_in_time() -> None:
    report, _, took_s, _ = burst(lambda *_: Answer(0.05, 100_000.0), 4)
    assert report is None
    assert took_s <= LIMIT_S + 1.0


def test_every_request_is_handed_to_the_books() -> None:
    _, backend, _, batches = burst(lambda *_: Answer(0.05, 0.3), 8)
    assert sum(len(batch.ended) for batch in batches) == len(backend.requests)


# ------------------------------------------------------------------------------------------------------------- enforce
def enforced(answer: Callable[[ProbeRequest, int], Answer], capacity: int, lowest: int = 1) -> tuple[Conclusion, int]:
    """What becomes of a certified capacity, and the requests it took."""
    backend = ScriptedBackend(answer)
    found = Conclusion(
        SweepOutcome.CALIBRATED, Grade.CERTIFIED, Capacity(capacity, capacity, capacity + 2, capacity), "it holds"
    )

    async def scenario() -> tuple[Conclusion, int]:
        clock = LoopClock()
        load = ClosedLoop(backend, PromptFactory(Workload(), TokenScale(), 1), SLA, clock, cpu_s=lambda: 0.0)
        await load.start()
        burster = Burster(load, clock, SLA, lambda _: None)
        conclusion = await burster.follow(found, BurstMode.ENFORCE, (), lowest)
        await load.stop()
        return conclusion, burster.requests

    return run_virtual(scenario())


def test_bursts_that_hold_leave_the_capacity_as_it_is() -> None:
    conclusion, requests = enforced(lambda *_: Answer(0.05, 0.3), 40)
    assert conclusion.capacity is not None
    assert (conclusion.capacity.estimate, conclusion.grade) == (40, Grade.CERTIFIED)
    assert "bursts of 40 hold" in conclusion.reason
    assert 195 <= requests <= 240  # Wald's boundary for bits without a violation, in whole bursts


def test_bursts_that_do_not_hold_lower_the_capacity_until_they_do() -> None:
    conclusion, _ = enforced(lambda _, in_flight: Answer(0.01 * in_flight, 0.5), 40)  # the 21st waits 210 ms
    assert conclusion.capacity is not None
    assert (conclusion.capacity.estimate, conclusion.capacity.certified) == (20, 20)
    assert conclusion.capacity.low <= 20
    assert conclusion.grade is Grade.CERTIFIED
    assert "bursts of 40 do not hold, those of 20 do" in conclusion.reason


def test_not_even_the_smallest_burst_holds() -> None:
    conclusion, _ = enforced(lambda *_: Answer(0.5, 0.6), 10, lowest=4)
    assert conclusion.outcome is SweepOutcome.INFEASIBLE


def test_bursts_that_never_end_leave_the_capacity_but_not_its_certificate() -> None:
    conclusion, requests = enforced(lambda *_: Answer(0.05, 100_000.0), 4)
    assert conclusion.capacity is not None
    assert (conclusion.capacity.estimate, conclusion.grade, requests) == (4, Grade.PROVISIONAL, 0)


def test_one_stall_does_not_refute() -> None:
    bits = [BurstBits((40,), (20,)), *[BurstBits((40,), (0,))] * 4]
    assert burst_verdict(SLA, bits) is not VerdictKind.EXCEEDED
    assert burst_verdict(SLA, [*bits, *[BurstBits((40,), (20,))] * 2]) is VerdictKind.EXCEEDED
