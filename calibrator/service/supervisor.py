"""The service between sweeps: one tick decides what is due, starts it, collects what ended, and publishes.

    tick:  collect ended sweeps ─▶ publish ─▶ start due sweeps ─▶ write what waits ─▶ look at the engines

A tick waits for nothing, so it is atomic, and the endless loop around it is trivial. Whatever takes time has a task of
its own: each sweep, each look at an engine's metrics, and the writing to the store. Everything a backend can do wrong
stays with that backend: its errors set its own health, and a sweep that runs far beyond its budget is ended from here,
because it would keep its engine group and its place among `max_parallel`. A valid cap is never removed by an error.

A sweep that said nothing (error, inconclusive) is tried again after a minute, then two, ... at most at the usual pace,
so that nothing causes sweeps back to back; likewise after a restart if the last ones were all interrupted, since they
may be what ended us. Due times count from the last sweep that said something about the objectives configured now.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

import structlog

from calibrator.core.objective import format_duration
from calibrator.core.recommendation import decide, fallback, under_policy
from calibrator.core.schedule import next_due_at, next_open_at, retry_at
from calibrator.core.snapshot import Health, Recommendation, Snapshot
from calibrator.core.sweep_record import SweepOutcome, SweepRecord
from calibrator.errors import CalibratorError, ConfigurationError
from calibrator.ports import BackendPlan, Clock, Store, SweepOrder, SweepRunner, Telemetry
from calibrator.service.backend_state import BackendState, Ear, Wanted, begun
from calibrator.service.publisher import Publisher

TICK_S = 0.25
LOOK_S = 1.0  # between two looks at the engines' own metrics
LOOK_LIMIT_S = 2.0  # a scrape that takes longer counts as no answer
OVERTIME_S = 300.0  # beyond the sweep's own time budget, which does not cover the first look at the backend
STOP_LIMIT_S = 4.0
SWEEPS_READ_AT_START = 20
SAID_SOMETHING = (SweepOutcome.CALIBRATED, SweepOutcome.INFEASIBLE)
SAID_NOTHING = (SweepOutcome.ERROR, SweepOutcome.INTERRUPTED, SweepOutcome.CANCELLED)


class Supervisor:
    """Port `Operator`, and the loop behind it."""

    def __init__(
        self,
        plans: Sequence[BackendPlan],
        *,
        runner: SweepRunner,
        store: Store,
        clock: Clock,
        telemetry: Mapping[str, Telemetry],
        max_parallel: int,
        draws: random.Random,
        new_id: Callable[[], str],
    ) -> None:
        self._states = {plan.name: BackendState(plan) for plan in plans}
        self._runner = runner
        self._store = store
        self._clock = clock
        self._telemetry = telemetry
        self._max_parallel = max_parallel
        self._draws = draws
        self._new_id = new_id
        self._publisher = Publisher(store, clock)
        self._log = structlog.get_logger()
        self._started_at = clock.wall()
        self._looked_s = -LOOK_S
        self._is_ready = False
        self._is_stopping = False

    # --------------------------------------------------------------------------------------------- life cycle
    async def start(self) -> None:
        """Serve what the store remembers, or the fallback. Raises StoreError."""
        now = self._clock.wall()
        interrupted = await self._store.interrupt_running_sweeps(now)
        if interrupted:
            self._log.warning("sweeps of the last run were interrupted", count=interrupted)
        known = {stored.backend: stored for stored in await self._store.latest_recommendations()}
        self._publisher.adopt(stored for stored in known.values() if stored.backend in self._states)
        for name, state in self._states.items():
            self._restore_cap(state.plan, known.get(name), now)
            self._restore_schedule(state, await self._store.sweeps(name, SWEEPS_READ_AT_START), now)
        await self._publisher.flush()
        self._is_ready = True

    def _restore_cap(self, plan: BackendPlan, known: Recommendation | None, now: float) -> None:
        if known is None:
            self._publisher.publish(fallback(plan.name, plan.policy, now))
            return
        today = under_policy(known, plan.policy, now)
        if today is not known:
            self._publisher.publish(today)

    def _restore_schedule(self, state: BackendState, newest_first: Sequence[SweepRecord], now: float) -> None:
        plan = state.plan
        ended = [record for record in newest_first if record.outcome is not None and record.mode == "search"]
        for record in reversed(ended):
            state.remember(record)
            if _is_about(record, plan):
                state.learn(record)
        valid = (record.ended_at for record in ended if record.outcome in SAID_SOMETHING and _is_about(record, plan))
        state.due_at = next_due_at(plan.schedule, next(valid, None), now, self._draws.random())
        killed = sum(1 for _ in takewhile(lambda record: record.outcome is SweepOutcome.INTERRUPTED, ended))
        if killed > 1:  # one may be an ordinary restart
            state.due_at = max(state.due_at, retry_at(plan.schedule, killed - 1, now))

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until told to stop."""
        while not stop.is_set():
            self.tick()
            await self._clock.sleep(TICK_S)

    async def stop(self) -> None:
        """End every sweep, save what they had, start nothing more. May be called again."""
        self._is_stopping = True
        running = [state.running for state in self._states.values() if state.running is not None]
        for sweep in running:
            sweep.cancel()
        if running:
            await asyncio.wait(running, timeout=STOP_LIMIT_S)
        for state in self._states.values():
            if state.running is not None:
                self._guard(self._collect, state)
        await self._publisher.close()
        rest = [task for state in self._states.values() for task in (state.settling, state.looking) if task is not None]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    # --------------------------------------------------------------------------------------------------- tick
    def tick(self) -> None:
        """One round; never raises, whatever a backend, the store or an engine does."""
        for state in self._states.values():
            self._guard(self._attend, state)
        self._start_due()
        self._publisher.write_behind()
        self._look_at_engines()

    def _guard(self, step: Callable[[BackendState], None], state: BackendState) -> None:
        try:
            step(state)
        except Exception as error:  # noqa: BLE001 - one backend's bug must not end the service for all the others
            self._log.exception("unexpected", backend=state.plan.name)
            state.health, state.health_reason = Health.ERROR, f"unexpected {type(error).__name__}: {error}"
            state.due_at = max(state.due_at, self._clock.wall() + state.plan.schedule.every_s)

    def _attend(self, state: BackendState) -> None:
        if state.running is None:
            now = self._clock.wall()
            if state.due_at <= now:  # it waited for its turn: its window may have closed meanwhile
                state.due_at = max(state.due_at, next_open_at(state.plan.schedule, now))
        elif state.running.done():
            self._collect(state)
        elif self._clock.monotonic() > state.must_end_at_s and not state.is_overdue:
            state.is_overdue = True
            state.running.cancel()

    def _start_due(self) -> None:
        """Sweeps that somebody asked for come first, whatever the windows; then the longest due."""
        now = self._clock.wall()
        busy = [state.plan.engine_group for state in self._states.values() if state.running is not None]
        idle = (state for state in self._states.values() if state.running is None)
        due = [state for state in idle if state.wanted is not None or state.due_at <= now]
        for state in sorted(due, key=lambda state: (state.wanted is None, state.due_at)):
            if self._is_stopping or len(busy) >= self._max_parallel:
                return
            if state.plan.engine_group not in busy:
                self._guard(self._start_sweep, state)
                busy.append(state.plan.engine_group)

    def _start_sweep(self, state: BackendState) -> None:
        plan = state.plan
        # Who asks for a sweep wants to know anew; the schedule only asks whether the last answer still holds.
        warm = state.warm_start() if state.wanted is None else None
        wanted, state.wanted = state.wanted or Wanted(self._new_id(), "schedule"), None
        order = SweepOrder(
            sweep_id=wanted.sweep_id,
            backend=plan.name,
            target=plan.target,
            objectives=plan.objectives,
            workload=plan.workload,
            bounds=plan.bounds,
            burst=plan.burst,
            seed=self._draws.getrandbits(31),
            started_at=self._clock.wall(),
            warm=warm,
        )
        state.running_id, state.progress, state.partial = order.sweep_id, None, begun(order)
        state.must_end_at_s, state.is_overdue = self._clock.monotonic() + plan.bounds.duration_s + OVERTIME_S, False
        state.running = asyncio.create_task(self._runner.run(order, Ear(state, self._publisher.keep)))
        self._publisher.keep(state.partial)
        self._log.info("sweep started", backend=plan.name, sweep=order.sweep_id, why=wanted.reason)

    def _collect(self, state: BackendState) -> None:
        """Take in a sweep that ended, in whatever way. The next due time is set before anything can fail."""
        task, partial = state.running, state.partial
        state.running, state.running_id, state.progress, state.partial = None, None, None, None
        if task is None or partial is None:
            return
        record = self._ended_record(task, partial, is_overdue=state.is_overdue)
        self._plan_next(state, record)
        self._set_health(state, record)
        state.learn(record)
        self._publisher.keep(record)
        state.settling = asyncio.create_task(self._settle(state, record))
        state.count(record)
        decided = decide(record, self._publisher.served[state.plan.name], state.plan.policy, self._clock.wall())
        if decided is not None:
            self._publisher.publish(decided)
        self._log.info(
            "sweep ended", backend=state.plan.name, sweep=record.sweep_id, outcome=str(record.outcome),
            why=record.reason, requests=record.requests, duration=format_duration(round(record.duration_s, 1)),
        )  # fmt: skip

    async def _settle(self, state: BackendState, record: SweepRecord) -> None:
        """Who sees that a sweep ended shall also see what it published: so first give the store its chance."""
        await self._publisher.flush()
        state.remember(record)

    def _ended_record(self, task: asyncio.Task[SweepRecord], partial: SweepRecord, *, is_overdue: bool) -> SweepRecord:
        ended = replace(partial, outcome=SweepOutcome.ERROR, ended_at=self._clock.wall())
        if task.done() and not task.cancelled():
            error = task.exception()
            if error is None:
                return task.result()
            if isinstance(error, CalibratorError):
                return replace(ended, reason=error.cause, remedy=error.remedy, error_exit_code=int(error.exit_code))
            self._log.error("sweep failed unexpectedly", backend=partial.backend, exc_info=error)
            return replace(
                ended, reason=f"unexpected {type(error).__name__}: {error}", remedy="Please report this bug."
            )
        if is_overdue:
            remedy = "See whether the backend answers, and whether this machine has time to measure."
            return replace(
                ended, reason="The sweep did not end long after its time budget; it was given up.", remedy=remedy
            )
        return replace(
            ended,
            outcome=SweepOutcome.INTERRUPTED,
            reason="the service was stopped" if self._is_stopping else "the sweep was cancelled",
        )

    def _plan_next(self, state: BackendState, record: SweepRecord) -> None:
        now, schedule = self._clock.wall(), state.plan.schedule
        if record.outcome in SAID_SOMETHING:
            state.failures, state.due_at = 0, next_due_at(schedule, now, now, self._draws.random())
        else:
            state.failures += 1
            state.due_at = retry_at(schedule, state.failures, now, record.duration_s)

    def _set_health(self, state: BackendState, record: SweepRecord) -> None:
        if record.outcome is SweepOutcome.ERROR:
            state.health, state.health_reason = Health.ERROR, f"{record.reason} {record.remedy}".strip()
        elif record.outcome not in SAID_NOTHING:  # even an inconclusive sweep shows that the error is gone
            state.health, state.health_reason = Health.OK, ""

    # ------------------------------------------------------------------------------------------------ engines
    def _look_at_engines(self) -> None:
        """In the background: one slow engine delays neither the tick nor the other engines."""
        now_s = self._clock.monotonic()
        if self._is_stopping or now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        for name, telemetry in self._telemetry.items():
            state = self._states[name]
            if state.looking is None or state.looking.done():
                state.looking = asyncio.create_task(self._look_at(state, telemetry))

    async def _look_at(self, state: BackendState, telemetry: Telemetry) -> None:
        load = None
        try:
            async with asyncio.timeout(LOOK_LIMIT_S):
                load = await telemetry.scrape()
        except TimeoutError:
            pass
        except Exception as error:  # noqa: BLE001 - `scrape` never raises; should it, the engine is unknown for now
            self._log.error("unexpected", backend=state.plan.name, error=repr(error))
        state.look(load)

    # ----------------------------------------------------------------------------------------------- operator
    def snapshot(self) -> Snapshot:
        lags_s = [state.generator_lag_s for state in self._states.values() if state.generator_lag_s is not None]
        served = self._publisher.served
        return Snapshot(
            taken_at=self._clock.wall(),
            started_at=self._started_at,
            backends={name: state.view(served[name]) for name, state in self._states.items() if name in served},
            ready=self._is_ready,
            generator_lag_s=max(lags_s, default=None),
        )

    async def request_sweep(self, backend: str, reason: str) -> str:
        state = self._states.get(backend)
        if state is None:
            raise ConfigurationError(
                f"There is no backend '{backend}'.", f"Configured are: {', '.join(sorted(self._states))}."
            )
        if self._is_stopping:
            raise ConfigurationError("The service is stopping.", "Ask again after its restart.")
        if state.running is not None:
            raise ConfigurationError(f"Sweep {state.running_id} of '{backend}' is running.", "Wait for its end.")
        if state.wanted is not None:
            raise ConfigurationError(f"Sweep {state.wanted.sweep_id} of '{backend}' is queued.", "Wait for its end.")
        state.wanted = Wanted(self._new_id(), reason)
        return state.wanted.sweep_id

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        return await self._publisher.sweeps(backend, limit)

    async def sweep(self, sweep_id: str) -> SweepRecord | None:
        for state in self._states.values():
            if state.running_id == sweep_id and state.partial is not None:
                return state.partial
        return await self._publisher.sweep(sweep_id)

    def count_poll(self, backend: str) -> None:
        if backend in self._states:
            self._states[backend].polls += 1


def _is_about(record: SweepRecord, plan: BackendPlan) -> bool:
    """A sweep for other objectives, another model or other traffic does not put off the next one."""
    measured = record.provenance
    objectives = tuple(str(objective) for objective in plan.objectives)
    return (measured.model, measured.workload, measured.objectives) == (
        plan.target.model, str(plan.workload), objectives
    )  # fmt: skip
