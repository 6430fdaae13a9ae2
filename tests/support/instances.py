"""Several calibrators on one database, in one event loop on virtual time, with everything that can befall them.

| what befalls an instance | how it is done |
|---|---|
| paused (SIGSTOP) | its clock lets nobody wake and its database calls hang; the sweep's own process goes on |
| cut off from the database | every call raises StoreError |
| killed | its tasks end without a word; its sweep's process sees the closed leash |
| its wall clock steps | the clock port |

The engines' own log is kept here, too: who probed which backend, from when to when.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrator.clock import LoopClock
from calibrator.core.publish.lease import LeasePolicy
from calibrator.core.publish.snapshot import BackendView
from calibrator.core.records.sweep import SweepRecord
from calibrator.errors import StoreError
from calibrator.ports.sweeps import BackendPlan, Permit, SweepListener, SweepOrder, forever
from calibrator.service.supervisor import Supervisor
from calibrator.wiring.supervision import make_supervisor
from support.fakes import FakeTelemetry, Script, begun, given_urls, progress, telemetry_by_host
from support.memory_store import MemoryDatabase, MemoryStore
from support.virtual_time import ticking

CUT = StoreError("The database cannot be reached.", "Repair the network.")
STEP_S = 0.05  # how exactly a sweep's process keeps its permit
ENDS_IN_S = 0.3  # from the end of a permit, or the order to stop, to the last probe


@dataclass
class SteppedClock(LoopClock):
    """Of one instance: its wall clock may step, and while it is paused nobody wakes."""

    step_s: float = 0.0
    runs: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        LoopClock.__init__(self)
        self.runs.set()

    def wall(self) -> float:
        return LoopClock.wall(self) + self.step_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.runs.wait()


class Gated:
    """A port whose calls hang while their instance is paused."""

    def __init__(self, inner: Any, runs: asyncio.Event) -> None:
        self._inner = inner
        self._runs = runs

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def gated(*args: Any, **named: Any) -> Any:
            await self._runs.wait()
            answer = await method(*args, **named)
            await self._runs.wait()
            return answer

        return gated


@dataclass
class Probing:
    """One stretch of probes, as the engine sees it."""

    instance: str
    backend: str
    from_s: float
    to_s: float | None = None


@dataclass
class LeashedRunner:
    """Port `SweepRunner`: scripted sweeps, each with a "process" of its own that a pause of the service does not stop.

    It probes until its script ends, its permit runs out, or it is told to stop.
    """

    name: str
    clock: SteppedClock
    log: list[Probing]
    scripts: Mapping[str, list[Script]]
    ended: dict[str, SweepRecord]  # by sweep, of all instances: the record may be lost on its way to the database
    orders: list[SweepOrder] = field(default_factory=list)
    processes: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self, order: SweepOrder, listener: SweepListener, permit: Permit = forever) -> SweepRecord:
        mine = self.scripts[order.backend]
        script = mine.pop(0) if len(mine) > 1 else mine[0]
        self.orders.append(order)
        process = asyncio.create_task(self._probe(order, script, permit))
        self.processes.append(process)
        listener.progress(progress(order.sweep_id))
        listener.partial(begun(order))
        try:
            await asyncio.wait([process])
            await self.clock.runs.wait()
        finally:
            process.cancel()
        if process.cancelled():
            raise asyncio.CancelledError
        if script.error is not None:
            raise script.error
        record = self.ended[order.sweep_id] = script.record(order, self.clock.wall())
        return record

    async def _probe(self, order: SweepOrder, script: Script, permit: Permit) -> None:
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + script.takes_s
        probing = Probing(self.name, order.backend, loop.time())
        self.log.append(probing)
        try:
            while loop.time() < ends_s:
                await asyncio.sleep(STEP_S)
                if loop.time() >= permit():
                    await asyncio.sleep(ENDS_IN_S)
                    raise asyncio.CancelledError
        finally:
            probing.to_s = loop.time()


@dataclass
class Instance:
    """One calibrator."""

    name: str
    supervisor: Supervisor
    store: MemoryStore
    runner: LeashedRunner
    clock: SteppedClock
    stopping: asyncio.Event
    tasks: set[asyncio.Task[Any]]
    is_up: bool = True

    def view(self, backend: str = "chat") -> BackendView:
        return self.supervisor.snapshot().backends[backend]

    def cap(self, backend: str = "chat") -> int:
        return self.view(backend).recommendation.cap

    def holds_lease(self, backend: str = "chat") -> bool:
        return self.view(backend).lease_held

    def cut_off(self) -> None:
        self.store.failure = CUT

    def reconnect(self) -> None:
        self.store.failure = None

    def pause(self) -> None:
        self.clock.runs.clear()

    def resume(self) -> None:
        self.clock.runs.set()

    async def stop(self) -> None:
        self.resume()
        self.stopping.set()
        await self.supervisor.stop()
        await self._end()

    async def kill(self) -> None:
        """As kill -9: nothing is said to anybody; the sweep's process sees the leash."""
        await self._end()

    async def _end(self) -> None:
        self.is_up = False
        mine = [*self.tasks, *self.runner.processes]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)


@dataclass
class Site:
    """The database, the engines' log, and the instances."""

    plans: Sequence[BackendPlan]
    scripts: Mapping[str, list[Script]]
    telemetry: Mapping[str, FakeTelemetry] = field(default_factory=dict)
    policy: LeasePolicy = field(default_factory=LeasePolicy)
    database: MemoryDatabase = field(default_factory=MemoryDatabase)
    log: list[Probing] = field(default_factory=list)
    ended: dict[str, SweepRecord] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    tick_s: float | None = None  # None: as the service ticks
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    async def start(self, name: str) -> Instance:
        clock, store = SteppedClock(), MemoryStore(database=self.database)
        runner = LeashedRunner(name, clock, self.log, self.scripts, self.ended)
        before = asyncio.all_tasks()
        supervisor = make_supervisor(
            self.plans,
            runner=runner,
            store=Gated(store, clock.runs),
            leases=Gated(store.leases, clock.runs),
            holder=name,
            lease=self.policy,
            clock=clock,
            telemetry=telemetry_by_host(self.telemetry),
            discovery=given_urls,
            max_parallel=4,
            draws=random.Random(name),
            new_id=self._new_id,
        )
        await supervisor.start()
        stopping = asyncio.Event()
        loop_task = asyncio.create_task(ticking(supervisor, stopping, self.tick_s))
        tasks = asyncio.all_tasks() - before | {loop_task}
        instance = Instance(name, supervisor, store, runner, clock, stopping, tasks)
        self.instances.append(instance)
        return instance

    def _new_id(self) -> str:
        return f"s{next(self.numbers):04}"

    async def close(self) -> None:
        for instance in self.instances:
            if instance.is_up:
                instance.reconnect()
                await instance.stop()

    @property
    def up(self) -> list[Instance]:
        return [one for one in self.instances if one.is_up]

    # ------------------------------------------------------------------------------------------------ judgements
    def overlaps(self) -> list[tuple[Probing, Probing]]:
        """Two that probed one backend at once."""
        now_s = asyncio.get_running_loop().time() if self.log else 0.0
        return [
            (one, other)
            for one, other in itertools.combinations(self.log, 2)
            if one.backend == other.backend
            and one.from_s < (now_s if other.to_s is None else other.to_s)
            and other.from_s < (now_s if one.to_s is None else one.to_s)
        ]

    def stored_caps(self, backend: str = "chat") -> list[int]:
        return [one.cap for one in self._history(backend)]

    def epochs(self, backend: str = "chat") -> list[int]:
        """In the order of versions."""
        return [self.database.epochs[backend, one.version] for one in self._history(backend)]

    def unfounded_raises(self, backend: str = "chat") -> list[tuple[int, int]]:
        """Stored caps above the one before that no certified sweep stands behind. What replaces a fallback is none:
        any measurement beats a guess (`core.publish.recommendation`), and the first one may be lost on its way."""
        history = self._history(backend)
        return [
            (before.cap, after.cap)
            for before, after in itertools.pairwise(history)
            if after.cap > before.cap and before.grade is not None and not self._is_certified(after.sweep_id)
        ]

    def _is_certified(self, sweep_id: str | None) -> bool:
        record = self.ended.get(sweep_id or "")
        return record is not None and record.grade is not None and record.grade.value in ("certified", "at_max")

    def _history(self, backend: str) -> list[Any]:
        known = self.database.recommendations
        return [known[key] for key in sorted(known) if key[0] == backend]


async def until(condition: Callable[[], bool], limit_s: float) -> float:
    """Seconds of virtual time until it holds."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while not condition():
        assert loop.time() < began_s + limit_s, f"did not happen within {limit_s:g} s"
        await asyncio.sleep(0.05)
    return loop.time() - began_s
