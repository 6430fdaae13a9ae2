"""When each backend is swept: a sweep from the moment it is due to the recommendation that comes of it.

    due ─▶ is a place free? ─▶ admitted? ─▶ running ─▶ ended record ─▶ next due time, health, recommendation

A sweep without a result (error, inconclusive) is tried again after a minute, then two, ... at most at the usual pace,
so that nothing causes sweeps back to back; likewise after a restart if the last ones were all interrupted, since they
may be what ended us. Due times count from the last conclusive sweep about the objectives configured now. A sweep that
runs far beyond its budget is ended from here: it would keep its engine group and its place among `max_parallel`.

Writes `slot` and `results` of every backend. Called for one backend at a time, so that a bug stays with its backend.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any

import structlog

from calibrator.core.admission.admission import Admitted, Deferral, DeferralReason
from calibrator.core.admission.schedule import next_due_at, next_open_at, retry_at
from calibrator.core.publish.recommendation import decide
from calibrator.core.publish.snapshot import Health, Progress
from calibrator.core.records.objective import format_duration
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.core.workload.mirror import Mirrored
from calibrator.errors import ConfigurationError
from calibrator.ports.clock import Clock
from calibrator.ports.sweeps import SweepOrder, SweepRunner, Target
from calibrator.service.backend.admission import TRY_AGAIN_S, remedy_of
from calibrator.service.backend.outcome import (
    CONCLUSIVE,
    LEASE_LOST,
    NOT_MEASURED,
    OVERDUE,
    UNASKED,
    Ending,
    begun,
    cancelled_by,
    ended_record,
    is_about,
    what_changed,
)
from calibrator.service.backend.state import BackendState, RequestedSweep, RunningSweep, SweepSlot
from calibrator.service.publishing.leases import LeaseManager
from calibrator.service.publishing.publisher import Publisher

OVERTIME_S = 300.0  # beyond the sweep's own time budget, which does not cover its first contact with the backend


@dataclass(slots=True)
class ProgressRecorder:
    """Port `SweepListener`: keeps the newest state of a running sweep."""

    slot: SweepSlot
    running: RunningSweep
    publisher: Publisher

    def progress(self, progress: Progress) -> None:
        self.running.progress = progress

    def partial(self, record: SweepRecord) -> None:
        if self.slot.running is self.running:  # it was not given up
            self.running.partial = record
            self.publisher.keep(record)


@dataclass(slots=True)
class SweepScheduler:
    """Starts and ends the sweeps of all backends."""

    states: Mapping[str, BackendState]
    runner: SweepRunner
    publisher: Publisher
    leases: LeaseManager
    clock: Clock
    max_parallel: int
    draws: random.Random
    new_id: Callable[[], str]
    _log: Any = field(default_factory=structlog.get_logger)

    def isolate(self, step: Callable[[BackendState], None], state: BackendState) -> None:
        """One backend's bug must not end the service for all the others: it becomes that backend's health."""
        try:
            step(state)
        except Exception as error:  # noqa: BLE001 - as it says
            self._log.exception("unexpected", backend=state.plan.name)
            reason = f"unexpected {type(error).__name__}: {error}"
            state.results.health, state.results.health_reason = Health.ERROR, reason
            state.slot.due_at = max(state.slot.due_at, self.clock.wall() + state.plan.schedule.every_s)

    def restore(self, state: BackendState, newest_first: Sequence[SweepRecord], now: float) -> None:
        """After a restart or a take-over: what the last sweeps found, and when the next is due."""
        plan, slot, state.results.calibration = state.plan, state.slot, None
        ended = [record for record in newest_first if record.outcome is not None and record.mode == "search"]
        for record in reversed(ended):
            state.record_sweep(record, is_new=False)
        conclusive = [record for record in ended if record.outcome in CONCLUSIVE]
        valid = (one.ended_at for one in conclusive if one.aborted is None and is_about(one, plan))
        slot.due_at = next_due_at(plan.schedule, next(valid, None), now, self.draws.random())
        if conclusive and (changed := what_changed(conclusive[0], plan)):
            state.triggers.configured_otherwise(changed, self.clock.monotonic())
        killed = sum(1 for _ in takewhile(lambda record: record.outcome is SweepOutcome.INTERRUPTED, ended))
        if killed > 1:  # one may be an ordinary restart
            slot.due_at = max(slot.due_at, retry_at(plan.schedule, killed - 1, now))

    def follow(self, state: BackendState, newest_first: Sequence[SweepRecord], now: float) -> None:
        """Another instance measures: its last sweep, and about when the next is due."""
        ended = next((record for record in newest_first if record.outcome is not None), None)
        if ended is not None:
            state.results.show(ended)
        if state.results.last is not None:
            state.slot.due_at = next_due_at(state.plan.schedule, state.results.last.ended_at, now, 0.5)

    def clock_stepped(self, step_s: float) -> None:
        """What was due in an hour still is."""
        for state in self.states.values():
            state.slot.due_at += step_s

    # ---------------------------------------------------------------------------------------------------- requests
    def request(self, state: BackendState, reason: str, sweep_id: str | None = None) -> str:
        """A person asks. Raises ConfigurationError if one runs or is queued already, or would be deferred."""
        name, slot = state.plan.name, state.slot
        if slot.running is not None:
            raise ConfigurationError(f"Sweep {slot.running.sweep_id} of '{name}' is running.", "Wait for its end.")
        if slot.requested is not None:
            raise ConfigurationError(f"Sweep {slot.requested.sweep_id} of '{name}' is queued.", "Wait for its end.")
        answer = self._admitted(state, is_asked=True)
        if isinstance(answer, Deferral):
            raise ConfigurationError(f"Sweeps of '{name}' are deferred: {answer.words}.", remedy_of(answer))
        slot.requested = RequestedSweep(sweep_id or self.new_id(), reason, by_person=True)
        return slot.requested.sweep_id

    def queue(self, state: BackendState, reason: str, *, may_raise: bool = True, is_warm: bool = False) -> None:
        """The guard or a trigger asks; whoever asked first is served."""
        slot = state.slot
        if slot.requested is None and slot.running is None:
            slot.requested = RequestedSweep(self.new_id(), reason, may_raise=may_raise, is_warm=is_warm)

    def withdraw(self, state: BackendState) -> RequestedSweep | None:
        """What was asked for and has not begun."""
        requested, state.slot.requested = state.slot.requested, None
        return requested

    def cancel(self, state: BackendState, author: str) -> str:
        """A person does not want it. Raises ConfigurationError if there is nothing to cancel."""
        if state.slot.running is not None:
            self._end_early(state.slot.running, cancelled_by(author))
            return state.slot.running.sweep_id
        requested = self.withdraw(state)
        if requested is None:
            raise ConfigurationError(f"No sweep of '{state.plan.name}' runs or is queued.", "There is nothing to do.")
        return requested.sweep_id

    # ------------------------------------------------------------------------------------------------- each tick
    def attend(self, state: BackendState) -> None:
        """Take in what ended; end what runs too long."""
        slot = state.slot
        if slot.running is None:
            now = self.clock.wall()
            if slot.due_at <= now:  # it waited for its turn: its window may have closed meanwhile
                slot.due_at = max(slot.due_at, next_open_at(state.plan.schedule, now))
        elif slot.running.task.done():
            self.end(state)
        elif not self.leases.holds_lease(state.plan.name):
            self._end_early(slot.running, LEASE_LOST)
        elif self.clock.monotonic() > slot.running.must_end_at_s:
            self._end_early(slot.running, OVERDUE)

    def due(self) -> Iterator[BackendState]:
        """Who may start now, one after the other: those that somebody asked for first, whatever the windows."""
        now = self.clock.wall()
        busy = [state.plan.engine_group for state in self.states.values() if state.slot.running is not None]
        idle = (state for state in self.states.values() if state.slot.running is None)
        wanted = (state for state in idle if state.slot.requested is not None or state.slot.due_at <= now)
        due = [state for state in wanted if self.leases.holds_lease(state.plan.name) and state.may_start]
        for state in sorted(due, key=lambda state: (state.slot.requested is None, state.slot.due_at)):
            if len(busy) >= self.max_parallel:
                return
            if state.plan.engine_group not in busy:
                yield state
                if state.slot.running is not None:
                    busy.append(state.plan.engine_group)

    def start(self, state: BackendState) -> None:
        """Unless it is deferred."""
        slot, target = state.slot, state.fleet.next_target()
        if target is None:
            return
        answer = self._admitted(state, is_asked=slot.requested is not None and slot.requested.by_person)
        if isinstance(answer, Deferral):
            self._defer(state, answer)
            return
        state.admission.started()
        # Whoever asks for a sweep wants a fresh answer; the schedule only asks whether the last one still holds.
        now_s = self.clock.monotonic()
        why = state.triggers.triggers.why(now_s) or "schedule"
        requested = self.withdraw(state) or RequestedSweep(self.new_id(), why, is_warm=True)
        workload = state.workload_at(now_s)
        state.triggers.sweep_started(now_s)
        owed = state.triggers.triggers  # whatever starts this sweep, it answers these causes too
        slot.may_raise = requested.by_person or (requested.may_raise and owed.may_raise)
        order = self._order(state, target, answer, requested, workload, is_warm=requested.is_warm and owed.is_warm)
        running = RunningSweep(order.sweep_id, target, begun(order), now_s + state.plan.bounds.duration_s + OVERTIME_S)
        recorder = ProgressRecorder(slot, running, self.publisher)
        permit = partial(self.leases.until_s, state.plan.name)
        running.task = asyncio.create_task(self.runner.run(order, recorder, permit))
        slot.running = running
        self.publisher.keep(running.partial)
        self._log.info(
            "sweep started",
            backend=order.backend, sweep=order.sweep_id, why=requested.reason, workload=workload.words,
        )  # fmt: skip

    def _order(
        self,
        state: BackendState,
        target: Target,
        admitted: Admitted,
        requested: RequestedSweep,
        workload: Mirrored,
        *,
        is_warm: bool,
    ) -> SweepOrder:
        plan = state.plan
        return SweepOrder(
            sweep_id=requested.sweep_id,
            backend=plan.name,
            target=target,
            objectives=plan.objectives,
            workload=workload.workload,
            bounds=admitted.bounds,
            burst=plan.burst,
            abort=plan.limits.abort,
            limits=admitted.limits,
            seed=self.draws.getrandbits(31),
            started_at=self.clock.wall(),
            warm=state.warm_start() if is_warm else None,
            prior_warnings=() if workload.is_live else (workload.words,),
            trigger=requested.reason,
        )

    def _admitted(self, state: BackendState, *, is_asked: bool) -> Admitted | Deferral:
        served = self.publisher.served
        published = served[state.plan.name]
        return state.admission.ask(
            self.clock.wall(),
            is_asked=is_asked,
            organic=state.fleet.in_flight_peak,
            cap=sum(served[one.plan.name].cap for one in self._sharing(state)),
            capacity=None if published.capacity is None else published.capacity.estimate or None,
            replicas=state.fleet.ready_replicas,
        )

    def _sharing(self, state: BackendState) -> list[BackendState]:
        """All that it measures for, itself included."""
        return [one for one in self.states.values() if one.group_primary is state]

    def _defer(self, state: BackendState, deferral: Deferral) -> None:
        """A due sweep waits; in `observe` it counts as done, so that each one that would have run is logged."""
        now, is_observing = self.clock.wall(), deferral.reason is DeferralReason.OBSERVE
        if is_observing:
            self.withdraw(state)
            state.slot.due_at = next_due_at(state.plan.schedule, now, now, self.draws.random())
        else:
            state.slot.due_at = max(state.slot.due_at, now + TRY_AGAIN_S if deferral.until is None else deferral.until)
        if state.admission.defer(deferral) or is_observing:
            self._log.info(
                "sweep deferred", backend=state.plan.name, reason=deferral.reason.value, why=deferral.words
            )  # fmt: skip

    # ---------------------------------------------------------------------------------------------------- the end
    def end_all(self, ending: Ending) -> Sequence[asyncio.Task[SweepRecord]]:
        """End what runs; `end` takes it in afterwards."""
        running = [state.slot.running for state in self.states.values() if state.slot.running is not None]
        for sweep in running:
            self._end_early(sweep, ending)
        return [sweep.task for sweep in running]

    @staticmethod
    def _end_early(running: RunningSweep, ending: Ending) -> None:
        """Once: a second cancellation would disturb the first one's tidying."""
        if running.ending is None:
            running.ending = ending
            running.task.cancel()

    def end(self, state: BackendState) -> None:
        """Take in a sweep that ended, in whatever way. The next due time is set before anything can fail."""
        running, state.slot.running = state.slot.running, None
        if running is None:
            return
        state.slot.probed = running.target.url, self.clock.monotonic()
        holds_lease = self.leases.holds_lease(state.plan.name)
        ending = running.ending or (UNASKED if holds_lease else LEASE_LOST)
        record = ended_record(running.task, running.partial, self.clock.wall(), ending)
        is_conclusive = record.outcome in CONCLUSIVE and record.aborted is None
        self._plan_next(state, record, is_conclusive=is_conclusive)
        state.triggers.sweep_ended(self.clock.monotonic(), has_answered=is_conclusive)
        state.record_sweep(record, is_new=True)
        self.publisher.keep(record)
        state.slot.settling = asyncio.create_task(self._settle(state, record))
        for one in self._sharing(state):
            self._set_health(one, record)
            if holds_lease:
                self._decide(one, record)
        self._log.info(
            "sweep ended", backend=state.plan.name, sweep=record.sweep_id, outcome=str(record.outcome),
            why=record.reason, requests=record.requests, duration=format_duration(round(record.duration_s, 1)),
        )  # fmt: skip

    def _decide(self, state: BackendState, record: SweepRecord) -> None:
        size = state.size(measuring=record.provenance.url)
        served = self.publisher.served[state.plan.name]
        may_raise = state.group_primary.slot.may_raise
        decided = decide(record, served, state.plan.policy, self.clock.wall(), size, may_raise=may_raise)
        if decided is not None:
            self.publisher.publish(decided)
            state.guard.reset()

    async def _settle(self, state: BackendState, record: SweepRecord) -> None:
        """Who sees that a sweep ended shall also see what it published: so first give the store its chance."""
        await self.publisher.flush()
        state.results.show(record)

    def _plan_next(self, state: BackendState, record: SweepRecord, *, is_conclusive: bool) -> None:
        now, slot, schedule = self.clock.wall(), state.slot, state.plan.schedule
        if is_conclusive or record.outcome is SweepOutcome.CANCELLED:  # who cancelled it does not want it in a minute
            slot.failures, slot.due_at = 0, next_due_at(schedule, now, now, self.draws.random())
        else:
            slot.failures += 1
            slot.due_at = retry_at(schedule, slot.failures, now, record.duration_s)

    @staticmethod
    def _set_health(state: BackendState, record: SweepRecord) -> None:
        results = state.results
        if record.outcome is SweepOutcome.ERROR:
            results.health, results.health_reason = Health.ERROR, f"{record.reason} {record.remedy}".strip()
        elif record.outcome not in NOT_MEASURED:  # even an inconclusive sweep shows that the error is gone
            results.health, results.health_reason = Health.OK, ""
