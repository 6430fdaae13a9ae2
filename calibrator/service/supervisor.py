"""The service between sweeps: one tick decides what is due, starts it, collects what ended, and publishes.

    tick:  collect ended sweeps ─▶ publish ─▶ start due sweeps ─▶ save partial records ─▶ look at the engines

The endless loop around `tick` is trivial. Everything a backend can do wrong stays with that backend: its sweep runs in
a task of its own, its metrics are read concurrently and with a bound, and its errors set its own health. A valid cap is
never removed by an error.

One sweep runs per engine group, and at most `max_parallel` in all. A sweep that said nothing (error, inconclusive) is
tried again after a minute, then two, ... at most at the usual pace, so that nothing causes sweeps back to back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from calibrator.core.measurement import History
from calibrator.core.objective import format_duration
from calibrator.core.recommendation import decide, fallback, reclamped
from calibrator.core.schedule import is_allowed, next_due_at, retry_at
from calibrator.core.server_load import ServerLoad
from calibrator.core.snapshot import Health, Recommendation, Snapshot
from calibrator.core.sweep_record import Provenance, SweepOutcome, SweepRecord
from calibrator.errors import CalibratorError, ConfigurationError, ExitCode, StoreError
from calibrator.ports import BackendPlan, Clock, Store, SweepOrder, SweepRunner, Telemetry
from calibrator.service.backend_state import BackendState, Ear, Wanted
from calibrator.service.publisher import Publisher

TICK_S = 0.25
LOOK_S = 1.0  # between two looks at the engines' own metrics
LOOK_LIMIT_S = 2.0  # a scrape that takes longer counts as no answer
STOP_LIMIT_S = 4.0
SAID_SOMETHING = (SweepOutcome.CALIBRATED, SweepOutcome.INFEASIBLE)


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
        self._publisher = Publisher(store)
        self._log = structlog.get_logger()
        self._started_at = clock.wall()
        self._looked_s = -LOOK_S
        self._looking: asyncio.Task[None] | None = None
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
            await self._start_backend(state, known.get(name), now)
        self._is_ready = True

    async def _start_backend(self, state: BackendState, known: Recommendation | None, now: float) -> None:
        plan = state.plan
        if known is None:
            await self._publisher.publish(fallback(plan.name, plan.policy, now))
        else:
            clamped = reclamped(known, plan.policy, now)
            if clamped is not known:
                await self._publisher.publish(clamped)
        for record in reversed(await self._store.sweeps(plan.name, 20)):
            if record.outcome is not None and record.mode == "search":
                state.remember(record)
        ended_at = max((state.last_at.get(outcome.value, 0.0) for outcome in SAID_SOMETHING), default=0.0)
        state.due_at = next_due_at(plan.schedule, ended_at or None, now, self._draws.random())

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until told to stop."""
        while not stop.is_set():
            await self.tick()
            await self._clock.sleep(TICK_S)

    async def stop(self) -> None:
        """End every sweep, save what they had, start nothing more."""
        self._is_stopping = True
        running = [state for state in self._states.values() if state.running is not None]
        tasks = [state.running for state in running if state.running is not None]
        for task in [*tasks, *([self._looking] if self._looking is not None else [])]:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_LIMIT_S)
        for state in running:
            await self._collect(state)
        await self._publisher.retry()

    # --------------------------------------------------------------------------------------------------- tick
    async def tick(self) -> None:
        """One round; never raises, whatever a backend, the store or an engine does."""
        for state in self._states.values():
            if state.running is not None and state.running.done():
                await self._collect(state)
        if self._publisher.is_behind:
            await self._publisher.retry()
        for state in sorted(self._states.values(), key=lambda state: (state.wanted is None, state.due_at)):
            if self._may_start(state):
                self._start_sweep(state)
        for state in self._states.values():
            if not state.partial_is_saved and state.partial is not None:
                state.partial_is_saved = await self._save(state.partial)
        self._look_at_engines()

    def _may_start(self, state: BackendState) -> bool:
        if self._is_stopping or state.running is not None:
            return False
        now = self._clock.wall()
        if state.wanted is None and (now < state.due_at or not is_allowed(state.plan.schedule, now)):
            return False
        running = [other for other in self._states.values() if other.running is not None]
        if len(running) >= self._max_parallel:
            return False
        return all(other.plan.engine_group != state.plan.engine_group for other in running)

    def _start_sweep(self, state: BackendState) -> None:
        plan = state.plan
        wanted = state.wanted or Wanted(self._new_id(), "schedule")
        state.wanted = None
        order = SweepOrder(
            sweep_id=wanted.sweep_id,
            backend=plan.name,
            target=plan.target,
            objectives=plan.objectives,
            workload=plan.workload,
            bounds=plan.bounds,
            seed=self._draws.getrandbits(31),
            started_at=self._clock.wall(),
        )
        state.running_id, state.progress = order.sweep_id, None
        state.partial, state.partial_is_saved = _blank(order), False
        state.running = asyncio.create_task(self._runner.run(order, Ear(state)))
        self._log.info("sweep started", backend=plan.name, sweep=order.sweep_id, why=wanted.reason)

    async def _collect(self, state: BackendState) -> None:
        """Take in a sweep that ended, in whatever way."""
        task, state.running = state.running, None
        if task is None or state.partial is None:
            return
        record = self._ended_record(task, state.partial)
        state.running_id, state.progress, state.partial, state.partial_is_saved = None, None, None, True
        now = self._clock.wall()
        state.remember(record)
        state.count(record)
        self._set_health(state, record)
        saved = await self._save(record)
        if not saved:
            self._log.warning("sweep not stored", backend=state.plan.name, sweep=record.sweep_id)
        await self._publish(state, record, now)
        if record.outcome in SAID_SOMETHING:
            state.failures = 0
            state.due_at = next_due_at(state.plan.schedule, now, now, self._draws.random())
        else:
            state.failures += 1
            state.due_at = retry_at(state.plan.schedule, state.failures, now)
        self._log.info(
            "sweep ended", backend=state.plan.name, sweep=record.sweep_id, outcome=str(record.outcome),
            why=record.reason, requests=record.requests, duration=format_duration(round(record.duration_s, 1)),
        )  # fmt: skip

    def _ended_record(self, task: asyncio.Task[SweepRecord], partial: SweepRecord) -> SweepRecord:
        now = self._clock.wall()
        if not task.done() or task.cancelled():
            return replace(partial, outcome=SweepOutcome.INTERRUPTED, ended_at=now, reason="the service was stopped")
        error = task.exception()
        if error is None:
            return task.result()
        failed = replace(partial, outcome=SweepOutcome.ERROR, ended_at=now)
        if isinstance(error, CalibratorError):
            return replace(failed, reason=error.cause, remedy=error.remedy, error_exit_code=int(error.exit_code))
        # A bug of ours in one backend's sweep must not end the service for all the others.
        self._log.error("sweep failed unexpectedly", backend=partial.backend, exc_info=error)
        return replace(failed, reason=f"unexpected {type(error).__name__}: {error}", remedy="Please report this bug.")

    async def _publish(self, state: BackendState, record: SweepRecord, now: float) -> None:
        previous = self._publisher.served[state.plan.name]
        decided = decide(record, previous, state.plan.policy, now)
        if decided is not None:
            await self._publisher.publish(decided)

    def _set_health(self, state: BackendState, record: SweepRecord) -> None:
        if record.outcome is SweepOutcome.ERROR:
            state.health, state.health_reason = Health.ERROR, f"{record.reason} {record.remedy}".strip()
        elif record.outcome in SAID_SOMETHING:
            state.health, state.health_reason = Health.OK, ""

    async def _save(self, record: SweepRecord) -> bool:
        try:
            await self._store.save_sweep(record)
        except StoreError as error:
            self._log.warning("sweep not saved", sweep=record.sweep_id, error=str(error))
            return False
        return True

    # ------------------------------------------------------------------------------------------------ engines
    def _look_at_engines(self) -> None:
        """In the background: one slow engine delays neither the tick nor the other engines."""
        now_s = self._clock.monotonic()
        if now_s - self._looked_s < LOOK_S or (self._looking is not None and not self._looking.done()):
            return
        self._looked_s = now_s
        self._looking = asyncio.create_task(self._look_at_all())

    async def _look_at_all(self) -> None:
        watched = [state for name, state in self._states.items() if name in self._telemetry]
        await asyncio.gather(*(self._look_at(state) for state in watched))

    async def _look_at(self, state: BackendState) -> None:
        try:
            async with asyncio.timeout(LOOK_LIMIT_S):
                load = await self._telemetry[state.plan.name].scrape()
        except TimeoutError:
            load = None
        _take(state, load)

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
        if state.running is not None:
            raise ConfigurationError(f"Sweep {state.running_id} of '{backend}' is running.", "Wait for its end.")
        if state.wanted is not None:
            raise ConfigurationError(f"Sweep {state.wanted.sweep_id} of '{backend}' is queued.", "Wait for its end.")
        state.wanted = Wanted(self._new_id(), reason)
        return state.wanted.sweep_id

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        return await self._store.sweeps(backend, limit)

    async def sweep(self, sweep_id: str) -> SweepRecord | None:
        for state in self._states.values():
            if state.running_id == sweep_id and state.partial is not None:
                return state.partial
        return await self._store.sweep(sweep_id)

    def count_poll(self, backend: str) -> None:
        if backend in self._states:
            self._states[backend].polls += 1


def _take(state: BackendState, load: ServerLoad | None) -> None:
    """An engine without metrics is unknown, not down; one that had them and stopped answering is down."""
    if load is not None:
        state.up, state.engine, state.server_in_flight = True, load.engine, load.in_flight_requests
    else:
        state.up, state.server_in_flight = (None if state.up is None else False), None


def _blank(order: SweepOrder) -> SweepRecord:
    """The record of a sweep that has only begun: it makes a killed one visible."""
    return SweepRecord(
        sweep_id=order.sweep_id,
        backend=order.backend,
        mode="search",
        started_at=order.started_at,
        ended_at=None,
        outcome=None,
        grade=None,
        capacity=None,
        reason="",
        requests=0,
        duration_s=0.0,
        overload_s=0.0,
        prompt_tokens=0,
        output_tokens=0,
        levels=(),
        warnings=(),
        provenance=Provenance(
            backend=order.backend,
            url=order.target.url,
            model=order.target.model,
            engine=None,
            objectives=tuple(str(objective) for objective in order.objectives),
            workload=str(order.workload),
            prompt_tokens_achieved=None,
            output_tokens_achieved=None,
            seed=order.seed,
            software="",
        ),
        history=History(order.objectives),
        error_exit_code=int(ExitCode.UNEXPECTED),
    )
