"""Backends with many replicas, on virtual time: which count, which is measured, what is published and served."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.fakes import FakeDiscovery, FakeRunner, FakeTelemetry, Script, plan, telemetry_by_host
from support.memory_store import MemoryStore
from support.virtual_time import run_virtual

from calibrator.clock import LoopClock
from calibrator.core.admission.schedule import Schedule
from calibrator.core.publish.fleet import BALANCED, Balancing, ReplicaPlan
from calibrator.core.publish.snapshot import BackendView, Health, Override, ReplicaStatus, State
from calibrator.core.records.server_load import ServerLoad
from calibrator.errors import ConfigurationError, UnreachableError
from calibrator.ports.sweeps import BackendPlan
from calibrator.service.supervisor import TICK_S, Supervisor
from calibrator.wiring.supervision import make_supervisor

NEVER = Schedule(every_s=1e9, at_start=False)
SCRAPE_PERIOD_S = 1.0


def urls(*names: str) -> tuple[str, ...]:
    return tuple(f"http://{name}/v1" for name in names)


def load(in_flight: float = 0.0, **more: Any) -> ServerLoad:
    return ServerLoad("vllm", in_flight, 0.0, **more)


@dataclass
class Site:
    """A running supervisor, and the engines and name servers around it."""

    engines: dict[str, FakeTelemetry]
    discovery: FakeDiscovery
    runner: FakeRunner
    store: MemoryStore = field(default_factory=MemoryStore)
    supervisor: Supervisor = field(init=False)

    def view(self, name: str = "chat") -> BackendView:
        return self.supervisor.snapshot().backends[name]

    def cap(self, name: str = "chat") -> int:
        return self.view(name).recommendation.cap

    def status(self, name: str = "chat") -> dict[str, ReplicaStatus]:
        return {replica.url.split("/")[2]: replica.status for replica in self.view(name).replicas}

    async def sweep(self, name: str = "chat") -> None:
        await self.supervisor.request_sweep(name, "test")
        await asyncio.sleep(70.0)

    def measured(self) -> list[str]:
        return [order.target.url.split("/")[2] for order in self.runner.orders]


def fleet_plan(name: str = "chat", group: str = "", **more: Any) -> BackendPlan:
    even = {"balancing": Balancing.LEAST_REQUESTS, **more}
    return replace(plan(name, group=group, schedule=NEVER), replicas=ReplicaPlan(**even))


@asynccontextmanager
async def site(
    *names: str, plans: Sequence[BackendPlan] = (), scripts: Sequence[Script] = (), store: MemoryStore | None = None
) -> AsyncIterator[Site]:
    clock, numbers = LoopClock(), itertools.count(1)
    engines = {name: FakeTelemetry(load(4.0)) for name in names}
    runner = FakeRunner(clock.wall, {"chat": list(scripts)} if scripts else {})
    made = Site(engines, FakeDiscovery(urls(*names)), runner, store or MemoryStore())
    made.supervisor = make_supervisor(
        plans or (fleet_plan(),),
        runner=runner,
        store=made.store,
        leases=made.store.leases,
        holder="test",
        clock=clock,
        telemetry=telemetry_by_host(engines),
        discovery=lambda _: made.discovery,
        max_parallel=4,
        draws=random.Random(1),
        new_id=lambda: f"s{next(numbers):04}",
    )
    await made.supervisor.start()
    stop = asyncio.Event()
    loop_task = asyncio.create_task(made.supervisor.run(stop))
    await asyncio.sleep(2.0)
    try:
        yield made
    finally:
        stop.set()
        await made.supervisor.stop()
        await loop_task
        assert len(asyncio.all_tasks()) == 1, "nothing is left running"


def run(scenario: Coroutine[Any, Any, None]) -> None:
    run_virtual(scenario)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


# ------------------------------------------------------------------------------------------------- scaling up and down
def test_from_two_replicas_to_four_as_users_come_or_after_the_delay() -> None:
    async def scenario() -> None:
        async with site("a", "b") as fleet:
            await fleet.sweep()
            two = fleet.cap()
            assert (two, fleet.view().recommendation.replica_cap) == (70, 36)
            fleet.engines |= {"c": FakeTelemetry(load(0.0)), "d": FakeTelemetry(load(0.0))}
            fleet.discovery.urls = urls("a", "b", "c", "d")
            await asyncio.sleep(20.0)
            assert (fleet.cap(), fleet.status()["c"]) == (two, ReplicaStatus.JOINING), "nobody sends them anything yet"
            fleet.engines["c"].load = load(1.0)
            await asyncio.sleep(2.0)
            assert two < fleet.cap() < 2 * two
            await asyncio.sleep(50.0)
            view = fleet.view()
            assert (view.recommendation.cap, view.ready_replicas) == (136, 4)
            assert (view.recommendation.replicas, view.recommendation.state) == (4, State.CALIBRATED)
            assert [stored.cap for stored in await fleet.store.latest_recommendations()] == [136]

    run(scenario())


def test_the_loss_of_one_lowers_the_cap_within_one_scrape_period() -> None:
    async def scenario() -> None:
        async with site("a", "b", "c", "d") as fleet:
            await fleet.sweep()
            four = fleet.cap()
            fleet.engines["b"].load = None
            await asyncio.sleep(SCRAPE_PERIOD_S + 2 * TICK_S)
            assert (fleet.cap(), fleet.view().ready_replicas) == (103, 3)
            assert fleet.status()["b"] is ReplicaStatus.DOWN
            assert fleet.view().up is True
            assert fleet.view().organic_in_flight == 12.0, "of those that answer"
            fleet.engines["b"].load = load(2.0)
            await asyncio.sleep(2.0)
            assert fleet.cap() == four, "it is back, and users are on it"

    run(scenario())


def test_with_no_replica_ready_the_last_cap_stays() -> None:
    async def scenario() -> None:
        async with site("a", "b") as fleet:
            await fleet.sweep()
            known = fleet.view().recommendation
            for engine in fleet.engines.values():
                engine.load = None
            await asyncio.sleep(300.0)
            view = fleet.view()
            assert (view.recommendation, view.ready_replicas, view.up) == (known, 0, False)

    run(scenario())


def test_a_replica_that_hangs_delays_no_look_at_the_others_by_more_than_its_limit() -> None:
    async def scenario() -> None:
        async with site("a", "b") as fleet:
            await fleet.sweep()
            fleet.engines["b"].takes_s = 1000.0
            await asyncio.sleep(4.0)
            assert (fleet.cap(), fleet.status()["b"]) == (36, ReplicaStatus.DOWN)
            before = fleet.engines["a"].scrapes
            await asyncio.sleep(60.0)
            assert fleet.engines["a"].scrapes - before >= 25
            fleet.engines["b"].error, fleet.engines["b"].takes_s = ValueError("a bug"), 0.0
            await asyncio.sleep(10.0)
            assert fleet.cap() == 36

    run(scenario())


def test_a_restart_serves_the_remembered_cap_and_keeps_it() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with site("a", "b", "c", store=store) as fleet:
            await fleet.sweep()
            cap = fleet.cap()
        async with site("a", "b", "c", store=store) as fleet:
            for engine in fleet.engines.values():
                engine.load = load(0.0)
            assert fleet.cap() == cap, "its replicas need not show work again"

    run(scenario())


# ------------------------------------------------------------------------------------------------------------ discovery
def test_a_name_server_that_fails_or_finds_nothing_keeps_the_last_set_marked() -> None:
    async def scenario() -> None:
        async with site("a", "b") as fleet:
            await fleet.sweep()
            known = fleet.view().recommendation
            fleet.discovery.error = UnreachableError("Nobody answers.", "Look.")
            await asyncio.sleep(60.0)
            assert fleet.view().discovery_problem == "Nobody answers. Look."
            fleet.discovery.error, fleet.discovery.urls = None, ()
            await asyncio.sleep(60.0)
            assert fleet.view().discovery_problem == "The name has no addresses."
            assert (fleet.view().recommendation, fleet.view().ready_replicas) == (known, 2)
            fleet.discovery.error = KeyError("a bug")
            await asyncio.sleep(60.0)
            assert "unexpected KeyError" in fleet.view().discovery_problem
            fleet.discovery.error, fleet.discovery.urls = None, urls("b")
            await asyncio.sleep(10.0)
            view = fleet.view()
            assert (view.discovery_problem, view.ready_replicas, view.recommendation.cap) == ("", 1, 36)

    run(scenario())


def test_without_any_replica_found_nothing_is_swept_and_the_reason_is_told() -> None:
    async def scenario() -> None:
        async with site() as fleet:
            fleet.discovery.error = UnreachableError("Nobody answers.", "Look.")
            await asyncio.sleep(30.0)
            await fleet.supervisor.request_sweep("chat", "test")
            await asyncio.sleep(30.0)
            view = fleet.view()
            assert fleet.measured() == []
            assert (view.health, view.health_reason) == (Health.ERROR, "Nobody answers. Look.")
            assert (view.recommendation.cap, view.recommendation.state) == (8, State.FALLBACK)
            fleet.engines["a"] = FakeTelemetry(load(1.0))
            fleet.discovery.error, fleet.discovery.urls = None, urls("a")
            await asyncio.sleep(80.0)
            assert (fleet.measured(), fleet.view().health) == (["a"], Health.OK)

    run(scenario())


# ------------------------------------------------------------------------------------------------------------ measuring
def test_replicas_are_measured_in_turn_the_least_loaded_first() -> None:
    async def scenario() -> None:
        async with site("a", "b", "c") as fleet:
            for name, busy in (("a", 9.0), ("b", 5.0), ("c", 7.0)):
                fleet.engines[name].load = load(busy)
            await asyncio.sleep(2.0)
            for _ in range(4):
                await fleet.sweep()
            assert fleet.measured() == ["b", "c", "a", "b"]

    run(scenario())


def test_an_unmeasured_replica_counts_as_the_smallest_measured_one() -> None:
    async def scenario() -> None:
        async with site("a", "b", "c", scripts=[Script(40), Script(20), Script(60)]) as fleet:
            await fleet.sweep()
            assert fleet.view().recommendation.replica_cap == 36
            await fleet.sweep()
            assert fleet.view().recommendation.replica_cap == 18, "down at once"
            await fleet.sweep()
            assert fleet.view().recommendation.replica_cap == 18, "one larger replica does not speak for the others"
            assert "the smallest replica measured holds 20" in fleet.view().recommendation.reason

    run(scenario())


def test_the_swept_replica_takes_its_probes_off_the_cap_that_is_served() -> None:
    async def scenario() -> None:
        async with site("a", "b") as fleet:
            await fleet.sweep()
            assert (fleet.view().reserved_for_probes, fleet.view().served_cap) == (0, 70)
            await fleet.supervisor.request_sweep("chat", "test")
            await asyncio.sleep(5.0)
            view = fleet.view()
            assert (view.recommendation.cap, view.reserved_for_probes, view.served_cap) == (70, 16, 54)
            assert view.served_replica_cap == 36 - 8
            assert view.probe_in_flight == 16
            now = LoopClock().wall()
            await fleet.supervisor.override("chat", Override(3, "incident 7", "ada", now, now + 10.0))
            view = fleet.view()
            assert (view.served_cap, view.served_replica_cap, view.probe_in_flight) == (3, 1, 16), "a pin is a pin"
            await asyncio.sleep(15.0)
            assert fleet.view().served_cap == 54
            await asyncio.sleep(60.0)
            assert fleet.view().served_cap == 70
        async with site("only") as fleet:  # the fallback of 8 is less than the 16 probes
            await fleet.supervisor.request_sweep("chat", "test")
            await asyncio.sleep(5.0)
            assert (fleet.view().served_cap, fleet.view().served_replica_cap) == (1, 1)

    run(scenario())


def test_replicas_out_of_rotation_are_measured_for_the_whole_fleet() -> None:
    async def scenario() -> None:
        spare = fleet_plan(measure_on=urls("spare", "spare2"))
        async with site("a", "b", plans=[spare]) as fleet:
            await fleet.sweep()
            await fleet.supervisor.request_sweep("chat", "test")
            await asyncio.sleep(5.0)
            view = fleet.view()
            assert fleet.measured() == ["spare", "spare2"]
            assert (view.ready_replicas, view.recommendation.cap) == (2, 70), "it serves nobody, and is not counted"
            assert (view.reserved_for_probes, view.served_cap) == (0, 70), "users lose nothing to it"
            assert view.organic_in_flight == 8.0

    run(scenario())


def test_another_version_is_neither_counted_nor_measured_until_it_is_all_there_is() -> None:
    async def scenario() -> None:
        async with site("a", "b", "c") as fleet:
            for engine in fleet.engines.values():
                engine.load = load(4.0, version="1")
            await asyncio.sleep(2.0)
            await fleet.sweep()
            fleet.engines["a"].load = fleet.engines["b"].load = load(4.0, version="2")
            await asyncio.sleep(2.0)
            apart, ready = ReplicaStatus.MISMATCHED, ReplicaStatus.READY
            assert fleet.status() == {"a": apart, "b": apart, "c": ready}
            assert fleet.cap() == 36
            await fleet.sweep()
            assert fleet.measured()[-1] == "c", "what would be found elsewhere is about another engine"
            fleet.engines["c"].load = load(4.0, version="2")
            await asyncio.sleep(2.0)
            assert set(fleet.status().values()) == {ready}
            assert fleet.view().replicas[0].version == "2"

    run(scenario())


def test_a_load_balancer_is_refused_with_the_reason() -> None:
    async def scenario() -> None:
        async with site("lb") as fleet:
            await fleet.sweep()
            known = fleet.view().recommendation
            for start in ("1", "2", "1"):
                fleet.engines["lb"].load = load(4.0, process_start=start)
                await asyncio.sleep(2.0)
            view = fleet.view()
            assert (view.health, BALANCED in view.health_reason) == (Health.ERROR, True)
            assert view.recommendation == known, "a valid cap is not removed"
            await fleet.supervisor.request_sweep("chat", "test")
            await asyncio.sleep(100.0)
            assert fleet.measured() == ["lb"], "and no further sweep"

    run(scenario())


# --------------------------------------------------------------------------------------------------------- engine group
def test_two_models_on_one_engine_share_one_sweep_and_its_capacity_by_weight() -> None:
    async def scenario() -> None:
        plans = (fleet_plan("chat", "gpu", weight=3.0), fleet_plan("lora", "gpu", weight=1.0))
        shared = tuple(replace(one, target=replace(one.target, url="http://a/v1")) for one in plans)
        async with site("a", plans=shared, scripts=[Script(40), Script(1)]) as fleet:
            await fleet.sweep("lora")
            assert [order.backend for order in fleet.runner.orders] == ["chat"], "the first one measures for both"
            assert (fleet.cap("chat"), fleet.cap("lora")) == (27, 9)
            assert fleet.view("lora").measured_by == "chat"
            assert fleet.view("lora").last_sweep == fleet.view("chat").last_sweep
            assert "25% of the engine group's" in fleet.view("lora").recommendation.reason
            assert len(await fleet.supervisor.sweeps("lora", 5)) == 1
            await fleet.supervisor.request_sweep("chat", "test")
            with pytest.raises(ConfigurationError, match="is queued"):
                await fleet.supervisor.request_sweep("lora", "test")
            await asyncio.sleep(5.0)
            both = fleet.view("chat"), fleet.view("lora")
            assert [view.reserved_for_probes for view in both] == [12, 4]
            assert [view.organic_in_flight for view in both] == [0.0, 0.0], "16 probes are more than the 4 seen"
            await asyncio.sleep(70.0)
            assert (fleet.cap("chat"), fleet.cap("lora")) == (1, 1), "never below one"

    run(scenario())


# --------------------------------------------------------------------------------------------------------------- looks
def test_peaks_and_the_least_headroom_are_of_the_last_minute() -> None:
    async def scenario() -> None:
        async with site("a") as fleet:
            await fleet.sweep()
            fleet.engines["a"].load = load(27.0)
            await asyncio.sleep(2.0)
            fleet.engines["a"].load = load(9.0)
            await asyncio.sleep(50.0)
            view = fleet.view()
            assert (view.organic_in_flight, view.in_flight_peak, view.headroom_min_ratio) == (9.0, 27.0, 0.25)
            await asyncio.sleep(15.0)
            view = fleet.view()
            assert (view.in_flight_peak, view.headroom_min_ratio) == (9.0, 0.75)

    run(scenario())


@pytest.mark.parametrize("told", [None, 4.0], ids=["the sweep cannot tell", "the sweep tells"])
def test_probes_that_come_and_go_are_no_users(told: float | None) -> None:
    """Gauges are late: after a sweep they still count what has ended."""

    async def scenario() -> None:
        async with site("a", scripts=[Script(takes_s=20.0)]) as fleet:
            fleet.runner.organic = told
            await fleet.supervisor.request_sweep("chat", "test")
            fleet.engines["a"].load = load(20.0)  # 16 of ours
            await asyncio.sleep(2.0)
            assert fleet.view().progress is not None
            while fleet.view().progress is not None:
                assert fleet.view().organic_in_flight == 4.0
                await asyncio.sleep(0.5)
            await asyncio.sleep(2.0)
            fleet.engines["a"].load = load(4.0)
            await asyncio.sleep(3.0)
            assert (fleet.view().organic_in_flight, fleet.view().in_flight_peak) == (4.0, 4.0)
            fleet.engines["a"].load = load(9.0)
            await asyncio.sleep(2.0)
            assert (fleet.view().organic_in_flight, fleet.view().in_flight_peak) == (9.0, 9.0)

    run(scenario())


def test_a_sweep_too_short_to_be_seen_leaves_no_users_behind() -> None:
    async def scenario() -> None:
        async with site("a", scripts=[Script(takes_s=0.4)]) as fleet:
            looks = fleet.engines["a"].scrapes
            while fleet.engines["a"].scrapes == looks:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            await fleet.supervisor.request_sweep("chat", "test")
            fleet.engines["a"].load = load(20.0)
            await asyncio.sleep(3.0)
            assert fleet.view().last_sweep is not None
            assert (fleet.view().organic_in_flight, fleet.view().in_flight_peak) == (4.0, 4.0)
            await asyncio.sleep(4.0)
            assert fleet.view().organic_in_flight == 20.0, "these are users"

    run(scenario())


def test_a_measured_balance_replaces_the_stated_one() -> None:
    async def scenario() -> None:
        uneven = fleet_plan(balancing=Balancing.RANDOM)
        async with site("a", "b", plans=[uneven]) as fleet:
            await fleet.sweep()
            assert fleet.cap() == 54
            fleet.engines["a"].load, fleet.engines["b"].load = load(22.0), load(20.0)
            await asyncio.sleep(1000.0)
            recommendation = fleet.view().recommendation
            assert (recommendation.cap, recommendation.replica_cap) == (68, 36)
            assert recommendation.balance_factor == pytest.approx(68 / 72)

    run(scenario())


def test_many_polls_between_two_ticks_make_one_picture() -> None:
    async def scenario() -> None:
        async with site("a") as fleet:
            first = fleet.supervisor.snapshot()
            assert all(fleet.supervisor.snapshot() is first for _ in range(1000))
            await asyncio.sleep(2 * TICK_S)
            assert fleet.supervisor.snapshot() is not first

    run(scenario())
