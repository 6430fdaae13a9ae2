"""A whole service on virtual time around one backend whose metrics page and live users a test moves by hand."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from calibrator.clock import LoopClock
from calibrator.core.admission.schedule import Schedule
from calibrator.core.publish.snapshot import BackendView
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.ports.sweeps import BackendPlan
from calibrator.service.supervisor import Supervisor
from calibrator.wiring.supervision import make_supervisor
from support.fakes import FakeRunner, FakeTelemetry, Script, given_urls, plan, telemetry_by_host
from support.live_traffic import Users
from support.memory_store import MemoryStore
from support.virtual_time import ticking

TICK_S = 1.0  # as often as the page is read; a test lasts hours
RARELY = Schedule(every_s=5e6, jitter_ratio=0.0)
CHAT = replace(plan(schedule=RARELY), workload=Workload((WorkloadClass(prompt_tokens=77),)))
Page = Callable[[], ServerLoad | None]


@dataclass
class LivePage(FakeTelemetry):
    """Port `Telemetry`: `page` at each scrape."""

    page: Page = lambda: None

    async def scrape(self) -> ServerLoad | None:
        self.load = self.page()
        return await super().scrape()


class SteppedClock(LoopClock):
    """Port `Clock`: somebody sets the wall clock."""

    def __init__(self) -> None:
        super().__init__()
        self.step_s = 0.0

    def wall(self) -> float:
        return super().wall() + self.step_s


@dataclass
class Site:
    supervisor: Supervisor
    runner: FakeRunner
    clock: SteppedClock
    users: Users = field(default_factory=Users)
    rate: int = 1  # requests that end each second
    is_killed: bool = False  # at the end, instead of being stopped

    def view(self) -> BackendView:
        return self.supervisor.snapshot().backends["chat"]

    @property
    def cap(self) -> int:
        return self.view().recommendation.cap

    async def pass_(self, seconds: int) -> None:
        for _ in range(seconds):
            await asyncio.sleep(1.0)
            self.users.served(self.rate)


@asynccontextmanager
async def site(
    known: BackendPlan = CHAT,
    *estimates: int,
    page: Page | None = None,
    store: MemoryStore | None = None,
    problem: str = "",
    run: str = "a",
    users: Users | None = None,
    clock: SteppedClock | None = None,
    takes_s: float = 60.0,
) -> AsyncIterator[Site]:
    """`users`, `store`, `clock`: those of an earlier run, for a service that is started again."""
    clock, users, numbers = clock or SteppedClock(), users or Users(), itertools.count(1)
    runner = FakeRunner(clock.wall, {"chat": [Script(estimate, takes_s=takes_s) for estimate in estimates or (40,)]})
    used = store or MemoryStore()
    supervisor = make_supervisor(
        (known,),
        runner=runner,
        store=used,
        leases=used.leases,
        holder="test",
        clock=clock,
        telemetry=telemetry_by_host({"chat": LivePage(page=page or users.load, problem=problem)}),
        discovery=given_urls,
        max_parallel=1,
        draws=random.Random(1),
        new_id=lambda: f"{run}{next(numbers):04}",
    )
    await supervisor.start()
    stop = asyncio.Event()
    loop_task = asyncio.create_task(ticking(supervisor, stop, TICK_S))
    here = Site(supervisor, runner, clock, users)
    try:
        yield here
    finally:
        if here.is_killed:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
        else:
            stop.set()
            await supervisor.stop()
            await loop_task
