"""A sweep on virtual time beside live users of the same simulated engine, watched second by second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from calibrator.backends.simulated.inprocess import SimulatedBackend, SimulatedInspector, SimulatedTelemetry
from calibrator.backends.simulated.parameters import EngineParameters, workload_for
from calibrator.clock import LoopClock
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.sample import Label, Phase
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.workload.classes import PromptFactory
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.backend import Backend, BackendFacts, Connection
from calibrator.ports.load import LoadGenerator
from calibrator.ports.sweeps import SweepOrder
from calibrator.ports.telemetry import Telemetry
from calibrator.service.sweep.run import SweepParts, run_sweep


@dataclass(frozen=True, slots=True)
class Lent:
    """The engine goes on when a sweep leaves it."""

    backend: Backend

    def connect(self) -> Connection:
        return self.backend.connect()

    async def close(self) -> None: ...


@dataclass(slots=True)
class Listener:
    """Port `SweepListener`."""

    latest: Progress | None = None

    def progress(self, progress: Progress) -> None:
        self.latest = progress

    def partial(self, record: SweepRecord) -> None: ...


@dataclass(slots=True)
class ChangedTelemetry:
    """Port `Telemetry`: what `change` makes of each scrape; it gets the seconds since the sweep began."""

    telemetry: Telemetry
    change: Callable[[float, ServerLoad], ServerLoad | None]
    problem: str = ""

    async def scrape(self) -> ServerLoad | None:
        load = await self.telemetry.scrape()
        return None if load is None else self.change(asyncio.get_running_loop().time(), load)

    async def close(self) -> None: ...


@dataclass(slots=True)
class Scene:
    """What a test may change while the sweep runs; `seen`: (second, in flight, of these probes)."""

    engine: SimulatedBackend
    live: ClosedLoop
    seen: list[tuple[float, int, int]] = field(default_factory=list)
    opened: int = 0

    def users(self, count: int) -> None:
        self.live.aim(count, Label(0, Phase.COUNTED), 0.0)


async def sweep_beside(
    order: SweepOrder,
    parameters: EngineParameters,
    users: int,
    *,
    script: Callable[[Scene], Awaitable[None]] | None = None,
    change: Callable[[float, ServerLoad], ServerLoad | None] = lambda _, load: load,
    linger_s: float = 4.0,
) -> tuple[SweepRecord, Scene, float]:
    """The record, what was seen each half second, and when the sweep had returned."""
    clock = LoopClock()
    engine = SimulatedBackend(parameters, clock)
    workload = workload_for(parameters)
    facts = await SimulatedInspector(parameters).inspect(workload)
    prompts = PromptFactory(workload, facts.token_scale, seed=4_711)
    live = ClosedLoop(Lent(engine), prompts, (), clock, cpu_s=lambda: 0.0)
    scene = Scene(engine, live)
    probing: list[ClosedLoop] = []

    def load(facts: BackendFacts) -> LoadGenerator:
        own = PromptFactory(order.workload, facts.token_scale, order.seed)
        probing.append(ClosedLoop(Lent(engine), own, order.objectives, clock, cpu_s=lambda: 0.0))
        return probing[-1]

    async def watch() -> None:
        while True:
            probes = sum(len(loop._flights) for loop in probing)
            scene.seen.append((clock.monotonic(), engine.driver.in_flight, probes))
            await live.poll()
            await asyncio.sleep(0.5)

    await live.start()
    scene.users(users)
    await asyncio.sleep(5.0)
    telemetry = ChangedTelemetry(SimulatedTelemetry(engine), change)
    parts = SweepParts(SimulatedInspector(parameters), telemetry, load, clock)
    tasks = [asyncio.create_task(watch())]
    if script is not None:
        tasks.append(asyncio.ensure_future(script(scene)))
    record = await run_sweep(replace(order, workload=workload), parts, Listener())
    ended_s = clock.monotonic()
    await asyncio.sleep(linger_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await live.stop()
    await engine.close()
    return record, scene, ended_s
