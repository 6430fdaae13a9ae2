"""The burst after a sweep: N at once from idle, each once; bounded, and beside the steady state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from support.scripted_backend import Answer, ScriptedBackend, failing
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.objective import parse_objective
from calibrator.core.sample import FailureKind, ProbeRequest
from calibrator.core.sweep_record import BurstReport
from calibrator.core.workload import PromptFactory, TokenScale, Workload
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports import Batch
from calibrator.service.burst import IDLE_S, LEAST_BURSTS, LIMIT_S, MOST_BURSTS, Burster

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
        report = await Burster(load, clock, SLA, batches.append).measure(level, None)
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
    assert Counter(request.label.visit for request in backend.requests).most_common()[0][1] == level
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
