"""A whole sweep on virtual time beside live users of the same simulated engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from calibrator.backends.simulated.inprocess import SCALE, SimulatedBackend, SimulatedInspector, SimulatedTelemetry
from calibrator.backends.simulated.parameters import EngineParameters
from calibrator.clock import LoopClock
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.harm import AbortLimits
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import Objective, gap_quantiles, parse_objective
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.workload.classes import PromptFactory, Workload
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import LoadGenerator
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.service.sweep.run import SweepParts, run_sweep
from support.live_sweep import ChangedTelemetry, Lent
from support.organic import LateTelemetry, LiveUsers, Shape
from support.virtual_time import run_virtual

LIVE_SEED = 90_001
NO_ABORT = AbortLimits(None, None, None, None, None, None, None)  # what is found, not what it costs users
SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Engine:
    """A simulated engine, its traffic and what is asked of it."""

    name: str
    parameters: EngineParameters
    workload: Workload
    objective: str
    max_level: int = 64

    @property
    def sla(self) -> tuple[Objective, ...]:
        return (parse_objective(self.objective),)


@dataclass(slots=True)
class Watcher:
    """Port `SweepListener`."""

    seen: list[Progress] = field(default_factory=list)

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)

    def partial(self, record: SweepRecord) -> None: ...


class NoGauges:
    """Port `Telemetry`: an engine without a metrics page."""

    problem = "none"

    async def scrape(self) -> ServerLoad | None:
        return None

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    record: SweepRecord
    seen: list[Progress]

    @property
    def found(self) -> int:
        capacity = self.record.capacity
        return 0 if capacity is None else capacity.estimate


def sweep_beside(
    engine: Engine,
    shape: Shape,
    seed: int,
    *,
    lag_s: float = 0.0,
    sees: bool = True,
    levels: tuple[int, ...] = (),
    requests_per_level: int = 200,
    bounds: Bounds | None = None,
    abort: AbortLimits = NO_ABORT,
    change: Callable[[float, ServerLoad], ServerLoad] = lambda _, load: load,
) -> Outcome:
    """`sees` False: what a sweep finds that takes itself to be alone. `change`: what becomes of each scrape."""
    order = SweepOrder(
        "s1", engine.name, Target("http://simulated/v1", "m"), engine.sla, engine.workload,
        bounds or Bounds(max_level=engine.max_level), seed, levels=levels, abort=abort,
        requests_per_level=requests_per_level if levels else 0,
    )  # fmt: skip

    async def scenario() -> Outcome:
        clock, watcher = LoopClock(), Watcher()
        backend = SimulatedBackend(engine.parameters, clock)
        backend.driver.start()
        users = LiveUsers(Lent(backend), PromptFactory(engine.workload, SCALE, LIVE_SEED + seed), clock, shape)
        gauges = LateTelemetry(ChangedTelemetry(SimulatedTelemetry(backend), change), clock, lag_s)
        users.start()
        gauges.start()
        await asyncio.sleep(SETTLE_S)

        def load(facts: BackendFacts) -> LoadGenerator:
            prompts = PromptFactory(engine.workload, facts.token_scale, seed, gap_quantiles(engine.sla))
            return ClosedLoop(Lent(backend), prompts, engine.sla, clock, cpu_s=lambda: 0.0)

        inspector = SimulatedInspector(engine.parameters)
        record = await run_sweep(order, SweepParts(inspector, gauges if sees else NoGauges(), load, clock), watcher)
        assert backend.driver.in_flight == users.in_flight, "nothing of ours is left in the engine"
        await gauges.stop()
        await users.stop()
        await backend.close()
        return Outcome(record, watcher.seen)

    return run_virtual(scenario())
