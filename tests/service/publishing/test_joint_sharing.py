"""Gateways of several calibrators share one cap, on virtual time, however those calibrators start, lead and end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.fakes import Script, plan
from support.instances import Instance, Site
from support.virtual_time import run_virtual

from calibrator.core.admission.schedule import Schedule
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.publish.snapshot import Override
from calibrator.core.sharing.allocator import LEAST_EXPIRY_S
from calibrator.core.sharing.share_cache import FRESH_S
from calibrator.ports.sharing import Poll
from calibrator.service.publishing.shares import JOIN_RETRY_S

CAP = 31
EXCHANGES_S = 4.0  # one instance reports, the leader divides, the other reads


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


def two(scenario: Callable[[Site, Instance, Instance], Coroutine[Any, Any, None]]) -> None:
    """`a` leads."""

    async def run() -> None:
        manual = plan(schedule=Schedule(every_s=1e9, at_start=False), policy=PublishPolicy(fallback_cap=CAP))
        site = Site((manual,), {"chat": [Script()]})
        a = await site.start("a")
        b = await site.start("b")
        await asyncio.sleep(2.0)
        await scenario(site, a, b)
        await site.close()
        assert len(asyncio.all_tasks()) == 1, "nothing is left running"

    run_virtual(run())


def told(instance: Instance, *clients: str) -> list[int | None]:
    return [instance.supervisor.poll("chat", Poll(client)).requests for client in clients]


async def settled(polls: dict[str, Instance], seconds: int = 15) -> list[int | None]:
    """Each asks its own once a second."""
    for _ in range(seconds):
        shares = [told(instance, client)[0] for client, instance in polls.items()]
        await asyncio.sleep(1.0)
    return shares


def test_gateways_of_two_calibrators_share_one_cap_and_may_change_between_them() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        waiting = b.supervisor.poll("chat", Poll("y"))
        assert (waiting.requests, waiting.retry_after_s) == (None, JOIN_RETRY_S)
        assert await settled({"x": a, "y": b}) == [16, 15]
        assert told(a, "y") + told(b, "x") == [15, 16]
        assert a.supervisor.poll("chat", Poll("x")).version == b.supervisor.poll("chat", Poll("x")).version
        assert {a.view().gateway_clients, b.view().gateway_clients} == {2}
        assert [poller.client for poller in a.supervisor.pollers("chat")] == ["x", "y"], "it leads, and knows all"

    two(scenario)


def test_the_replicas_cap_is_divided_apart() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        await settled({"x": a})
        for _ in range(6):
            per_replica = b.supervisor.poll("chat", Poll("haproxy", per_replica=True)).requests
            await asyncio.sleep(1.0)
        assert (per_replica, told(a, "x")) == (CAP, [CAP])

    two(scenario)


def test_a_long_poll_at_the_other_calibrator_hears_of_its_share() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        await settled({"x": a})
        assert told(b, "y") == [None]
        begun_s = asyncio.get_running_loop().time()
        while b.supervisor.poll("chat", Poll("y", is_waiting=True)).requests is None:
            told(a, "x")
            await b.supervisor.changed("chat", 1.0)
        assert asyncio.get_running_loop().time() - begun_s <= 2 * EXCHANGES_S

    two(scenario)


def test_when_the_leader_stops_the_other_divides_on() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        assert await settled({"x": a, "y": b}) == [16, 15]
        await a.stop()
        assert await settled({"x": b, "y": b, "z": b}, 40) == [11, 10, 10]

    two(scenario)


def test_when_the_leader_is_killed_nothing_is_given_twice_and_who_comes_over_keeps_its_share() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        assert await settled({"x": a, "y": b}) == [16, 15]
        await a.kill()
        assert told(b, "x") == [16]
        assert await settled({"x": b, "y": b, "z": b}, int(FRESH_S)) == [16, 15, None]
        shares = await settled({"x": b, "y": b, "z": b}, 40)
        assert b.holds_lease()
        assert shares[:2] == [11, 10]
        assert sum(share or 0 for share in shares) <= CAP - 5, "the dead one told x 16, and may be telling it still"

    two(scenario)


def test_with_the_database_lost_known_shares_go_on_nobody_joins_and_all_is_well_when_it_is_back() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        assert await settled({"x": a, "y": b}) == [16, 15]
        a.cut_off()
        b.cut_off()
        assert await settled({"x": a, "y": b, "z": b}, 60) == [16, 15, None]
        assert b.supervisor.poll("chat", Poll("")).requests == CAP
        a.store.failure = b.store.failure = None
        assert await settled({"x": a, "y": b, "z": b}, 40) == [11, 10, 10]

    two(scenario)


def test_a_pin_lowers_all_at_once_and_raises_after_all_have_heard() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        assert await settled({"x": a, "y": b}) == [16, 15]
        now = a.clock.wall()
        await b.supervisor.override("chat", Override(12, "incident 7", "ada", now, now + 60.0))
        assert told(b, "y")[0] == 12, "no more than the cap from the first moment"
        assert await settled({"x": a, "y": b}, 8) == [6, 6]
        assert await settled({"x": a, "y": b}, 70) == [16, 15]

    two(scenario)


def test_who_leaves_is_forgotten_by_all() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        assert await settled({"x": a, "y": b}) == [16, 15]
        assert await settled({"x": a}, int(2 * LEAST_EXPIRY_S) + 6) == [CAP]
        assert b.view().gateway_clients == 1

    two(scenario)
