"""Shares and overrides in the running service, on virtual time: long polls, restarts, a store that fails."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.fakes import FakeRunner, Script, given_urls, plan, telemetry_by_host
from support.memory_store import MemoryStore
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.admission.schedule import Schedule
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.publish.snapshot import BackendView, Override, State
from calibrator.core.sharing.allocator import LEAST_EXPIRY_S
from calibrator.errors import ConfigurationError, StoreError
from calibrator.ports.sharing import Poll
from calibrator.ports.sweeps import BackendPlan
from calibrator.service.publishing.shares import ShareKeeper
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.supervisor import TICK_S, Supervisor
from calibrator.wiring.supervision import make_supervisor

BROKEN = StoreError("The disk is full.", "Free some space.")


def manual(cap: int = 31, **policy: float) -> BackendPlan:
    known: Any = {"fallback_cap": cap, **policy}
    return plan(schedule=Schedule(every_s=1e9, at_start=False), policy=PublishPolicy(**known))


@asynccontextmanager
async def service(known: BackendPlan, store: MemoryStore, *, kill: bool = False) -> AsyncIterator[Supervisor]:
    """`kill`: nothing is saved at the end, as after kill -9."""
    clock, numbers = LoopClock(), itertools.count(1)
    supervisor = make_supervisor(
        (known,),
        runner=FakeRunner(clock.wall, {"chat": [Script(estimate=60)]}),
        store=store,
        leases=store.leases,
        holder="test",
        clock=clock,
        telemetry=telemetry_by_host({}),
        discovery=given_urls,
        max_parallel=1,
        draws=random.Random(1),
        new_id=lambda: f"{clock.wall():.0f}-{next(numbers)}",
    )
    await supervisor.start()
    stop = asyncio.Event()
    loop_task = asyncio.create_task(supervisor.run(stop))
    try:
        yield supervisor
    finally:
        stop.set()
        await loop_task
        if kill:
            store.failure = BROKEN
        await supervisor.stop()
        store.failure = None


def view(supervisor: Supervisor) -> BackendView:
    return supervisor.snapshot().backends["chat"]


def told(supervisor: Supervisor, *clients: str) -> list[int | None]:
    return [supervisor.poll("chat", Poll(client)).requests for client in clients]


async def settle(supervisor: Supervisor, *clients: str) -> list[int | None]:
    for _ in range(4):
        await asyncio.sleep(1.0)
        shares = told(supervisor, *clients)
    return shares


def run(scenario: Coroutine[Any, Any, None]) -> list[Any]:
    with capture_logs() as logs:
        run_virtual(scenario)
    return [entry["event"] for entry in logs]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


# -------------------------------------------------------------------------------------------------------------- shares
def test_the_cap_and_the_replicas_cap_are_divided_apart() -> None:
    async def scenario() -> None:
        async with service(manual(31), MemoryStore()) as supervisor:
            assert await settle(supervisor, "envoy-1", "envoy-2") == [16, 15]
            assert supervisor.poll("chat", Poll("haproxy", per_replica=True)).requests == 31
            assert supervisor.poll("chat", Poll("")).requests == 31
            await asyncio.sleep(2 * TICK_S)
            assert (view(supervisor).gateway_clients, view(supervisor).gateway_clients_over_cap) == (3, 0)
            await asyncio.sleep(LEAST_EXPIRY_S + 1.0)
            assert view(supervisor).gateway_clients == 0

    run(scenario())


def test_the_version_is_the_same_exactly_when_the_same_is_told() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(manual(31), store) as supervisor:
            alone = supervisor.poll("chat", Poll("a"))
            assert supervisor.poll("chat", Poll("a")).version == alone.version
            await settle(supervisor, "a", "b")
            shared = supervisor.poll("chat", Poll("a"))
            assert shared.version != alone.version
        async with service(manual(31), store) as again:
            assert again.poll("chat", Poll("a")).version == shared.version

    run(scenario())


@pytest.mark.parametrize("kill", [False, True])
def test_shares_survive_a_restart(kill: bool) -> None:  # noqa: FBT001 - a parameter of the test
    async def scenario() -> None:
        store = MemoryStore()
        async with service(manual(31), store, kill=kill) as supervisor:
            assert await settle(supervisor, "a", "b") == [16, 15]
            await asyncio.sleep(2.0)
        async with service(manual(31), store) as again:
            assert told(again, "c") == [None], "a and b may still run on what they were told"
            assert await settle(again, "a", "b", "c") == [11, 10, 10]

    run(scenario())


def test_a_store_that_fails_delays_no_poll_and_has_everything_later() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(manual(31), store) as supervisor:
            store.failure = BROKEN
            assert await settle(supervisor, "a", "b") == [16, 15]
            store.failure = None
            assert list(await store.shares("chat", per_replica=False)) == []
            await settle(supervisor, "a", "b")
            await settle(supervisor, "a", "b")
            held = {share.client: share.requests for share in await store.shares("chat", per_replica=False)}
            assert held == {"a": 16, "b": 15}

    assert "shares not stored yet" in run(scenario())


def test_more_gateways_than_the_cap_are_warned_of_once() -> None:
    async def scenario() -> None:
        async with service(manual(2), MemoryStore()) as supervisor:
            assert await settle(supervisor, "a", "b", "c") == [1, 1, 1]
            await settle(supervisor, "a", "b", "c")
            assert view(supervisor).gateway_clients_over_cap == 1

    assert [event for event in run(scenario()) if event.startswith("more gateways")] == [
        "more gateways than the cap: each has 1, together more than the cap"
    ]


def test_a_long_poll_is_woken_when_its_share_can_grow() -> None:
    async def scenario() -> None:
        async with service(manual(31), MemoryStore()) as supervisor:
            told(supervisor, "a")
            await asyncio.sleep(1.0)
            assert told(supervisor, "b") == [None]
            waiting = asyncio.create_task(supervisor.changed("chat", 60.0))
            await asyncio.sleep(5.0)
            assert waiting.done(), "the plan changed with the joiner"
            waiting = asyncio.create_task(supervisor.changed("chat", 60.0))
            await asyncio.sleep(2.0)
            assert not waiting.done(), "nothing happens, nobody is woken"
            told(supervisor, "a")
            await asyncio.sleep(2 * TICK_S)
            assert waiting.done()
            assert told(supervisor, "b") == [15]

    run(scenario())


def test_a_long_poll_is_woken_when_the_cap_changes_and_when_the_service_stops() -> None:
    async def scenario() -> None:
        async with service(manual(31), MemoryStore()) as supervisor:
            await supervisor.changed("chat", 1.0)
            waiting = asyncio.create_task(supervisor.changed("chat", 600.0))
            await asyncio.sleep(1.0)
            await supervisor.request_sweep("chat", "test")
            await waiting
            last = asyncio.create_task(supervisor.changed("chat", 600.0))
            await asyncio.sleep(300.0)
            last = asyncio.create_task(supervisor.changed("chat", 600.0))
            await asyncio.sleep(1.0)
            before = asyncio.get_running_loop().time()
        await last
        assert asyncio.get_running_loop().time() - before < 5.0

    run(scenario())


def test_a_thousand_waiters_wake_at_most_once_a_tick() -> None:
    async def scenario() -> None:
        keeper, wakes = ShareKeeper(MemoryStore(), LoopClock(), StoreHealth()), 0

        async def wait() -> None:
            nonlocal wakes
            while True:
                await keeper.changed("chat", 60.0)
                wakes += 1

        async with service(manual(500), MemoryStore()) as supervisor:
            waiters = [asyncio.create_task(wait()) for _ in range(1000)]
            for number in range(200):
                keeper.poll(view(supervisor), Poll(f"c{number}"))
            keeper.tick([view(supervisor)])
            await asyncio.sleep(0.0)
            keeper.tick([view(supervisor)])
            await asyncio.sleep(0.01)
            for waiter in waiters:
                waiter.cancel()
        assert wakes <= 1000

    run(scenario())


# ----------------------------------------------------------------------------------------------------------- overrides
def pin(cap: int, seconds: float = 600.0) -> Override:
    now = LoopClock().wall()
    return Override(cap, "incident 7", "ada", now, now + seconds)


def test_an_override_wins_at_once_over_sweeps_and_ends_on_time_on_the_newest_recommendation() -> None:
    async def scenario() -> None:
        async with service(manual(31), MemoryStore()) as supervisor:
            assert await supervisor.override("chat", pin(12))
            assert (view(supervisor).served_cap, view(supervisor).recommendation.state) == (12, State.OVERRIDDEN)
            assert view(supervisor).recommendation.reason == "ada: incident 7"
            assert told(supervisor, "a") == [12]
            await supervisor.request_sweep("chat", "test")
            await asyncio.sleep(120.0)
            now = view(supervisor)
            assert now.recommendation.cap == 12, "the sweep has ended, the pin holds"
            assert now.underlying is not None
            assert (now.underlying.cap, now.underlying.state) == (54, State.CALIBRATED)
            await asyncio.sleep(600.0 - 120.0 - 2 * TICK_S)
            assert view(supervisor).recommendation.cap == 12
            await asyncio.sleep(4 * TICK_S)
            after = view(supervisor)
            assert (after.recommendation.cap, after.recommendation.state) == (54, State.CALIBRATED)
            assert (after.override, after.underlying) == (None, None)

    assert "override expired" in run(scenario())


def test_an_override_loses_to_the_configured_bounds_and_says_so() -> None:
    async def scenario() -> None:
        async with service(manual(31, min_cap=4, max_cap=40), MemoryStore()) as supervisor:
            for asked, served in ((500, 40), (1, 4), (40, 40)):
                await supervisor.override("chat", pin(asked))
                assert view(supervisor).recommendation.cap == served
                assert ("clamped to 4..40" in view(supervisor).recommendation.reason) == (asked != served)

    run(scenario())


def test_an_override_survives_a_restart_and_is_over_if_its_time_came_meanwhile() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(manual(31), store, kill=True) as supervisor:
            await supervisor.override("chat", pin(12, 300.0))
        async with service(manual(31), store) as again:
            assert view(again).recommendation.cap == 12
        await asyncio.sleep(400.0)
        async with service(manual(31), store) as late:
            assert view(late).recommendation.cap == 31
            await asyncio.sleep(1.0)
            assert dict(await store.overrides()) == {}

    run(scenario())


def test_an_override_is_in_force_though_the_store_fails_and_is_written_later() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(manual(31), store) as supervisor:
            store.failure = BROKEN
            assert not await supervisor.override("chat", pin(12))
            assert view(supervisor).recommendation.cap == 12
            store.failure = None
            await asyncio.sleep(10.0)
            assert [one.cap for one in (await store.overrides()).values()] == [12]

    assert "override not stored yet" in run(scenario())


def test_an_override_is_removed_by_hand_once() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(manual(31), store) as supervisor:
            assert not await supervisor.clear_override("chat", "bob")
            await supervisor.override("chat", pin(12))
            await supervisor.override("chat", pin(14))
            assert await supervisor.clear_override("chat", "bob")
            assert view(supervisor).recommendation.cap == 31
            assert dict(await store.overrides()) == {}
            for call in (supervisor.clear_override("nope", "bob"), supervisor.override("nope", pin(3))):
                with pytest.raises(ConfigurationError, match="no backend 'nope'"):
                    await call

    run(scenario())
