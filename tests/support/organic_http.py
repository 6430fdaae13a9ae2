"""Sweeps over HTTP beside live users; the child process of a sweep imports this module by name."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial

from calibrator.backends.openai import OpenAIBackend
from calibrator.backends.openai_inspector import OpenAIInspector
from calibrator.backends.simulated.inprocess import MODEL, SCALE
from calibrator.backends.simulated.parameters import EngineParameters
from calibrator.backends.simulated.server import serving
from calibrator.clock import SystemClock
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.workload.classes import PromptFactory
from calibrator.load.sweep_process import ProcessSweepRunner
from calibrator.ports.load import LoadPlan
from calibrator.ports.sweeps import Permit, SweepListener, SweepOrder, Target
from calibrator.service.sweep.run import SweepParts, run_sweep
from calibrator.telemetry.scrape import HttpTelemetry
from calibrator.wiring.generator import generator
from support.live_sweep import Listener
from support.organic import LateTelemetry, LiveUsers, Shape
from support.organic_sweep import NO_ABORT, Engine, NoGauges

SETTLE_S = 3.0


def slowed(engine: Engine, factor: float) -> Engine:
    """The same queue on a slower clock: the same capacity, and less that a busy machine can spoil."""
    given = engine.parameters
    limit_s = engine.sla[0].limit_s * factor
    parameters: EngineParameters = replace(
        given,
        decode_base_s=given.decode_base_s * factor,
        decode_per_request_s=given.decode_per_request_s * factor,
        prefill_fixed_s=given.prefill_fixed_s * factor,
        prefill_per_token_s=given.prefill_per_token_s * factor,
    )
    return replace(engine, parameters=parameters, objective=f"ttft p99 <= {limit_s * 1e3:.0f}ms")


@dataclass(frozen=True, slots=True)
class Entry:
    """Carries out a sweep in the child process (picklable)."""

    lag_s: float
    sees: bool

    async def __call__(self, order: SweepOrder, listener: SweepListener, permit: Permit) -> SweepRecord:
        clock = SystemClock()
        scraped = HttpTelemetry(order.target)
        late = LateTelemetry(scraped, clock, self.lag_s, tick_s=0.25)
        if self.lag_s > 0.0:
            late.start()
            await asyncio.sleep(self.lag_s + 0.5)
        try:
            inspector = OpenAIInspector(order.target, now=clock.monotonic)
            load = partial(generator, order, plan=LoadPlan(most_workers=1))
            return await run_sweep(
                order, SweepParts(inspector, late if self.sees else NoGauges(), load, clock, permit), listener
            )
        finally:
            await late.stop()
            await scraped.close()


async def sweep_over_http(
    engine: Engine, shape: Shape, bounds: Bounds, *, lag_s: float = 0.0, sees: bool = True
) -> SweepRecord:
    """The engine and its live users in this process, the sweep in a child."""
    clock = SystemClock()
    async with serving(engine.parameters, workload=engine.workload) as server:
        target = Target(f"{server.url}/v1", MODEL)
        objectives = (parse_objective(engine.objective),)
        order = SweepOrder("s1", engine.name, target, objectives, engine.workload, bounds, seed=1, abort=NO_ABORT)
        users = LiveUsers(
            OpenAIBackend(target, now=clock.monotonic, forces_length=True, stall_timeout_s=60.0, total_timeout_s=60.0),
            PromptFactory(engine.workload, SCALE, seed=90_001),
            clock,
            shape,
        )
        users.start()
        try:
            await asyncio.sleep(SETTLE_S)
            return await ProcessSweepRunner(Entry(lag_s, sees)).run(order, Listener())
        finally:
            await users.stop()
