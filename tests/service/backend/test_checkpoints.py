"""What the watches know outlives the service: stopped, killed, with a clock that was set, with a damaged store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest
from structlog.testing import capture_logs
from support.live_traffic import Users, lognormal
from support.memory_store import MemoryStore
from support.virtual_time import run_virtual
from support.watched_site import CHAT, Site, SteppedClock, site

from calibrator.core.admission.schedule import Schedule
from calibrator.core.workload.mirror import NAME, MirrorPolicy
from calibrator.errors import StoreError
from calibrator.ports.sweeps import BackendPlan

HOUR_S = 3600
ONCE = replace(CHAT, schedule=Schedule(every_s=5e6, jitter_ratio=0.0))


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[dict[str, object]]]:
    with capture_logs() as seen:
        yield seen  # type: ignore[misc] # structlog's entries are mappings of its own making


def reasons(logs: list[dict[str, object]]) -> list[str]:
    return [str(entry["why"]) for entry in logs if entry["event"] == "sweep started"]


class Life:
    """One store, one engine, one clock, and services that come and go."""

    def __init__(self) -> None:
        self.store, self.users, self.clock = MemoryStore(), Users(), SteppedClock()
        self.runs = iter("abcdefghijk")

    def site(
        self, *estimates: int, known: BackendPlan = CHAT, takes_s: float = 60.0
    ) -> AbstractAsyncContextManager[Site]:
        run = next(self.runs)
        return site(known, *estimates, store=self.store, users=self.users, clock=self.clock, run=run, takes_s=takes_s)


@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
def test_a_sweep_after_an_engine_restart_that_was_interrupted_never_raises_when_it_is_repeated(
    *,
    is_killed: bool,
    logs: list[dict[str, object]],
) -> None:
    async def scenario() -> None:
        life = Life()
        async with life.site(40) as here:
            await here.pass_(600)
        async with life.site(90, takes_s=500.0) as here:
            here.users.restart("2")
            await here.pass_(900)
            assert here.runner.running, "the sweep after the restart has begun"
            here.is_killed = is_killed
        async with life.site(90) as here:
            here.supervisor.states["chat"].slot.due_at = here.clock.wall() + 100.0  # the schedule comes first
            await here.pass_(200)
            assert [order.warm is None for order in here.runner.orders] == [False]
            assert here.cap == 36, "on a fresh engine nothing is raised, whoever starts the sweep"
            here.supervisor.states["chat"].slot.due_at = here.clock.wall() + 100.0
            await here.pass_(200)
            assert here.cap > 36, "the restart is answered: the next one may"

    run_virtual(scenario())
    assert [why.partition(":")[0] for why in reasons(logs)] == ["schedule", "restart", "schedule", "schedule"]


def test_a_restart_that_waits_to_be_measured_is_not_forgotten(logs: list[dict[str, object]]) -> None:
    async def scenario() -> None:
        life = Life()
        async with life.site(40) as here:
            await here.pass_(1000)
            here.users.restart("2")
            await here.pass_(60)
            here.is_killed = True
        async with life.site(20) as here:
            await here.pass_(700)
            assert here.cap == 18

    run_virtual(scenario())
    assert reasons(logs)[1] == "restart: http://chat/v1 started anew"


@pytest.mark.parametrize("tells_start", [True, False], ids=["by its start", "by its counters"])
def test_an_engine_that_restarted_while_the_service_was_down_is_seen(
    *,
    tells_start: bool,
    logs: list[dict[str, object]],
) -> None:
    async def scenario() -> None:
        life = Life()
        life.users.process_start = "1" if tells_start else None
        async with life.site(40) as here:
            await here.pass_(1000)
        life.users.restart("2" if tells_start else None)
        async with life.site(90) as here:
            await here.pass_(700)
            assert here.cap == 36

    run_virtual(scenario())
    assert reasons(logs) == ["schedule", "restart: http://chat/v1 started anew"]


@pytest.mark.parametrize("step_s", [0.0, 30 * 86_400.0, -30 * 86_400.0], ids=["steady", "a month on", "a month back"])
def test_cool_downs_survive_restarts_whatever_the_wall_clock_does(step_s: float, logs: list[dict[str, object]]) -> None:
    """The engine and the service restart every quarter of an hour, the service's clock is set meanwhile."""

    async def scenario() -> None:
        life = Life()
        async with life.site(40) as here:
            await here.pass_(1000)
        for number in range(7):
            life.users.restart(str(number + 2))
            life.clock.step_s += step_s
            async with life.site(40, known=ONCE) as here:
                await here.pass_(1000)

    run_virtual(scenario())
    triggered = [why for why in reasons(logs) if why.startswith("restart")]
    assert len(triggered) == 2, "two hours, one an hour: neither released by a step nor blocked for ever"


def test_live_traffic_and_the_reference_of_drift_survive(logs: list[dict[str, object]]) -> None:
    async def scenario() -> None:
        life = Life()
        policy = replace(CHAT.triggers, drift_over_s=1000.0)
        mirror = replace(CHAT, mirror=MirrorPolicy(), schedule=Schedule(every_s=HOUR_S), triggers=policy)
        async with life.site(40, known=mirror) as here:
            await here.pass_(HOUR_S - 600)
        async with life.site(40, known=mirror) as here:
            await here.pass_(1200)
            (order,) = here.runner.orders
            assert [one.name for one in order.workload.classes] == [NAME], "mirrored at once"
            here.is_killed = True
        here.users.prompt = lognormal(1500, 0.7)
        async with life.site(40, known=mirror) as here:
            await here.pass_(2000)

    run_virtual(scenario())
    assert reasons(logs)[2].startswith("drift: prompts changed")


def test_a_damaged_checkpoint_is_logged_and_left_alone(logs: list[dict[str, object]]) -> None:
    async def scenario() -> None:
        life = Life()
        async with life.site(40) as here:
            await here.pass_(1000)
        documents = await life.store.checkpoints("chat")
        assert set(documents) == {"triggers", "traffic", "guard"}
        odd_slice = {"ago_s": 1.0, "rest": {}, "prompts": {"bounds": 7, "parts": [1]}}
        misfit = {"bounds": [[1.0, "Infinity"]], "slices": [odd_slice]}
        for kind, text in {"triggers": "{", "traffic": json.dumps(misfit), "guard": '{"resweep_wait_s": "x"}'}.items():
            await life.store.save_checkpoint("chat", kind, text)
        await life.store.save_checkpoint("chat", "of a later release", "{}")
        async with life.site(40) as here:
            await here.pass_(1000)
            assert here.cap == 36

    run_virtual(scenario())
    told = [entry["kind"] for entry in logs if entry["event"] == "checkpoint unreadable: begun anew"]
    assert sorted(map(str, told)) == ["guard", "traffic", "triggers"]


def test_a_database_that_fails_is_tried_again(logs: list[dict[str, object]]) -> None:
    async def scenario() -> None:
        life = Life()
        async with life.site(40) as here:
            await here.pass_(600)
            life.store.failure = StoreError("The disk is full.")
            here.users.restart("2")
            await here.pass_(60)
            life.store.failure = None
            await here.pass_(20)
            here.is_killed = True
        assert '"restart"' in (await life.store.checkpoints("chat"))["triggers"]

    run_virtual(scenario())
    assert any(entry["event"] == "checkpoint not stored yet" for entry in logs)
