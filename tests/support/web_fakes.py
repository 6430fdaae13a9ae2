"""An operator that shows whatever snapshot a test puts into it, and snapshots to show."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.routing import Route

from calibrator.clock import LoopClock
from calibrator.core.live.change_test import GuardReason
from calibrator.core.publish.override import overlaid
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.publish.snapshot import (
    BackendView,
    Counters,
    GuardView,
    Health,
    Override,
    Progress,
    Rates,
    Recommendation,
    Snapshot,
    State,
    SweepSummary,
)
from calibrator.core.records.harm import AbortReason
from calibrator.core.records.history import Audit, Capacity, History
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import RequestOutcome
from calibrator.core.records.server_load import ServerLoadPeak
from calibrator.core.records.sweep import (
    BurstReport,
    ClassAchieved,
    Grade,
    LevelReport,
    ObjectiveVerdict,
    Provenance,
    SweepOutcome,
    SweepRecord,
    Verdict,
    VerdictKind,
)
from calibrator.core.stats.quantile import LatencySummary, QuantileEstimate
from calibrator.errors import ConfigurationError
from calibrator.ports.sharing import Poll, Poller, Share
from calibrator.web.app import create_app

EPOCH_S = 1_800_000_000.0  # 2027-01-15T08:00:00Z, where LoopClock's wall time begins
OBJECTIVE = "ttft p99 <= 500ms"


@dataclass
class FakeOperator:
    """Port `Operator` over plain attributes."""

    current: Snapshot
    records: tuple[SweepRecord, ...] = ()
    polls: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    busy: bool = False
    failure: Exception | None = None
    shares: dict[str, int | None] = field(default_factory=dict)  # by client; who is not in it gets the whole cap
    asked_polls: list[Poll] = field(default_factory=list)
    pinned: dict[str, Override] = field(default_factory=dict)
    published: tuple[Recommendation, ...] = ()  # newest first
    polling: tuple[Poller, ...] = ()
    past_pins: tuple[Override, ...] = ()  # newest first
    packed: dict[str, bytes] = field(default_factory=dict)  # samples by sweep
    bell: asyncio.Event = field(default_factory=asyncio.Event)

    def snapshot(self) -> Snapshot:
        return self.current

    async def samples(self, sweep_id: str) -> bytes | None:
        if self.failure is not None:
            raise self.failure
        return self.packed.get(sweep_id)

    async def request_sweep(self, backend: str, reason: str) -> str:
        if self.busy:
            raise ConfigurationError("A sweep of this backend runs already.", "Wait for its end.")
        self.asked.append((backend, reason))
        return "sweep-7"

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        if self.failure is not None:
            raise self.failure
        return [record for record in self.records if record.backend == backend][:limit]

    async def cancel_sweep(self, backend: str, author: str) -> str:
        if not self.busy:
            raise ConfigurationError("No sweep runs or is queued.", "There is nothing to do.")
        self.busy = False
        return "sweep-7"

    async def recommendations(self, backend: str, limit: int) -> Sequence[Recommendation]:
        if self.failure is not None:
            raise self.failure
        return [one for one in self.published if one.backend == backend][:limit]

    async def pins(self, backend: str) -> Sequence[Override]:
        return self.past_pins

    def pollers(self, backend: str) -> Sequence[Poller]:
        return self.polling

    async def sweep(self, sweep_id: str) -> SweepRecord | None:
        return next((record for record in self.records if record.sweep_id == sweep_id), None)

    def poll(self, backend: str, poll: Poll) -> Share:
        if not poll.is_waiting:
            self.polls[backend] = self.polls.get(backend, 0) + 1
        self.asked_polls.append(poll)
        view = self.current.backends[backend]
        if poll.client in self.shares:
            share = self.shares[poll.client]
            return Share(share, len(self.shares), 0, 1.0 if share is None else 0.0)
        return Share(view.served_replica_cap if poll.per_replica else view.served_cap, len(self.shares), 0)

    async def changed(self, backend: str, limit_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.bell.wait()

    async def override(self, backend: str, override: Override) -> bool:
        self.pinned[backend] = override
        view = self.current.backends[backend]
        underlying = view.underlying or view.recommendation
        served = overlaid(underlying, override, PublishPolicy(fallback_cap=8, max_cap=200))
        self.put(replace(view, recommendation=served, override=override, underlying=underlying))
        return self.failure is None

    async def clear_override(self, backend: str, author: str) -> bool:
        return self.pinned.pop(backend, None) is not None

    def notify(self) -> None:
        self.bell.set()
        self.bell = asyncio.Event()

    def put(self, view: BackendView) -> None:
        self.current = replace(self.current, backends={**self.current.backends, view.name: view})
        self.notify()


def counters() -> Counters:
    return Counters(
        sweeps={outcome.value: 0 for outcome in SweepOutcome} | {"calibrated": 3},
        probe_requests={outcome.value: 0 for outcome in RequestOutcome} | {"ok": 900, "violation": 7},
        probe_tokens={"prompt": 90_000, "output": 45_000},
        probe_overload_s=12.5,
        gateway_polls=41,
        sweep_aborts={reason.value: 0 for reason in AbortReason},
    )


def latency(scale_s: float = 0.1) -> LatencySummary:
    """P99 unknown on purpose: n cannot support it."""
    return LatencySummary(
        n=120,
        p50=QuantileEstimate(scale_s, scale_s * 0.9, scale_s * 1.1),
        p90=QuantileEstimate(scale_s * 2, scale_s * 1.8, None),
        p99=None,
    )


def level(concurrency: int, kind: VerdictKind = VerdictKind.WITHIN) -> LevelReport:
    verdict = ObjectiveVerdict(OBJECTIVE, kind, 120, 80.5, 1, 0.001, 0.02, "enough passes")
    return LevelReport(
        concurrency=concurrency,
        achieved_concurrency=concurrency - 0.123456789,
        n=120,
        exceedances=1,
        requests=180,
        verdict=Verdict(kind, ("enough passes",), (verdict,)),
        ttft=latency(),
        ttfc=latency(0.11),
        itl=latency(0.01),
        tpot=latency(0.012),
        e2e=latency(1.0),
        requests_per_second=31.4159265,
        prompt_tokens_per_second=3000.0,
        output_tokens_per_second=1500.0,
        goodput_per_second=31.0,
        errors=(("reset", 2),),
        audit=Audit(loop_lag_p99_s=0.001),
        server=ServerLoadPeak(scrapes=9, running_requests=float(concurrency)),
    )


def record(sweep_id: str = "sweep-6", backend: str = "chat", **changes: Any) -> SweepRecord:
    base = SweepRecord(
        sweep_id=sweep_id,
        backend=backend,
        mode="search",
        started_at=EPOCH_S - 4000.0,
        ended_at=EPOCH_S - 3700.5,
        outcome=SweepOutcome.CALIBRATED,
        grade=Grade.CERTIFIED,
        capacity=Capacity(41, 38, 44),
        reason="certified at 41, refuted at 44",
        requests=907,
        duration_s=299.5,
        overload_s=12.5,
        prompt_tokens=90_000,
        output_tokens=45_000,
        levels=(level(32), level(44, VerdictKind.EXCEEDED)),
        warnings=("no server metrics",),
        provenance=Provenance(
            "chat",
            "http://engine/v1",
            "m",
            None,
            "one class",
            100.0,
            None,
            1,
            "0.1.0",
            0.25,
            (ClassAchieved("default", 800, 100.0, 101.5, 20.0, None),),
        ),
        history=History((parse_objective(OBJECTIVE),)),
        burst=BurstReport(41, 3, 123, 9, "ttft", level(41).ttft, level(41).ttft),
    )
    return replace(base, **changes)


def calibrated(name: str = "chat", **changes: Any) -> BackendView:
    done = record(backend=name)
    published = Recommendation(
        backend=name,
        version=12,
        cap=37,
        replica_cap=37,
        state=State.CALIBRATED,
        grade=Grade.CERTIFIED,
        capacity=done.capacity,
        reason="90 % of the capacity",
        published_at=EPOCH_S - 3700.0,
        measured_at=EPOCH_S - 3700.5,
        valid_until=EPOCH_S + 100.0,
        sweep_id=done.sweep_id,
        rates=Rates(30.0, 180_000.0, 90_000.0),
        max_queue_wait_s=0.12,
        warnings=done.warnings,
    )
    view = BackendView(
        name=name,
        model="m",
        objectives=(parse_objective(OBJECTIVE),),
        recommendation=published,
        health=Health.OK,
        health_reason="",
        counters=counters(),
        fallback_cap=8,
        up=True,
        engine="vllm",
        ready_replicas=1,
        organic_in_flight=12.0,
        in_flight_peak=14.0,
        headroom_min_ratio=23.0 / 37.0,
        last_sweep=SweepSummary(
            done.sweep_id,
            SweepOutcome.CALIBRATED,
            done.grade,
            done.capacity,
            done.started_at,
            EPOCH_S - 3700.5,
            done.duration_s,
            done.requests,
            done.reason,
            done.levels,
        ),
        last_sweep_at={"calibrated": EPOCH_S - 3700.5},
        next_sweep_at=EPOCH_S + 3600.0,
        guard=GuardView(True, {OBJECTIVE: 0.5}, {reason.value: 0 for reason in GuardReason}),
    )
    return replace(view, **changes)


def fallback(name: str = "fresh", **changes: Any) -> BackendView:
    """Nothing measured, nothing asked yet."""
    published = Recommendation(
        backend=name,
        version=1,
        cap=8,
        replica_cap=8,
        state=State.FALLBACK,
        grade=None,
        capacity=None,
        reason="nothing measured yet",
        published_at=EPOCH_S,
    )
    view = BackendView(name, "m", (parse_objective(OBJECTIVE),), published, Health.OK, "", counters(), fallback_cap=8)
    return replace(view, **changes)


def running() -> Progress:
    return Progress("sweep-7", 64, "screen", 50, 2, "inconclusive", 0.25, None, 300, 1756, 31.5, 1200.0, 64)


def snapshot(*views: BackendView, **changes: Any) -> Snapshot:
    shown = views or (calibrated(), fallback())
    return replace(Snapshot(EPOCH_S, EPOCH_S - 10.0, {view.name: view for view in shown}), **changes)


def app_of(
    operator: FakeOperator,
    *,
    operator_tokens: Sequence[str] = (),
    read_tokens: Sequence[str] = (),
    is_stopping: Callable[[], bool] = lambda: False,
    extra_routes: Sequence[Route] = (),
) -> Starlette:
    return create_app(
        operator,
        clock=LoopClock(EPOCH_S),
        operator_tokens=lambda: operator_tokens,
        read_tokens=lambda: read_tokens,
        software_version="9.9.9",
        is_stopping=is_stopping,
        extra_routes=extra_routes,
    )


@asynccontextmanager
async def client_of(app: Starlette, *, raises: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=raises)
    async with httpx.AsyncClient(transport=transport, base_url="http://calibrator") as client:
        yield client
