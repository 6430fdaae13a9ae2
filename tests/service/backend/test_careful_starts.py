"""What keeps a sweep from starting, what it may spend, and what an aborted one leaves behind; on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from structlog.testing import capture_logs
from support.fakes import HOUR_S, FakeRunner, FakeTelemetry, Script, given_urls, plan, telemetry_by_host
from support.memory_store import MemoryStore
from support.virtual_time import run_virtual, ticking

from calibrator.clock import LoopClock
from calibrator.core.admission.admission import DAY_S, DeferralReason, SafetyLimits
from calibrator.core.admission.schedule import Schedule, Window
from calibrator.core.publish.snapshot import BackendView, Health, State
from calibrator.core.records.harm import Abort, AbortLimits, AbortReason, Harm
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import SweepRecord
from calibrator.errors import ConfigurationError
from calibrator.ports.sweeps import BackendPlan, Permit, SweepListener, SweepOrder, forever
from calibrator.service.supervisor import Supervisor
from calibrator.wiring.supervision import make_supervisor


@dataclass
class CostlyRunner(FakeRunner):
    """Every sweep costs the same; `aborted` ends each of them."""

    requests: int = 1000
    aborted: Abort | None = None
    most_organic: int = 0

    async def run(self, order: SweepOrder, listener: SweepListener, permit: Permit = forever) -> SweepRecord:
        record = await super().run(order, listener, permit)
        harm = Harm(live_requests=900, live_exceedances=12, live_overload_s=3.0, most_organic=self.most_organic)
        return replace(record, requests=self.requests, prompt_tokens=5000, aborted=self.aborted, harm=harm)


@dataclass
class Service:
    supervisor: Supervisor
    runner: CostlyRunner
    store: MemoryStore
    engine: FakeTelemetry = field(default_factory=FakeTelemetry)

    @property
    def view(self) -> BackendView:
        return self.supervisor.snapshot().backends["chat"]


@asynccontextmanager
async def serving(
    known: BackendPlan,
    *,
    store: MemoryStore | None = None,
    runner: CostlyRunner | None = None,
    organic: float = 0.0,
    clock: LoopClock | None = None,
    tick_s: float | None = None,
) -> AsyncIterator[Service]:
    clock = clock or LoopClock()
    used, engine = store or MemoryStore(), FakeTelemetry(ServerLoad("vllm", organic, 0.0))
    runner = runner or CostlyRunner(clock.wall)
    supervisor = make_supervisor(
        (known,),
        runner=runner,
        store=used,
        leases=used.leases,
        holder="test",
        clock=clock,
        telemetry=telemetry_by_host({"chat": engine}),
        discovery=given_urls,
        max_parallel=1,
        draws=Random(1),
        new_id=iter(f"s{number:04}" for number in range(int(clock.wall()), 2**40)).__next__,
    )
    await supervisor.start()
    stop = asyncio.Event()
    loop_task = asyncio.create_task(ticking(supervisor, stop, tick_s))
    try:
        yield Service(supervisor, runner, used, engine)
    finally:
        stop.set()
        await supervisor.stop()
        await loop_task


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[dict[str, object]]]:
    with capture_logs() as captured:
        yield captured  # type: ignore[misc] # structlog calls its lines mutable mappings


def careful(schedule: Schedule | None = None, **limits: object) -> BackendPlan:
    return replace(plan(schedule=schedule), limits=SafetyLimits(**limits))  # type: ignore[arg-type] # a table of fields


def test_observe_sends_nothing_and_tells_each_sweep_that_would_have_run(lines: list[dict[str, object]]) -> None:
    async def scenario() -> None:
        async with serving(careful(Schedule(every_s=600.0, jitter_ratio=0.0), observe=True)) as running:
            await asyncio.sleep(2100.0)
            assert running.runner.orders == []
            assert running.view.health is Health.OBSERVE
            assert running.view.deferred is not None
            assert running.view.deferred.reason is DeferralReason.OBSERVE
            assert "requests and" in running.view.deferred.message
            with pytest.raises(ConfigurationError, match="observe"):
                await running.supervisor.request_sweep("chat", "test")

    run_virtual(scenario())
    assert sum(line["event"] == "sweep deferred" for line in lines) == 4


def test_a_busy_backend_is_swept_once_its_traffic_has_been_low_for_a_minute() -> None:
    async def scenario() -> None:
        async with serving(careful(start_below_ratio=0.5), organic=4.0) as running:  # the cap is 8
            await asyncio.sleep(600.0)
            assert running.runner.orders == []
            assert running.view.deferred is not None
            assert running.view.deferred.reason is DeferralReason.BUSY
            quiet_at = LoopClock().wall()
            running.engine.load = ServerLoad("vllm", 1.0, 0.0)
            await asyncio.sleep(120.0)
            (order,) = running.runner.orders
            assert 55.0 <= order.started_at - quiet_at <= 75.0
            assert running.view.deferred is None

    run_virtual(scenario())


def test_a_person_may_sweep_a_busy_backend_outside_its_windows() -> None:
    night = Schedule(windows=(Window(tuple(range(7)), 22 * 60, 23 * 60),))  # it is 08:00

    async def scenario() -> None:
        async with serving(careful(night), organic=9.0) as running:
            await asyncio.sleep(10.0)
            await running.supervisor.request_sweep("chat", "test")
            await asyncio.sleep(10.0)
            (order,) = running.runner.orders
            assert order.limits.ends_at is None

    run_virtual(scenario())


def test_a_sweep_learns_when_its_window_closes_and_how_users_are_spared() -> None:
    morning = Schedule(windows=(Window(tuple(range(7)), 7 * 60, 9 * 60),))
    limits = AbortLimits(live_exceedances=7)

    async def scenario() -> None:
        began = LoopClock().wall()
        async with serving(careful(morning, abort=limits, tokens=90_000)) as running:
            await asyncio.sleep(10.0)
            (order,) = running.runner.orders
            assert (order.limits.ends_at, order.limits.tokens) == (began + HOUR_S, 90_000)
            assert order.abort == limits

    run_virtual(scenario())


def test_a_budget_of_a_day_survives_a_restart() -> None:
    """A typical sweep is counted on with some 1,400 requests: after two of a thousand the third must wait."""
    known = careful(Schedule(every_s=600.0, jitter_ratio=0.0), requests_per_day=3200)

    async def scenario() -> None:
        store = MemoryStore()
        async with serving(known, store=store, tick_s=1.0) as running:
            await asyncio.sleep(0.7 * HOUR_S)
            first, _ = running.runner.starts("chat")
            assert running.view.deferred is not None
            assert running.view.deferred.reason is DeferralReason.REQUESTS
        later = LoopClock(LoopClock().wall() + 22.5 * HOUR_S - asyncio.get_running_loop().time())
        async with serving(known, store=store, clock=later, tick_s=1.0) as running:
            await asyncio.sleep(0.5 * HOUR_S)
            assert running.runner.orders == []
            held = running.view.deferred
            assert held is not None
            assert held.until == pytest.approx(first + 60.0 + DAY_S)
            assert running.view.next_sweep_at == held.until, "the next possible time is shown"
            with pytest.raises(ConfigurationError, match="requests per day") as refused:
                await running.supervisor.request_sweep("chat", "test")
            assert "Possible again at" in refused.value.remedy
            await asyncio.sleep(1.0 * HOUR_S)
            assert running.runner.starts("chat")[0] == pytest.approx(held.until, abs=1.0)

    run_virtual(scenario())


def test_gateways_get_the_fallback_in_the_shadow() -> None:
    async def scenario() -> None:
        async with serving(careful(shadow=True)) as running:
            await asyncio.sleep(120.0)
            view = running.view
            assert (view.recommendation.cap, view.recommendation.state) == (36, State.CALIBRATED)
            assert (view.served_cap, view.served_replica_cap, view.advertised.state) == (8, 8, State.FALLBACK)
            assert view.advertised_state_at(LoopClock().wall()) is State.FALLBACK

    run_virtual(scenario())


@pytest.mark.parametrize(("estimate", "cap"), [(100, 36), (20, 18)], ids=["never raises", "may lower"])
def test_an_aborted_sweep_may_lower_a_cap_and_never_raises_it(estimate: int, cap: int) -> None:
    async def scenario() -> None:
        clock = LoopClock()
        scripts = {"chat": [Script(), Script(estimate=estimate)]}
        runner = CostlyRunner(clock.wall, scripts)
        async with serving(careful(), runner=runner) as running:
            await asyncio.sleep(120.0)
            assert running.view.recommendation.cap == 36
            runner.aborted = Abort(AbortReason.PREEMPTIONS, "600 requests were preempted beside live ones")
            await running.supervisor.request_sweep("chat", "test")
            await asyncio.sleep(90.0)
            view = running.view
            assert view.recommendation.cap == cap
            assert view.counters.sweep_aborts["preemptions"] == 1
            assert sum(view.counters.sweep_aborts.values()) == 1
            assert view.counters.live_exceedances == 24, "of both sweeps"
            assert view.next_sweep_at is not None
            assert view.next_sweep_at - clock.wall() < 60.0, "it is tried again as after a failure"

    run_virtual(scenario())


def test_an_aborted_first_sweep_does_not_raise_the_fallback() -> None:
    async def scenario() -> None:
        runner = CostlyRunner(LoopClock().wall, aborted=Abort(AbortReason.RESTART, "the engine restarted"))
        async with serving(careful(), runner=runner) as running:
            await asyncio.sleep(90.0)
            assert (running.view.recommendation.cap, running.view.recommendation.state) == (8, State.FALLBACK)

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("reason", "most_organic", "highest"),
    [
        (AbortReason.LIVE_LATENCY, 4, 25),  # four fifths of level 32
        (AbortReason.LIVE_LATENCY, 40, 512),  # users alone were above the level
        (AbortReason.RESTART, 4, 512),
    ],
)
def test_after_a_level_that_hurt_users_the_next_tries_stay_below_it(
    reason: AbortReason, most_organic: int, highest: int
) -> None:
    async def scenario() -> None:
        runner = CostlyRunner(LoopClock().wall, aborted=Abort(reason, "users"), most_organic=most_organic)
        async with serving(careful(), runner=runner) as running:
            await asyncio.sleep(150.0)
            runner.aborted = None
            await asyncio.sleep(60.0)
            await running.supervisor.request_sweep("chat", "test")
            await asyncio.sleep(90.0)
            levels = [order.bounds.max_level for order in runner.orders]
            assert levels == [512, highest, 512], "and the one after a sweep that said something is free again"

    run_virtual(scenario())
