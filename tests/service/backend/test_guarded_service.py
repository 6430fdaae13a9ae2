"""The guard in the running service, on virtual time: live users on a simulated engine that loses half its speed."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs
from support import records
from support.fakes import FakeRunner, Script, given_urls, plan
from support.live_users import LiveEngine
from support.memory_store import MemoryStore, take_lease
from support.virtual_time import run_virtual

from calibrator.backends.simulated.parameters import EngineParameters
from calibrator.clock import LoopClock
from calibrator.core.admission.admission import SafetyLimits
from calibrator.core.admission.schedule import Schedule
from calibrator.core.live.change_test import GuardPolicy
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.publish.snapshot import BackendView, Recommendation, State
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sweep import SweepOutcome
from calibrator.ports.store import Lease
from calibrator.wiring.supervision import make_supervisor

# Ten slots of some 3 s a request: users keep five or six busy. At half the speed they would need eleven.
ENGINE = EngineParameters(
    slots=10, decode_base_s=0.03, prefill_per_token_s=0.000_1, prefill_chunk_tokens=512, prefix_cache_tokens=0
)
OBJECTIVES = (parse_objective("ttft p99 <= 400ms"),)  # between two bounds of vLLM's histogram: 250 and 500 ms
CAP = 12
PER_SECOND = 1.7
ANY_TIME = SafetyLimits(start_below_ratio=None)  # by default a sweep waits until traffic falls
POLICY = GuardPolicy(clean_s=300.0)
FAILED = Script(outcome=SweepOutcome.INCONCLUSIVE, takes_s=30.0)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


class Written(MemoryStore):
    """Shows every recommendation in the order of writing."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[Recommendation] = []

    async def add_recommendation(self, recommendation: Recommendation, lease: Lease) -> None:
        await super().add_recommendation(recommendation, lease)
        self.published.append(recommendation)


@asynccontextmanager
async def service(
    store: Written, engine: LiveEngine, scripts: list[Script]
) -> AsyncIterator[tuple[Callable[[], BackendView], FakeRunner]]:
    clock, numbers = LoopClock(), itertools.count(1)
    runner = FakeRunner(clock.wall, {"chat": scripts})
    known = plan(schedule=Schedule(every_s=1e9, at_start=False), policy=PublishPolicy(fallback_cap=8, valid_for_s=1e9))
    supervisor = make_supervisor(
        (replace(known, objectives=OBJECTIVES, guard=POLICY, limits=ANY_TIME),),
        runner=runner,
        store=store,
        leases=store.leases,
        holder="test",
        clock=clock,
        telemetry=lambda _: engine,
        discovery=given_urls,
        max_parallel=1,
        draws=random.Random(1),
        new_id=lambda: f"s{next(numbers):04}",
    )
    await supervisor.start()
    stop = asyncio.Event()
    loop_task = asyncio.create_task(supervisor.run(stop))
    try:
        yield lambda: supervisor.snapshot().backends["chat"], runner
    finally:
        stop.set()
        await supervisor.stop()
        await loop_task


async def until(condition: Callable[[], Any], limit_s: float) -> float:
    """Seconds until it holds, `limit_s` at most."""
    clock = LoopClock()
    began_s = clock.monotonic()
    while not condition() and clock.monotonic() - began_s < limit_s:  # noqa: ASYNC110 - the service tells nobody
        await asyncio.sleep(0.5)
    assert condition()
    return clock.monotonic() - began_s


def run_with_users(scenario: Callable[[Written, LiveEngine], Any]) -> None:
    """A calibrated backend, and live users behind a gateway that follows the stored cap as polls would show it."""

    async def whole() -> None:
        store = Written()
        await store.add_recommendation(
            replace(records.recommendation(cap=CAP), valid_until=None), await take_lease(store)
        )
        engine = LiveEngine(ENGINE, LoopClock())

        def cap() -> int:
            return store.published[-1].cap

        users = asyncio.create_task(engine.serve(PER_SECOND, cap))
        try:
            await scenario(store, engine)
        finally:
            users.cancel()
            await asyncio.gather(users, return_exceptions=True)

    run_virtual(whole())


def test_an_engine_that_loses_half_its_speed_is_cut_within_three_minutes_and_recovers() -> None:
    async def scenario(store: Written, engine: LiveEngine) -> None:
        async with service(store, engine, [FAILED]) as (view, runner):
            await asyncio.sleep(1800.0)
            assert view().recommendation.cap == CAP, "a healthy engine is left alone"
            engine.change_speed(0.5)
            await until(lambda: view().recommendation.state is State.GUARDED, 180.0)
            published = view().recommendation
            assert (published.cap, published.before_cut.cap if published.before_cut else None) == (9, CAP)
            assert "live requests break ttft p99 <= 400ms (counted above 500ms)" in published.reason
            assert await until(lambda: runner.orders, 5.0) < 5.0, "a tripped guard asks for a sweep"
            await asyncio.sleep(60.0)
            seen = len(engine.ttfts_s)
            await asyncio.sleep(120.0)
            late = [ttft_s > 0.5 for ttft_s in engine.ttfts_s[seen:]]
            assert sum(late) / len(late) <= 0.02, "with the cut the users' SLA holds again"
            engine.change_speed(1.0)
            await until(lambda: view().recommendation.state is State.CALIBRATED, 1800.0)
            assert (view().recommendation.cap, view().recommendation.before_cut) == (CAP, None)
            assert max(one.cap for one in store.published) == CAP
            guard = view().guard
            assert guard is not None
            assert (guard.trips["latency"], guard.trips["queue"], guard.breach_reason) == (1, 0, None)

    run_with_users(scenario)


def test_a_restart_keeps_the_guarded_cap_and_still_finds_the_way_back() -> None:
    async def scenario(store: Written, engine: LiveEngine) -> None:
        engine.change_speed(0.5)
        async with service(store, engine, [FAILED]) as (view, _):
            await until(lambda: view().recommendation.state is State.GUARDED, 300.0)
        engine.change_speed(1.0)
        guarded = store.published[-1].cap
        assert guarded < CAP
        async with service(store, engine, [FAILED]) as (view, _):
            assert (view().recommendation.cap, view().recommendation.state) == (guarded, State.GUARDED)
            await until(lambda: view().recommendation.cap == CAP, 1800.0)

    run_with_users(scenario)


def test_a_sweep_that_calibrates_ends_the_guarded_state() -> None:
    async def scenario(store: Written, engine: LiveEngine) -> None:
        async with service(store, engine, [Script(estimate=10, takes_s=30.0)]) as (view, runner):
            engine.change_speed(0.5)
            await until(lambda: view().recommendation.state is State.GUARDED, 300.0)
            await until(lambda: view().recommendation.state is State.CALIBRATED, 60.0)
            assert (view().recommendation.cap, view().recommendation.before_cut) == (9, None)
            assert len(runner.orders) == 1

    run_with_users(scenario)
