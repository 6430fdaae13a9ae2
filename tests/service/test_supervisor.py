"""The service between sweeps, on virtual time: schedule, isolation, exclusivity, restart, store failures."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from structlog.testing import capture_logs
from support import records
from support.fakes import (
    HOUR_S,
    FakeRunner,
    FakeTelemetry,
    Script,
    SlowStore,
    begun,
    given_urls,
    plan,
    telemetry_by_host,
)
from support.memory_store import MemoryStore
from support.virtual_time import run_virtual, ticking

from calibrator.clock import LoopClock
from calibrator.core.admission.schedule import Schedule, Window
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.publish.snapshot import BackendView, Health, State
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import RequestOutcome
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import Grade, SweepOutcome
from calibrator.errors import ConfigurationError, StoreError, UnreachableError
from calibrator.ports.sharing import Poll
from calibrator.ports.store import Store
from calibrator.ports.sweeps import BackendPlan
from calibrator.service.backend.fleet import SCRAPE_LIMIT_S
from calibrator.service.supervisor import Supervisor
from calibrator.service.sweep_scheduler import OVERTIME_S
from calibrator.wiring.supervision import make_supervisor

BROKEN = StoreError("The disk is full.", "Free some space.")
HOURS_TICK_S = 5.0  # where a service is left alone for hours
REFUSED = UnreachableError("Nobody listens at http://chat/v1.", "Start it.")


@dataclass
class Service:
    """A running supervisor with what surrounds it."""

    supervisor: Supervisor
    runner: FakeRunner
    store: Any
    loop_task: asyncio.Task[None] | None = None

    def view(self, name: str = "chat") -> BackendView:
        return self.supervisor.snapshot().backends[name]

    def cap(self, name: str = "chat") -> int:
        return self.view(name).recommendation.cap

    async def sweep_now(self, name: str = "chat") -> str:
        """Ask for one and wait until it ended."""
        sweep_id = await self.supervisor.request_sweep(name, "test")
        await asyncio.sleep(120.0)
        return sweep_id


def service(
    *plans: BackendPlan,
    scripts: Mapping[str, list[Script]] | None = None,
    store: Store | None = None,
    telemetry: Mapping[str, FakeTelemetry] | None = None,
    max_parallel: int = 4,
    first_id: int = 1,
    tick_s: float | None = None,
) -> AbstractAsyncContextManager[Service]:
    """Start, tick, and stop at the end of the block."""

    @asynccontextmanager
    async def running() -> Any:
        clock, numbers = LoopClock(), itertools.count(first_id)
        runner = FakeRunner(clock.wall, dict(scripts or {}))
        used: Any = store or MemoryStore()
        supervisor = make_supervisor(
            plans or (plan(),),
            runner=runner,
            store=used,
            leases=used.leases,
            holder="test",
            clock=clock,
            telemetry=telemetry_by_host(telemetry or {}),
            discovery=given_urls,
            max_parallel=max_parallel,
            draws=random.Random(1),
            new_id=lambda: f"s{next(numbers):04}",
        )
        await supervisor.start()
        stop = asyncio.Event()
        loop_task = asyncio.create_task(ticking(supervisor, stop, tick_s))
        try:
            yield Service(supervisor, runner, used, loop_task)
        finally:
            stop.set()
            await supervisor.stop()
            await loop_task
            assert len(asyncio.all_tasks()) == 1, "nothing is left running"

    return running()


def wall() -> float:
    return LoopClock().wall()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    run_virtual(scenario)


def manual_only(name: str = "chat", **more: Any) -> BackendPlan:
    return plan(name, schedule=Schedule(every_s=1e9, at_start=False), **more)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Rendering the tracebacks of scripted bugs takes longer than the hours that are simulated."""
    with capture_logs():
        yield


# ------------------------------------------------------------------------------------------------------------ schedule
def test_sweeps_keep_their_pace_within_the_jitter() -> None:
    async def scenario() -> None:
        async with service(plan(schedule=Schedule(every_s=600.0, jitter_ratio=0.1)), tick_s=1.0) as running:
            began = wall()
            await asyncio.sleep(8 * HOUR_S)
            starts = running.runner.starts("chat")
            assert starts[0] - began <= 2.0, "at start: found, scraped, swept, a tick each"
            gaps = [after - before - 60.0 for before, after in itertools.pairwise(starts)]
            assert all(540.0 <= gap <= 661.0 for gap in gaps)
            assert max(gaps) - min(gaps) > 60.0, "jittered"
            assert len(starts) == pytest.approx(8 * HOUR_S / 660.0, abs=2)
            assert running.view().counters.sweeps["calibrated"] == len(starts)

    run(scenario())


def test_sweeps_start_only_inside_the_windows() -> None:
    days = tuple(range(7))
    twice = (Window(days, 9 * 60, 9 * 60 + 30), Window(days, 11 * 60, 11 * 60 + 30))
    schedule = Schedule(every_s=1200.0, jitter_ratio=0.0, windows=twice)

    async def scenario() -> None:
        async with service(plan(schedule=schedule), tick_s=HOURS_TICK_S) as running:  # wall time begins at 08:00 UTC
            began = wall()
            assert running.view().next_sweep_at == began + HOUR_S
            await asyncio.sleep(5 * HOUR_S)
            minutes = [int(start - began) // 60 for start in running.runner.starts("chat")]
            assert minutes == [60, 81, 180, 201]

    run(scenario())


def test_a_window_that_closes_while_a_sweep_waits_for_its_turn_is_respected() -> None:
    morning = Schedule(windows=(Window(tuple(range(7)), 8 * 60, 8 * 60 + 10),))

    async def scenario() -> None:
        plans = (plan("a", schedule=morning), plan("b", schedule=morning))
        async with service(
            *plans, scripts={"a": [Script(takes_s=HOUR_S)]}, max_parallel=1, tick_s=HOURS_TICK_S
        ) as running:
            await asyncio.sleep(2 * HOUR_S)
            assert running.runner.starts("b") == []
            assert running.view("b").next_sweep_at == pytest.approx(wall() + 22 * HOUR_S)

    run(scenario())


# ----------------------------------------------------------------------------------------------------------- isolation
@pytest.mark.parametrize(
    "bad",
    [
        Script(outcome=SweepOutcome.ERROR),
        Script(error=REFUSED),
        Script(error=RuntimeError("a bug")),
        Script(error=asyncio.CancelledError()),  # a runner's own confusion
        Script(outcome=SweepOutcome.INCONCLUSIVE),
        Script(hangs=True),
    ],
    ids=["error record", "known error", "bug", "cancelled", "inconclusive", "hangs"],
)
def test_a_bad_backend_does_not_disturb_the_other(bad: Script) -> None:
    async def scenario() -> None:
        hourly = Schedule(every_s=HOUR_S)
        plans = (plan("bad", schedule=hourly), plan("good", schedule=hourly))
        async with service(*plans, scripts={"bad": [bad]}, max_parallel=1, tick_s=HOURS_TICK_S) as running:
            await asyncio.sleep(8 * HOUR_S)
            assert len(running.runner.starts("good")) == pytest.approx(8, abs=2)
            assert running.view("good").health is Health.OK
            assert running.cap("good") == 36
            assert running.cap("bad") == 8, "the fallback"
            assert len(running.runner.starts("bad")) < 15, "never back to back"

    run(scenario())


def test_retries_back_off_after_errors_and_reset_after_a_success() -> None:
    async def scenario() -> None:
        scripts = {"chat": [*[Script(error=REFUSED, takes_s=2.0)] * 4, Script(takes_s=2.0), Script(error=REFUSED)]}
        async with service(scripts=scripts) as running:
            await asyncio.sleep(0.5 * HOUR_S)
            gaps = [round(after - before) for before, after in itertools.pairwise(running.runner.starts("chat"))]
            assert gaps == pytest.approx([62, 122, 242, 482], abs=1)

    run(scenario())


def test_health_says_why_and_what_to_do_and_the_cap_stays() -> None:
    async def scenario() -> None:
        scripts = {"chat": [Script(), Script(error=REFUSED), Script(outcome=SweepOutcome.INCONCLUSIVE)]}
        async with service(manual_only(), scripts=scripts) as running:
            await running.sweep_now()
            assert (running.cap(), running.view().health) == (36, Health.OK)
            await running.sweep_now()
            view = running.view()
            assert (view.recommendation.cap, view.recommendation.state) == (36, State.CALIBRATED)
            assert view.health is Health.ERROR
            assert view.health_reason == "Nobody listens at http://chat/v1. Start it."
            await running.sweep_now()
            assert running.view().health is Health.OK, "it answered, even if nothing could be concluded"

    run(scenario())


def test_an_unexpected_exception_asks_for_a_report() -> None:
    async def scenario() -> None:
        async with service(manual_only(), scripts={"chat": [Script(error=KeyError("stages"))]}) as running:
            sweep_id = await running.sweep_now()
            assert "unexpected KeyError" in running.view().health_reason
            record = await running.supervisor.sweep(sweep_id)
            assert record is not None
            assert (record.outcome, record.remedy) == (SweepOutcome.ERROR, "Please report this bug.")
            assert record.levels, "what was measured stays"

    run(scenario())


def test_a_hanging_sweep_is_given_up_long_after_its_budget() -> None:
    async def scenario() -> None:
        async with service(plan(duration_s=600.0), scripts={"chat": [Script(hangs=True), Script()]}) as running:
            await asyncio.sleep(600.0 + OVERTIME_S - 10.0)
            assert running.view().progress is not None
            await asyncio.sleep(20.0)
            assert running.view().health is Health.ERROR
            assert "given up" in running.view().health_reason
            await asyncio.sleep(300.0)
            assert running.view().health is Health.OK

    run(scenario())


def test_a_bug_in_the_policy_stays_with_its_backend() -> None:
    """Deciding on this record fails; the service and the other backend go on, and nothing runs back to back."""

    async def scenario() -> None:
        hourly = Schedule(every_s=HOUR_S)
        broken = replace(plan("bad", schedule=hourly), policy=replace(PublishPolicy(8), safety_margin_ratio="much"))  # type: ignore[arg-type]
        async with service(broken, plan("good", schedule=hourly), tick_s=HOURS_TICK_S) as running:
            await asyncio.sleep(4 * HOUR_S)
            assert len(running.runner.starts("good")) == pytest.approx(4, abs=1)
            assert "unexpected TypeError" in running.view("bad").health_reason
            assert len(running.runner.starts("bad")) == pytest.approx(4, abs=1)

    run(scenario())


# ----------------------------------------------------------------------------------------------------- exclusivity
def test_one_sweep_per_engine_group_and_a_global_limit() -> None:
    async def scenario() -> None:
        often = Schedule(every_s=300.0)
        plans = [plan(f"b{number}", group=f"g{number // 2}", schedule=often) for number in range(8)]
        async with service(*plans, max_parallel=3, tick_s=HOURS_TICK_S) as running:
            await asyncio.sleep(4 * HOUR_S)
            assert running.runner.most_at_once == 3
            for together in running.runner.shared:
                groups = [int(name[1:]) // 2 for name in together]
                assert len(groups) == len(set(groups)), f"{together} share an engine"
            turns = [len(running.runner.starts(one.name)) for one in plans]
            assert min(turns) >= max(turns) - 3, f"everybody has turns: {turns}"

    run(scenario())


# -------------------------------------------------------------------------------------------------------------- manual
def test_a_sweep_that_was_asked_for_comes_first_and_ignores_windows() -> None:
    async def scenario() -> None:
        never_now = Schedule(windows=(Window(tuple(range(7)), 0, 60),))
        plans = (plan("a"), plan("b"), plan("c", schedule=never_now))
        async with service(*plans, max_parallel=1) as running:
            await asyncio.sleep(30.0)  # a runs, b waits
            sweep_id = await running.supervisor.request_sweep("c", "new model")
            await asyncio.sleep(60.0)
            assert [order.backend for order in running.runner.orders] == ["a", "c"]
            assert running.runner.orders[-1].sweep_id == sweep_id
            await asyncio.sleep(70.0)
            record = await running.supervisor.sweep(sweep_id)
            assert record is not None
            assert record.outcome is SweepOutcome.CALIBRATED

    run(scenario())


def test_what_cannot_be_asked_for() -> None:
    async def scenario() -> None:
        async with service(manual_only("a"), manual_only("b"), max_parallel=1) as running:
            ask = running.supervisor.request_sweep
            with pytest.raises(ConfigurationError, match=r"no backend 'c'\. Configured are: a, b\."):
                await ask("c", "test")
            await ask("a", "test")
            with pytest.raises(ConfigurationError, match="Sweep s0001 of 'a' is queued"):
                await ask("a", "test")
            await asyncio.sleep(1.0)
            with pytest.raises(ConfigurationError, match="Sweep s0001 of 'a' is running"):
                await ask("a", "test")
            await ask("b", "test")
            await asyncio.sleep(1.0)
            with pytest.raises(ConfigurationError, match="Sweep s0002 of 'b' is queued"):
                await ask("b", "test")
            await running.supervisor.stop()
            with pytest.raises(ConfigurationError, match="stopping"):
                await ask("a", "test")

    run(scenario())


# ------------------------------------------------------------------------------------------------------- recalibration
def test_a_scheduled_sweep_starts_from_the_last_capacity_and_one_that_was_asked_for_does_not() -> None:
    async def scenario() -> None:
        async with service(plan(schedule=Schedule(every_s=600.0, jitter_ratio=0.0))) as running:
            await asyncio.sleep(1500.0)
            first, second, *_ = running.runner.orders
            assert first.warm is None
            assert second.warm is not None
            assert second.warm.published == 40, "the capacity, not the cap with its margin"
            await running.supervisor.request_sweep("chat", "new engine")
            await asyncio.sleep(200.0)
            assert running.runner.orders[-1].warm is None

    run(scenario())


def test_after_an_infeasible_sweep_and_after_errors_nothing_new_is_believed() -> None:
    async def scenario() -> None:
        scripts = [Script(), Script(outcome=SweepOutcome.ERROR), Script(outcome=SweepOutcome.INFEASIBLE), Script()]
        schedule = Schedule(every_s=600.0, jitter_ratio=0.0)
        async with service(plan(schedule=schedule), scripts={"chat": scripts}) as running:
            await asyncio.sleep(3000.0)
            warm = [order.warm is not None for order in running.runner.orders[:4]]
            assert warm == [False, True, True, False]

    run(scenario())


def test_a_restart_recalibrates_from_what_is_stored_unless_it_is_about_something_else() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(store=store, tick_s=HOURS_TICK_S):
            await asyncio.sleep(HOUR_S)
        async with service(store=store, first_id=100, tick_s=HOURS_TICK_S) as second:
            await asyncio.sleep(8 * HOUR_S)
            assert second.runner.orders[0].warm is not None
        other = replace(plan(), objectives=(parse_objective("ttft p99 <= 900ms"),))
        async with service(other, store=store, first_id=200, tick_s=HOURS_TICK_S) as third:
            await asyncio.sleep(HOUR_S)
            assert third.runner.orders[0].warm is None

    run(scenario())


# ------------------------------------------------------------------------------------------------------------- restart
def test_a_restart_serves_the_stored_cap_at_once_and_counts_from_the_last_sweep() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(store=store, tick_s=HOURS_TICK_S):
            await asyncio.sleep(2 * HOUR_S)
        async with service(store=store, first_id=100, tick_s=HOURS_TICK_S) as second:
            view = second.view()
            assert (view.recommendation.cap, view.recommendation.state) == (36, State.CALIBRATED)
            assert view.last_sweep is not None
            assert view.last_sweep.sweep_id == "s0001"
            assert view.next_sweep_at == pytest.approx(wall() + 4 * HOUR_S, abs=0.7 * HOUR_S)
            await asyncio.sleep(3 * HOUR_S)
            assert second.runner.orders == []
            await asyncio.sleep(2 * HOUR_S)
            assert len(second.runner.orders) == 1
            assert second.view().counters.sweeps["calibrated"] == 1, "counts this process only"

    run(scenario())


def test_a_restart_under_other_objectives_sweeps_at_once() -> None:
    """What is stored was measured for another promise; until then it is the best that is known."""

    async def scenario() -> None:
        store = MemoryStore()
        async with service(store=store, tick_s=HOURS_TICK_S):
            await asyncio.sleep(2 * HOUR_S)
        stricter = replace(plan(), objectives=(parse_objective("ttft p99 <= 100ms"),))
        async with service(stricter, store=store, first_id=100) as second:
            assert second.cap() == 36
            await asyncio.sleep(1.0)
            assert len(second.runner.orders) == 1

    run(scenario())


def test_a_killed_process_leaves_an_interrupted_sweep_and_its_cap() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(store=store, tick_s=HOURS_TICK_S) as first:
            await asyncio.sleep(HOUR_S)
            order = first.runner.orders[0]
        killed = replace(begun(order), sweep_id="killed", started_at=wall())
        await store.save_sweep(killed)
        async with service(store=store, first_id=100, tick_s=HOURS_TICK_S) as second:
            assert second.cap() == 36
            record = await second.supervisor.sweep("killed")
            assert record is not None
            assert record.outcome is SweepOutcome.INTERRUPTED
            assert record.levels == killed.levels
            last = second.view().last_sweep
            assert last is not None
            assert last.outcome is SweepOutcome.INTERRUPTED

    run(scenario())


@pytest.mark.parametrize(("kills", "first_start_s"), [(0, 0.0), (1, 0.0), (2, 60.0), (4, 240.0)])
def test_sweeps_that_may_be_what_kills_us_are_put_off(kills: int, first_start_s: float) -> None:
    async def scenario() -> None:
        store = MemoryStore()
        for number in range(kills):
            await store.save_sweep(records.sweep(f"k{number}", started_at=1.0, outcome=SweepOutcome.INTERRUPTED))
        async with service(store=store) as running:
            began = wall()
            await asyncio.sleep(HOUR_S)
            assert running.runner.starts("chat")[0] - began == pytest.approx(first_start_s, abs=1.0)

    run(scenario())


def test_a_restart_applies_todays_bounds_and_fallback() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(manual_only("chat"), manual_only("fresh"), store=store) as first:
            await first.sweep_now()
        tighter = PublishPolicy(fallback_cap=3, max_cap=16)
        plans = (manual_only("chat", policy=tighter), manual_only("fresh", policy=tighter))
        async with service(*plans, store=store) as second:
            assert (second.cap("chat"), second.cap("fresh")) == (16, 3)
            assert second.view("chat").recommendation.state is State.CALIBRATED
        async with service(*plans, store=store) as third:
            assert (third.cap("chat"), third.cap("fresh")) == (16, 3)
            assert third.view("chat").recommendation.version == second.view("chat").recommendation.version

    run(scenario())


def test_a_store_that_fails_at_start_ends_the_start() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        store.failure = BROKEN
        with pytest.raises(StoreError, match="disk is full"):
            async with service(store=store):
                pass

    run(scenario())


# ------------------------------------------------------------------------------------------------------ store failures
def test_while_the_store_fails_caps_fall_but_do_not_rise_and_no_record_is_lost() -> None:
    async def scenario() -> None:
        scripts = {"chat": [Script(40), Script(50), Script(10), Script(12)]}
        store = MemoryStore()
        async with service(manual_only(), scripts=scripts, store=store) as running:
            await running.sweep_now()
            store.failure = BROKEN
            ids = [await running.sweep_now()]
            assert running.cap() == 36, "a raise waits"
            ids.append(await running.sweep_now())
            assert running.cap() == 9, "lowered at once"
            ids.append(await running.sweep_now())
            assert running.cap() == 9
            store.failure = None
            await asyncio.sleep(10.0)
            assert running.cap() == 10
            stored = {known.sweep_id: known.outcome for known in await store.sweeps("chat", 10)}
            assert all(stored[one] is SweepOutcome.CALIBRATED for one in ids)
            (latest,) = await store.latest_recommendations()
            assert latest == running.view().recommendation

    run(scenario())


def test_a_database_that_blocks_delays_nobody() -> None:
    """Ten seconds a write, as behind a foreign lock: a lowered cap is served, and the next sweep starts, on time."""

    async def scenario() -> None:
        store = SlowStore()
        scripts = {"a": [Script(20, takes_s=1.0), Script(10, takes_s=1.0)]}
        plans = (manual_only("a"), plan("b", schedule=Schedule(every_s=30.0, jitter_ratio=0.0)))
        async with service(*plans, scripts=scripts, store=store) as running:
            await running.sweep_now("a")
            assert running.cap("a") == 18
            running.runner.orders.clear()
            store.takes_s = 10.0
            await running.supervisor.request_sweep("a", "test")
            await asyncio.sleep(2.0)
            assert running.cap("a") == 9
            await asyncio.sleep(600.0)
            gaps = [after - before for before, after in itertools.pairwise(running.runner.starts("b"))]
            assert gaps == pytest.approx([90.5] * len(gaps), abs=1.0)
            store.takes_s = 0.0

    run(scenario())


def test_who_sees_the_end_of_a_sweep_sees_its_cap_too() -> None:
    async def scenario() -> None:
        store = SlowStore()
        async with service(manual_only(), store=store) as running:
            store.takes_s = 0.5
            await running.supervisor.request_sweep("chat", "test")
            seen: set[tuple[bool, int]] = set()
            for _ in range(10_000):
                await asyncio.sleep(0.01)
                seen.add((running.view().last_sweep is not None, running.cap()))
            assert seen == {(False, 8), (False, 36), (True, 36)}

    run(scenario())


def test_reading_sweeps_says_when_the_store_fails() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(manual_only(), store=store) as running:
            sweep_id = await running.sweep_now()
            store.failure = BROKEN
            with pytest.raises(StoreError):
                await running.supervisor.sweep(sweep_id)
            with pytest.raises(StoreError):
                await running.supervisor.sweeps("chat", 5)
            running_id = await running.supervisor.request_sweep("chat", "test")
            await asyncio.sleep(1.0)
            assert await running.supervisor.sweep(running_id) is not None, "a running one needs no store"

    run(scenario())


# ---------------------------------------------------------------------------------------------------------------- stop
def test_stopping_in_mid_sweep_is_quick_and_leaves_an_interrupted_record() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(store=store, scripts={"chat": [Script(takes_s=1000.0)]}, tick_s=HOURS_TICK_S) as running:
            await asyncio.sleep(600.0)
            before = wall()
            await running.supervisor.stop()
            await running.supervisor.stop()
            assert wall() - before < 2.0
            assert running.runner.running == set()
            await asyncio.sleep(HOUR_S)
            assert len(running.runner.orders) == 1, "nothing more is started"
        (record,) = await store.sweeps("chat", 10)
        assert (record.outcome, record.reason) == (SweepOutcome.INTERRUPTED, "the service was stopped")
        assert record.levels

    run(scenario())


def test_partial_records_are_stored_while_a_sweep_runs() -> None:
    async def scenario() -> None:
        async with service(scripts={"chat": [Script(takes_s=100.0)]}) as running:
            await asyncio.sleep(1.0)
            record = await running.store.sweep("s0001")
            assert (record.outcome, record.levels) == (None, ())
            await asyncio.sleep(60.0)
            record = await running.store.sweep("s0001")
            assert record.outcome is None
            assert record.levels

    run(scenario())


# ------------------------------------------------------------------------------------------------------------ snapshot
def test_the_snapshot_shows_progress_and_counts_every_kind() -> None:
    async def scenario() -> None:
        async with service() as running:
            counters = running.view().counters
            assert set(counters.sweeps) == {outcome.value for outcome in SweepOutcome}
            assert set(counters.probe_requests) == {outcome.value for outcome in RequestOutcome}
            assert set(counters.probe_tokens) == {"prompt", "output"}
            assert not any([*counters.sweeps.values(), *counters.probe_requests.values()])
            assert running.view().recommendation.state is State.FALLBACK
            await asyncio.sleep(10.0)
            view = running.view()
            assert view.progress is not None
            assert (view.probe_in_flight, view.next_sweep_at) == (16, None)
            await asyncio.sleep(100.0)
            running.supervisor.poll("chat", Poll("envoy-1"))
            running.supervisor.poll("chat", Poll("envoy-1", is_waiting=True))
            with pytest.raises(ConfigurationError, match="no backend 'unknown'"):
                running.supervisor.poll("unknown", Poll("envoy-1"))
            await asyncio.sleep(1.0)
            view = running.view()
            assert (view.progress, view.probe_in_flight) == (None, 0)
            assert view.counters.sweeps["calibrated"] == 1
            assert view.counters.probe_requests == {
                "ok": 1490, "violation": 10, "failed": 0, "cancelled": 0, "invalid": 0, "unmeasured": 0
            }  # fmt: skip
            assert view.counters.probe_tokens == {"prompt": 384_000, "output": 96_000}
            assert (view.counters.probe_overload_s, view.counters.gateway_polls) == (1.25, 1)
            assert view.recommendation.grade is Grade.CERTIFIED
            assert running.supervisor.snapshot().generator_lag_s == 0.001

    run(scenario())


def test_up_is_unknown_until_an_engine_has_answered_once() -> None:
    async def scenario() -> None:
        silent, answers = FakeTelemetry(), FakeTelemetry(ServerLoad("vllm", 20.0, 5.0))
        slow, broken = FakeTelemetry(takes_s=1000.0), FakeTelemetry(error=ValueError("a bug"))
        telemetry = {"silent": silent, "answers": answers, "slow": slow, "broken": broken}
        async with service(*(manual_only(name) for name in telemetry), telemetry=telemetry) as running:
            await asyncio.sleep(60.0)
            assert [running.view(name).up for name in telemetry] == [None, True, None, None]
            assert answers.scrapes == pytest.approx(60, abs=2), "a slow neighbour does not slow it down"
            view = running.view("answers")
            assert (view.engine, view.organic_in_flight, view.headroom) == ("vllm", 25.0, -17.0)
            await running.supervisor.request_sweep("answers", "test")
            await asyncio.sleep(5.0)
            assert running.view("answers").organic_in_flight == 9.0, "16 of 25 are ours"
            answers.load = None
            await asyncio.sleep(3.0)
            view = running.view("answers")
            assert (view.up, view.organic_in_flight) == (False, None)
            answers.load, answers.takes_s = ServerLoad("vllm", 1.0), SCRAPE_LIMIT_S + 1.0
            await asyncio.sleep(10.0)
            assert running.view("answers").up is False
            answers.takes_s = 0.5
            await asyncio.sleep(5.0)
            assert running.view("answers").up is True

    run(scenario())


# ------------------------------------------------------------------------------------------ looking back, cancelling
def test_what_was_published_is_told_newest_first_and_survives_a_restart() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with service(manual_only(), scripts={"chat": [Script(40), Script(20)]}, store=store) as first:
            await first.sweep_now()
            await first.sweep_now()
            told = await first.supervisor.recommendations("chat", 2)
            assert [one.cap for one in told] == [18, 36]
            assert [point.cap for point in first.view().trend] == [8, 36, 18]
        async with service(manual_only(), store=store) as second:
            assert [point.cap for point in second.view().trend] == [8, 36, 18]

    run(scenario())


def test_a_lowered_cap_is_told_while_the_database_fails() -> None:
    """It is served at once, so it is part of what was published although the store has not got it yet."""

    async def scenario() -> None:
        async with service(manual_only(), scripts={"chat": [Script(40), Script(20)]}) as running:
            await running.sweep_now()
            add = running.store.add_recommendation

            async def failing(*_: object) -> None:
                raise BROKEN

            running.store.add_recommendation = failing
            await running.sweep_now()
            assert [one.cap for one in await running.supervisor.recommendations("chat", 9)] == [18, 36, 8]
            running.store.add_recommendation = add

    run(scenario())


def test_pollers_are_told_with_their_shares_of_both_caps() -> None:
    async def scenario() -> None:
        async with service(manual_only()) as running:
            running.supervisor.poll("chat", Poll("b"))
            running.supervisor.poll("chat", Poll("a"))
            running.supervisor.poll("chat", Poll("haproxy", per_replica=True))
            await asyncio.sleep(3.0)
            running.supervisor.poll("chat", Poll("b"))
            running.supervisor.poll("chat", Poll("a"))
            told = {(one.client, one.per_replica): one for one in running.supervisor.pollers("chat")}
            assert list(told) == [("a", False), ("b", False), ("haproxy", True)]
            assert [one.share for one in told.values()] == [4, 4, 8]
            assert told["b", False].gap_s == pytest.approx(3.0)
            assert told["haproxy", True].seen_age_s == pytest.approx(3.0)
            await asyncio.sleep(60.0)
            assert running.supervisor.pollers("chat") == []

    run(scenario())


def test_a_person_ends_a_running_sweep_and_it_does_not_come_back_at_once() -> None:
    async def scenario() -> None:
        async with service(plan(), scripts={"chat": [Script(takes_s=600.0)]}) as running:
            await asyncio.sleep(60.0)
            sweep_id = await running.supervisor.cancel_sweep("chat", "Ann")
            await asyncio.sleep(2.0)
            record = await running.supervisor.sweep(sweep_id)
            assert record is not None
            assert (record.outcome, record.reason) == (SweepOutcome.CANCELLED, "cancelled by Ann")
            assert record.trigger == "schedule"
            assert (running.cap(), running.view().counters.sweeps["cancelled"]) == (8, 1)
            assert (running.view().next_sweep_at or 0.0) - running.supervisor.snapshot().taken_at > 5 * HOUR_S

    run(scenario())


def test_a_queued_sweep_is_taken_back_and_without_one_there_is_nothing_to_cancel() -> None:
    async def scenario() -> None:
        plans = (manual_only(), manual_only("other"))
        scripts = {"other": [Script(takes_s=600.0)]}
        async with service(*plans, scripts=scripts, max_parallel=1) as running:
            await running.supervisor.request_sweep("other", "first")
            await asyncio.sleep(5.0)
            queued = await running.supervisor.request_sweep("chat", "second")
            assert running.view().queued == "second"
            assert await running.supervisor.cancel_sweep("chat", "Ann") == queued
            with pytest.raises(ConfigurationError, match=r"No sweep of 'chat' runs or is queued"):
                await running.supervisor.cancel_sweep("chat", "Ann")
            with pytest.raises(ConfigurationError, match="There is no backend 'nope'"):
                await running.supervisor.cancel_sweep("nope", "Ann")
            assert running.runner.starts("chat") == []

    run(scenario())
