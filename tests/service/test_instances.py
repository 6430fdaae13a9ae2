"""Several calibrators on one database, on virtual time: one measures, all serve the same, none is ever in two minds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.fakes import FakeTelemetry, Script, plan
from support.instances import Instance, Site, until
from support.virtual_time import run_virtual

from calibrator.core.admission.schedule import Schedule
from calibrator.core.publish.snapshot import Override, State
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import SweepOutcome
from calibrator.errors import ConfigurationError
from calibrator.ports.sweeps import BackendPlan
from calibrator.service.publishing.publisher import VERSION_GAP

LEASE_S = 15.0
NEWS_S = 2.0  # contract: all instances serve the same within this time of a change
LONG = Script(takes_s=300.0)
MANUAL = Schedule(every_s=1e9, at_start=False)
HOURLY = Schedule(every_s=3600.0, jitter_ratio=0.0)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


async def calibrate(holder: Instance) -> None:
    """Its first sweep is asked for, and over."""
    await holder.supervisor.request_sweep("chat", "test")
    await until(lambda: holder.cap() == 36, 70.0)


def two(
    scenario: Callable[[Site, Instance, Instance], Coroutine[Any, Any, None]],
    *scripts: Script,
    schedule: Schedule = MANUAL,
    others: tuple[BackendPlan, ...] = (),
    telemetry: FakeTelemetry | None = None,
    tick_s: float | None = None,
) -> None:
    """`a` starts first, so it leads; judged at the end whatever the scenario looked at."""

    async def run() -> None:
        site = Site(
            (plan(schedule=schedule), *others),
            {"chat": list(scripts or (Script(),)), **{one.name: [LONG] for one in others}},
            {} if telemetry is None else {"chat": telemetry},
            tick_s=tick_s,
        )
        a = await site.start("a")
        b = await site.start("b")
        await asyncio.sleep(2.0)
        await scenario(site, a, b)
        assert site.overlaps() == []
        assert site.epochs() == sorted(site.epochs())
        assert site.unfounded_raises() == []
        await site.close()
        assert len(asyncio.all_tasks()) == 1, "nothing is left running"

    run_virtual(run())


# ------------------------------------------------------------------------------------------------------------ together
def test_one_measures_and_both_serve_the_same_within_two_seconds() -> None:
    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        assert (a.holds_lease(), b.holds_lease()) == (True, False)
        assert (a.cap(), b.cap()) == (8, 8), "the fallback"
        await calibrate(a)
        assert await until(lambda: b.cap() == 36, NEWS_S) <= NEWS_S
        assert b.view().recommendation == a.view().recommendation
        await asyncio.sleep(NEWS_S)
        last = b.view().last_sweep
        assert last is not None
        assert last.outcome is SweepOutcome.CALIBRATED
        assert [probing.instance for probing in site.log] == ["a"]

    two(scenario)


def test_schedules_are_kept_by_the_holder_alone() -> None:
    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        await asyncio.sleep(3 * 3600.0)
        assert {probing.instance for probing in site.log} == {"a"}
        assert len(site.log) == pytest.approx(3, abs=1)
        due = b.view().next_sweep_at
        assert due is not None
        assert due > a.clock.wall() - 60.0, "the other one knows about when"

    two(scenario, schedule=HOURLY, tick_s=5.0)


def test_a_follower_of_an_empty_database_serves_a_fallback_that_names_no_version() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        await a.stop()
        a.store.database.recommendations.clear()
        b.cut_off()  # it cannot take over
        fresh = Site((plan(schedule=MANUAL),), {"chat": [Script()]}, database=a.store.database)
        fresh.database.leases["chat"].holder, fresh.database.leases["chat"].expires_at = "x", 1e12
        late = await fresh.start("late")
        assert (late.cap(), late.view().recommendation.version) == (8, 0)
        await fresh.close()

    two(scenario)


def test_a_running_sweep_is_seen_everywhere_and_lowers_what_everybody_serves() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        await a.supervisor.request_sweep("chat", "test")
        await until(lambda: a.view().reserved_for_probes > 0, 5.0)
        await until(lambda: b.view().reserved_for_probes == a.view().reserved_for_probes, NEWS_S)
        assert b.view().served_cap == a.view().served_cap < b.view().recommendation.cap
        progress = b.view().progress
        assert progress is not None
        assert progress.sweep_id == a.runner.orders[0].sweep_id
        await a.supervisor.cancel_sweep("chat", "jo")
        await until(lambda: b.view().progress is None, NEWS_S + 1.0)
        assert b.view().served_cap == b.view().recommendation.cap

    two(scenario, LONG, telemetry=FakeTelemetry(ServerLoad(engine="vllm", running_requests=0.0)))


# ------------------------------------------------------------------------------------------------------------ operators
def test_a_sweep_asked_for_at_a_follower_runs_at_the_holder_under_its_id() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        sweep_id = await b.supervisor.request_sweep("chat", "new model")
        await until(lambda: bool(a.runner.orders), NEWS_S)
        assert a.runner.orders[0].sweep_id == sweep_id
        await until(lambda: b.view().progress is not None, NEWS_S)
        with pytest.raises(ConfigurationError, match=f"{sweep_id} of 'chat' is running"):
            await b.supervisor.request_sweep("chat", "again")
        assert await b.supervisor.cancel_sweep("chat", "jo") == sweep_id
        await until(lambda: b.view().progress is None, NEWS_S + 1.0)
        record = await b.supervisor.sweep(sweep_id)
        assert record is not None
        assert (record.outcome, record.reason) == (SweepOutcome.CANCELLED, "cancelled by jo")
        with pytest.raises(ConfigurationError, match="No sweep of 'chat' runs"):
            await b.supervisor.cancel_sweep("chat", "jo")

    two(scenario, LONG)


def test_a_pin_set_anywhere_is_served_everywhere() -> None:
    async def scenario(_: Site, a: Instance, b: Instance) -> None:
        now = b.clock.wall()
        assert await b.supervisor.override("chat", Override(5, "incident", "jo", now, now + 600.0))
        assert b.cap() == 5
        await until(lambda: a.cap() == 5, NEWS_S)
        assert a.view().recommendation.state is State.OVERRIDDEN
        assert await a.supervisor.clear_override("chat", "jo")
        await until(lambda: b.cap() == 8, NEWS_S)
        for at, other, cap in ((a, b, 4), (b, a, 3)):
            await at.supervisor.override("chat", Override(cap, "again", "jo", now, now + 600.0))
            await until(lambda other=other, cap=cap: other.cap() == cap, NEWS_S)  # type: ignore[misc] # bound per turn
        await asyncio.sleep(600.0)
        assert (a.cap(), b.cap()) == (8, 8), "it has ended by itself"

    two(scenario)


# ------------------------------------------------------------------------------------------------------------ take-over
def test_a_clean_stop_hands_over_at_once() -> None:
    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        await calibrate(a)
        await a.supervisor.request_sweep("chat", "test")
        await asyncio.sleep(5.0)
        await a.stop()
        assert site.log[-1].to_s is not None
        assert await until(b.holds_lease, NEWS_S) <= NEWS_S
        assert b.cap() == 36
        record = await b.supervisor.sweep("s0002")
        assert record is not None
        assert (record.outcome, record.reason) == (SweepOutcome.INTERRUPTED, "the service was stopped")

    two(scenario)


def test_a_killed_holder_is_followed_within_two_leases_and_nothing_is_lost() -> None:
    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        await calibrate(a)
        await a.supervisor.request_sweep("chat", "test")
        await asyncio.sleep(5.0)
        await a.kill()
        assert b.view().reserved_for_probes == 0 or b.view().served_cap < 36
        assert await until(b.holds_lease, 2 * LEASE_S) < 2 * LEASE_S
        assert b.cap() == 36
        record = await b.supervisor.sweep("s0002")
        assert record is not None
        assert record.outcome is SweepOutcome.INTERRUPTED
        assert b.view().progress is None
        await b.supervisor.request_sweep("chat", "test")
        await until(lambda: b.view().recommendation.sweep_id == "s0003", 70.0)
        versions = sorted(version for _, version in site.database.recommendations)
        assert versions[-1] - versions[-2] > VERSION_GAP, "what the dead one gave out names nothing else"

    two(scenario)


def test_a_holder_paused_in_mid_sweep_has_stopped_probing_before_another_begins() -> None:
    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        await until(lambda: bool(site.log), 5.0)
        await asyncio.sleep(7.0)
        a.pause()
        await until(b.holds_lease, 2 * LEASE_S)
        await until(lambda: len(site.log) > 1, 120.0)
        assert [probing.instance for probing in site.log] == ["a", "b"]
        a.resume()
        await asyncio.sleep(3.0)
        assert (a.holds_lease(), b.holds_lease()) == (False, True)
        await until(lambda: b.cap() == 36, 400.0)
        await until(lambda: a.cap() == 36, NEWS_S)

    two(scenario, LONG, schedule=HOURLY)


def test_what_a_paused_holder_was_about_to_publish_is_refused() -> None:
    """It sleeps from before its sweep ended until long after another took over."""

    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        await a.supervisor.request_sweep("chat", "test")
        await asyncio.sleep(56.0)
        a.pause()
        await until(b.holds_lease, 2 * LEASE_S)
        a.resume()
        await asyncio.sleep(10.0)
        assert site.stored_caps() == [8]
        assert (a.cap(), b.cap()) == (8, 8)

    two(scenario)


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
@pytest.mark.parametrize("whose", ["holder", "other", "both"])
def test_a_step_of_a_wall_clock_moves_no_lease(whose: str, step_s: float) -> None:
    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        await a.supervisor.request_sweep("chat", "test")
        await asyncio.sleep(5.0)
        for one in (a, b):
            one.clock.step_s = step_s if whose == "both" or (one is a) == (whose == "holder") else 0.0
        for _ in range(50):
            await asyncio.sleep(1.0)
            assert (a.holds_lease(), b.holds_lease()) == (True, False)
        await asyncio.sleep(10.0)
        assert (a.cap(), b.cap()) == (36, 36)
        assert [probing.instance for probing in site.log] == ["a"]

    two(scenario)


# ----------------------------------------------------------------------------------------------------- a lost database
def test_with_the_database_lost_for_all_the_caps_stay_marked_and_nothing_is_measured() -> None:
    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        await a.supervisor.request_sweep("chat", "test")
        await until(lambda: b.cap() == 36, 70.0)
        await a.supervisor.request_sweep("chat", "test")
        await asyncio.sleep(5.0)
        a.cut_off()
        b.cut_off()
        await asyncio.sleep(LEASE_S * 2 / 3 + 1.0)
        assert site.log[-1].to_s is not None, "the sweep ended with the validity of its lease"
        await asyncio.sleep(600.0)
        assert len(site.log) == 2
        for one in (a, b):
            view = one.view()
            assert (view.recommendation.cap, view.lease_held) == (36, False)
            assert "cannot be reached" in view.store_problem
        a.reconnect()
        b.reconnect()
        await until(lambda: a.holds_lease() or b.holds_lease(), 2 * LEASE_S)
        await until(lambda: not a.view().store_problem and not b.view().store_problem, 10.0)
        assert (a.cap(), b.cap()) == (36, 36)

    two(scenario)


def test_a_holder_that_alone_lost_the_database_stops_before_the_other_begins() -> None:
    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        await until(lambda: bool(site.log), 5.0)
        a.cut_off()
        await until(lambda: not a.holds_lease(), LEASE_S)
        await until(b.holds_lease, 2 * LEASE_S)
        await until(lambda: len(site.log) > 1, 120.0)
        a.reconnect()
        await asyncio.sleep(NEWS_S)
        progress = a.view().progress
        assert progress is not None, "it sees the other one's sweep"
        await until(lambda: not a.view().store_problem, 10.0)

    two(scenario, LONG, schedule=HOURLY)


def test_a_raise_that_could_not_be_stored_is_stored_when_nobody_took_over_meanwhile() -> None:
    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        await a.supervisor.request_sweep("chat", "test")
        await asyncio.sleep(57.0)
        a.cut_off()
        b.cut_off()
        await asyncio.sleep(60.0)
        assert a.view().counters.sweeps["calibrated"] == 1
        assert a.cap() == 8, "not served before it is stored"
        a.reconnect()
        await until(lambda: a.cap() == 36, 15.0)
        assert site.stored_caps() == [8, 36]
        b.reconnect()
        await until(lambda: b.cap() == 36, NEWS_S + 5.0)

    two(scenario)


def test_a_lowering_that_only_the_old_holder_served_reaches_everybody() -> None:
    """It was safe to serve at once, and could not be stored; the new holder must not undo it without evidence."""

    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        await a.supervisor.request_sweep("chat", "test")
        await until(lambda: b.cap() == 36, 70.0)
        await a.supervisor.request_sweep("chat", "test")
        await asyncio.sleep(57.0)
        a.cut_off()
        await until(lambda: a.cap() == 9, 10.0)
        await until(b.holds_lease, 2 * LEASE_S)
        assert b.cap() == 36, "it cannot know"
        a.reconnect()
        for _ in range(100):
            await asyncio.sleep(0.1)
            assert a.cap() == 9
        assert b.cap() == 9
        assert site.stored_caps() == [8, 36, 9]
        assert site.epochs() == [1, 1, 2]

    two(scenario, Script(), Script(estimate=10))


def test_a_lowering_is_void_once_the_new_holder_has_measured() -> None:
    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        await a.supervisor.request_sweep("chat", "test")
        await until(lambda: b.cap() == 36, 70.0)
        await a.supervisor.request_sweep("chat", "test")
        await asyncio.sleep(57.0)
        a.cut_off()
        await until(lambda: a.cap() == 9, 10.0)
        await until(b.holds_lease, 2 * LEASE_S)
        await b.supervisor.request_sweep("chat", "test")
        await until(lambda: b.cap() == 27, 70.0)
        assert a.cap() == 9
        a.reconnect()
        await until(lambda: a.cap() == 27, 10.0)
        assert site.stored_caps() == [8, 36, 27]

    two(scenario, Script(), Script(estimate=10), Script(estimate=30))


def test_a_sweep_that_a_person_asked_for_is_not_forgotten_with_the_lease() -> None:
    """It waited for its turn behind the one that the old holder was running."""

    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        twin = await a.supervisor.request_sweep("twin", "test")
        sweep_id = await a.supervisor.request_sweep("chat", "mine")
        await until(lambda: bool(site.log), 5.0)
        first, waiting = (twin, sweep_id) if site.log[0].backend == "twin" else (sweep_id, twin)
        assert [order.sweep_id for order in a.runner.orders] == [first]
        a.cut_off()
        await until(b.holds_lease, 2 * LEASE_S)
        a.reconnect()
        await until(lambda: waiting in [order.sweep_id for order in b.runner.orders], 2 * NEWS_S)

    two(scenario, LONG, others=(plan("twin", group="chat", schedule=MANUAL),))


# ------------------------------------------------------------------------------------------------------------- groups
def test_each_engine_group_has_a_lease_of_its_own() -> None:
    async def scenario(site: Site, a: Instance, b: Instance) -> None:
        lease = site.database.leases["other"]
        site.database.leases["other"] = replace(lease, holder="", expires_at=0.0)  # as if it had been let go
        await until(lambda: b.holds_lease("other") or a.holds_lease("other"), 2 * LEASE_S)
        assert a.holds_lease("chat")

    two(scenario, others=(plan("other", schedule=MANUAL),))
