"""From an order to a running sweep: the timed HTTP client, the closed loop, the engine's metrics, one process each."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from functools import partial

from calibrator.backends.openai_inspector import OpenAIInspector
from calibrator.clock import SystemClock
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.report.spans import ProbeTrace
from calibrator.load.sweep_process import ProcessSweepRunner
from calibrator.ports.load import LoadPlan
from calibrator.ports.sweeps import Permit, SweepListener, SweepOrder, SweepRunner
from calibrator.service.sweep.run import SweepParts, run_sweep
from calibrator.telemetry.scrape import HttpTelemetry
from calibrator.wiring.generator import generator
from calibrator.wiring.logs import LogPlan, configure_logs

DEFAULT_LOGS = LogPlan()


def new_sweep_id() -> str:
    """Sorts by time; the suffix keeps two calibrators apart."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


async def sweep_entry(
    plan: LoadPlan, logs: LogPlan, order: SweepOrder, listener: SweepListener, permit: Permit
) -> SweepRecord:
    """Carry out one sweep over HTTP in this process (picklable: `ProcessSweepRunner` runs it in a child)."""
    configure_logs(replace(logs, secrets=order.target.secrets))
    clock = SystemClock()
    telemetry = HttpTelemetry(order.target)
    try:
        trace = ProbeTrace(order.sweep_id, order.sampled_probes_ratio)
        inspector = OpenAIInspector(order.target, now=clock.monotonic, trace=trace, permit=permit)
        parts = SweepParts(inspector, telemetry, lambda facts: generator(order, facts, plan), clock, permit)
        return await run_sweep(order, parts, listener)
    finally:
        await telemetry.close()


def sweep_runner(load: LoadPlan, logs: LogPlan = DEFAULT_LOGS) -> SweepRunner:
    """Each sweep in a process of its own, which knows no secret but that of its backend."""
    return ProcessSweepRunner(partial(sweep_entry, load, replace(logs, secrets=())))
