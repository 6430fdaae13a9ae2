"""From an order to a running sweep: the timed HTTP client, the closed loop, the engine's metrics, one process each."""

from __future__ import annotations

import secrets
import time
from functools import partial

from calibrator.backends.openai import OpenAIBackend
from calibrator.backends.openai_inspector import OpenAIInspector
from calibrator.clock import SystemClock
from calibrator.core.objective import Objective, gap_quantiles
from calibrator.core.sweep_record import SweepRecord
from calibrator.core.workload import PromptFactory
from calibrator.load.closed_loop import ClosedLoop
from calibrator.load.sweep_process import ProcessSweepRunner
from calibrator.ports import BackendFacts, LoadGenerator, SweepListener, SweepOrder, SweepRunner
from calibrator.service.sweep import SweepParts, run_sweep
from calibrator.telemetry.scrape import HttpTelemetry

STALL_LIMITS = 20.0  # a stream without progress for this many of the largest limit is stalled ...
STALL_MIN_S, STALL_MAX_S = 10.0, 120.0  # ... within these bounds
TOTAL_STALLS = 10.0  # and a request is given up after this many stall timeouts


def new_sweep_id() -> str:
    """Sorts by time; the suffix keeps two calibrators apart."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def stall_timeout_s(objectives: tuple[Objective, ...]) -> float:
    """Derived from the SLA: long after the violation is certain, the slot is still worth something."""
    return min(STALL_MAX_S, max(STALL_MIN_S, STALL_LIMITS * max(objective.limit_s for objective in objectives)))


async def sweep_entry(order: SweepOrder, listener: SweepListener) -> SweepRecord:
    """Carry out one sweep over HTTP in this process (picklable: `ProcessSweepRunner` runs it in a child)."""
    clock = SystemClock()
    stall_s = stall_timeout_s(order.objectives)
    connect = partial(
        OpenAIBackend,
        order.target,
        now=clock.monotonic,
        stall_timeout_s=stall_s,
        total_timeout_s=TOTAL_STALLS * stall_s,
    )

    def load(facts: BackendFacts) -> LoadGenerator:
        prompts = PromptFactory(order.workload, facts.token_scale, order.seed, gap_quantiles(order.objectives))
        backend = connect(forces_length=facts.forces_length)
        return ClosedLoop(backend, prompts, order.objectives, clock)

    telemetry = HttpTelemetry(order.target)
    try:
        parts = SweepParts(OpenAIInspector(order.target, now=clock.monotonic), telemetry, load, clock)
        return await run_sweep(order, parts, listener)
    finally:
        await telemetry.close()


def sweep_runner() -> SweepRunner:
    """Each sweep in a process of its own."""
    return ProcessSweepRunner(sweep_entry)
