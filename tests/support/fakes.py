"""Fakes of the ports around the supervisor: scripted sweeps, scripted engines, and a store that takes its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from calibrator.core.admission.schedule import Schedule
from calibrator.core.publish.fleet import Found, ReplicaAddress
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.publish.snapshot import Progress, Recommendation
from calibrator.core.records.history import Bounds, Capacity
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import Grade, SweepOutcome, SweepRecord
from calibrator.core.workload.classes import Workload
from calibrator.ports.store import Lease
from calibrator.ports.sweeps import BackendPlan, Permit, SweepListener, SweepOrder, Target, forever
from support import records
from support.memory_store import MemoryStore

OBJECTIVE = parse_objective("ttft p99 <= 500ms")
HOUR_S = 3600.0


def plan(
    name: str = "chat",
    *,
    group: str = "",
    schedule: Schedule | None = None,
    policy: PublishPolicy | None = None,
    duration_s: float = 1200.0,
) -> BackendPlan:
    return BackendPlan(
        name=name,
        engine_group=group or name,
        target=Target(f"http://{name}/v1", "m"),
        objectives=(OBJECTIVE,),
        workload=Workload(),
        bounds=Bounds(duration_s=duration_s),
        schedule=schedule or Schedule(every_s=6 * HOUR_S, jitter_ratio=0.1),
        policy=policy or PublishPolicy(fallback_cap=8),
    )


def capacity(estimate: int, certified: int | None = None) -> Capacity:
    return Capacity(estimate, estimate, estimate + 4, estimate if certified is None else certified)


@dataclass(frozen=True)
class Script:
    """One sweep to come. `error`: raised instead of a record. `hangs`: until cancelled."""

    estimate: int = 40
    outcome: SweepOutcome = SweepOutcome.CALIBRATED
    grade: Grade | None = Grade.CERTIFIED
    certified: int | None = None
    takes_s: float = 60.0
    error: BaseException | None = None
    hangs: bool = False

    def record(self, order: SweepOrder, ended_at: float) -> SweepRecord:
        found = self.outcome is SweepOutcome.CALIBRATED
        return replace(
            begun(order),
            ended_at=ended_at,
            outcome=self.outcome,
            grade=self.grade if found else None,
            capacity=capacity(self.estimate, self.certified) if found else None,
            reason=f"scripted {self.outcome}",
            remedy="repair it" if self.outcome is SweepOutcome.ERROR else "",
            duration_s=self.takes_s,
        )


def begun(order: SweepOrder) -> SweepRecord:
    """Its first level is measured."""
    full = records.running(order.sweep_id, order.backend, order.started_at)
    objectives = tuple(str(objective) for objective in order.objectives)
    measured = replace(
        full.provenance,
        url=order.target.url,
        model=order.target.model,
        objectives=objectives,
        workload=str(order.workload),
    )
    return replace(full, provenance=measured, trigger=order.trigger)


@dataclass
class FakeRunner:
    """Port `SweepRunner`: plays each backend's scripts in turn, the last one again and again."""

    wall: Callable[[], float]
    scripts: dict[str, list[Script]] = field(default_factory=dict)
    orders: list[SweepOrder] = field(default_factory=list)
    most_at_once: int = 0
    shared: set[frozenset[str]] = field(default_factory=set)  # backends that were swept at the same time
    running: set[str] = field(default_factory=set)
    organic: float | None = None  # what a sweep says of live requests

    async def run(self, order: SweepOrder, listener: SweepListener, permit: Permit = forever) -> SweepRecord:
        mine = self.scripts.get(order.backend) or [Script()]
        script = mine.pop(0) if len(mine) > 1 else mine[0]
        self.orders.append(order)
        self.running.add(order.backend)
        self.most_at_once = max(self.most_at_once, len(self.running))
        self.shared.add(frozenset(self.running))
        try:
            listener.progress(replace(progress(order.sweep_id), organic=self.organic))
            await asyncio.sleep(script.takes_s / 2)
            listener.partial(begun(order))
            if script.hangs:
                await asyncio.Event().wait()
            await asyncio.sleep(script.takes_s / 2)
        finally:
            self.running.discard(order.backend)
        if script.error is not None:
            raise script.error
        return script.record(order, self.wall())

    def starts(self, backend: str) -> list[float]:
        return [order.started_at for order in self.orders if order.backend == backend]


def progress(sweep_id: str) -> Progress:
    return Progress(sweep_id, 16, "screen", 20, 0, "inconclusive", 0.1, None, 40, 1500, 5.0, 1200.0, 16)


@dataclass
class FakeTelemetry:
    """Port `Telemetry`. `takes_s`: how long a scrape takes."""

    load: ServerLoad | None = None
    takes_s: float = 0.0
    error: Exception | None = None
    scrapes: int = 0
    problem: str = ""

    async def scrape(self) -> ServerLoad | None:
        self.scrapes += 1
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        return self.load

    async def close(self) -> None: ...


def telemetry_by_host(known: Mapping[str, FakeTelemetry]) -> Callable[[Target], FakeTelemetry]:
    """A factory over what a test prepared for each host of a URL; others have no metrics."""
    return lambda target: known.get(urlsplit(target.url).hostname or "") or FakeTelemetry()


@dataclass
class FakeDiscovery:
    """Port `Discovery`: whatever a test puts into it."""

    urls: tuple[str, ...] = ()
    valid_s: float = 1.0
    error: Exception | None = None

    async def find(self) -> Found:
        if self.error is not None:
            raise self.error
        return Found(tuple(ReplicaAddress(url) for url in self.urls), self.valid_s)


def given_urls(known: BackendPlan) -> FakeDiscovery:
    """The plan's own URLs, as they stand in it."""
    return FakeDiscovery(known.replicas.urls or (known.target.url,), valid_s=3600.0)


class SlowStore(MemoryStore):
    """Every write waits `takes_s`, as behind a foreign lock."""

    takes_s = 0.0

    async def add_recommendation(self, recommendation: Recommendation, lease: Lease) -> None:
        await asyncio.sleep(self.takes_s)
        await super().add_recommendation(recommendation, lease)

    async def save_sweep(self, record: SweepRecord) -> None:
        await asyncio.sleep(self.takes_s)
        await super().save_sweep(record)
