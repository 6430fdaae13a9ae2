"""Whose turn it is: a sweep from the moment it is due to the recommendation that comes of it.

    due ─▶ is a place free? ─▶ admitted? ─▶ running ─▶ ended record ─▶ next due time, health, recommendation

A sweep that said nothing (error, inconclusive) is tried again after a minute, then two, ... at most at the usual pace,
so that nothing causes sweeps back to back; likewise after a restart if the last ones were all interrupted, since they
may be what ended us. Due times count from the last sweep that said something about the objectives configured now. A
sweep that runs far beyond its budget is ended from here: it would keep its engine group and its place among
`max_parallel`.

Called by `service.supervisor`, for one backend at a time, so that a bug stays with its backend.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile

import structlog

from calibrator.core.admission.admission import Admitted, Deferral, DeferralReason
from calibrator.core.admission.schedule import next_due_at, next_open_at, retry_at
from calibrator.core.publish.recommendation import decide
from calibrator.core.publish.snapshot import Health
from calibrator.core.records.objective import format_duration
from calibrator.core.records.sweep import SweepOutcome, SweepRecord
from calibrator.errors import ConfigurationError
from calibrator.ports.clock import Clock
from calibrator.ports.sweeps import SweepOrder, SweepRunner
from calibrator.service.backend.admission import TRY_AGAIN_S, when
from calibrator.service.backend.outcome import (
    LEASE_LOST,
    OVERDUE,
    SAID_NOTHING,
    SAID_SOMETHING,
    UNASKED,
    Ending,
    cancelled_by,
    ended_record,
    is_about,
    what_changed,
)
from calibrator.service.backend.state import BackendState, ProgressRecorder, Wanted, begun
from calibrator.service.publishing.leases import LeaseManager
from calibrator.service.publishing.publisher import Publisher

OVERTIME_S = 300.0  # beyond the sweep's own time budget, which does not cover the first look at the backend


class SweepScheduler:
    """Starts and ends the sweeps of all backends."""

    def __init__(
        self,
        states: Mapping[str, BackendState],
        *,
        runner: SweepRunner,
        publisher: Publisher,
        tenancy: LeaseManager,
        clock: Clock,
        max_parallel: int,
        draws: random.Random,
        new_id: Callable[[], str],
    ) -> None:
        self._states = states
        self._runner = runner
        self._publisher = publisher
        self._leases = tenancy
        self._clock = clock
        self._max_parallel = max_parallel
        self._draws = draws
        self._new_id = new_id
        self._log = structlog.get_logger()

    def restore(self, state: BackendState, newest_first: Sequence[SweepRecord], now: float) -> None:
        """After a restart or a take-over: what the last sweeps found, and when the next is due."""
        plan, state.calibration = state.plan, None
        ended = [record for record in newest_first if record.outcome is not None and record.mode == "search"]
        for record in reversed(ended):
            state.remember(record)
            if is_about(record, plan):
                state.learn(record)
                state.heed(record)
        said = (record for record in ended if record.outcome in SAID_SOMETHING and record.aborted is None)
        valid = (record.ended_at for record in said if is_about(record, plan))
        state.due_at = next_due_at(plan.schedule, next(valid, None), now, self._draws.random())
        latest = next((record for record in ended if record.outcome in SAID_SOMETHING), None)
        if latest is not None and (changed := what_changed(latest, plan)):
            state.triggers.configured_otherwise(changed, self._clock.monotonic())
        killed = sum(1 for _ in takewhile(lambda record: record.outcome is SweepOutcome.INTERRUPTED, ended))
        if killed > 1:  # one may be an ordinary restart
            state.due_at = max(state.due_at, retry_at(plan.schedule, killed - 1, now))

    def see(self, state: BackendState, newest_first: Sequence[SweepRecord], now: float) -> None:
        """Another instance measures: its last sweep, and about when the next is due."""
        ended = next((record for record in newest_first if record.outcome is not None), None)
        if ended is not None:
            state.remember(ended)
        if state.last is not None:
            state.due_at = next_due_at(state.plan.schedule, state.last.ended_at, now, 0.5)

    def request(self, state: BackendState, reason: str, sweep_id: str | None = None) -> str:
        """A person asks. Raises ConfigurationError if one runs or is queued already, or would be held back."""
        name = state.plan.name
        if state.running is not None:
            raise ConfigurationError(f"Sweep {state.running_id} of '{name}' is running.", "Wait for its end.")
        if state.wanted is not None:
            raise ConfigurationError(f"Sweep {state.wanted.sweep_id} of '{name}' is queued.", "Wait for its end.")
        held = self._admitted(state, is_asked=True)
        if isinstance(held, Deferral):
            raise ConfigurationError(f"Sweeps of '{name}' are held back: {held.words}.", when(held))
        state.wanted = Wanted(sweep_id or self._new_id(), reason, by_person=True)
        return state.wanted.sweep_id

    def cancel(self, state: BackendState, author: str) -> str:
        """A person does not want it. Raises ConfigurationError if there is nothing to cancel."""
        wanted, running_id = state.wanted, state.running_id
        if running_id is not None:
            self._end_early(state, cancelled_by(author))
            return running_id
        if wanted is None:
            raise ConfigurationError(f"No sweep of '{state.plan.name}' runs or is queued.", "There is nothing to do.")
        state.wanted = None
        return wanted.sweep_id

    # ------------------------------------------------------------------------------------------------- each tick
    def attend(self, state: BackendState) -> None:
        """Take in what ended; end what runs too long."""
        if state.running is None:
            now = self._clock.wall()
            if state.due_at <= now:  # it waited for its turn: its window may have closed meanwhile
                state.due_at = max(state.due_at, next_open_at(state.plan.schedule, now))
        elif state.running.done():
            self.end(state)
        elif not self._leases.holds_lease(state.plan.engine_group):
            self._end_early(state, LEASE_LOST)
        elif self._clock.monotonic() > state.must_end_at_s:
            self._end_early(state, OVERDUE)

    def due(self) -> Iterator[BackendState]:
        """Who may start now, one after the other: those that somebody asked for first, whatever the windows."""
        now = self._clock.wall()
        busy = [state.plan.engine_group for state in self._states.values() if state.running is not None]
        idle = (state for state in self._states.values() if state.running is None)
        led = (state for state in idle if self._leases.holds_lease(state.plan.engine_group))
        due = [state for state in led if state.may_start and (state.wanted is not None or state.due_at <= now)]
        for state in sorted(due, key=lambda state: (state.wanted is None, state.due_at)):
            if len(busy) >= self._max_parallel:
                return
            if state.plan.engine_group not in busy:
                yield state
                if state.running is not None:
                    busy.append(state.plan.engine_group)

    def start(self, state: BackendState) -> None:
        """Unless it is held back."""
        plan, target = state.plan, state.fleet.next_target()
        if target is None:
            return
        answer = self._admitted(state, is_asked=state.wanted is not None and state.wanted.by_person)
        if isinstance(answer, Deferral):
            self._hold_back(state, answer)
            return
        state.door.held = None
        # Who asks for a sweep wants to know anew; the schedule only asks whether the last answer still holds.
        now_s = self._clock.monotonic()
        why = state.triggers.triggers.why(now_s) or "schedule"
        wanted, state.wanted = state.wanted or Wanted(self._new_id(), why, is_warm=True), None
        like = state.workload_at(now_s)
        state.triggers.sweep_started(now_s)
        owed = state.triggers.triggers  # whatever starts this sweep, it answers these causes too
        state.may_raise = wanted.by_person or (wanted.may_raise and owed.may_raise)
        order = SweepOrder(
            sweep_id=wanted.sweep_id,
            backend=plan.name,
            target=target,
            objectives=plan.objectives,
            workload=like.workload,
            bounds=answer.bounds,
            burst=plan.burst,
            abort=plan.limits.abort,
            limits=answer.limits,
            seed=self._draws.getrandbits(31),
            started_at=self._clock.wall(),
            warm=state.warm_start() if wanted.is_warm and owed.is_warm else None,
            prior_warnings=() if like.is_live else (like.words,),
            trigger=wanted.reason,
        )
        state.running_id, state.progress, state.partial, state.target = order.sweep_id, None, begun(order), target
        state.must_end_at_s, state.ending = self._clock.monotonic() + plan.bounds.duration_s + OVERTIME_S, None
        permit = partial(self._leases.until_s, plan.engine_group)
        state.running = asyncio.create_task(
            self._runner.run(order, ProgressRecorder(state, self._publisher.keep), permit)
        )
        self._publisher.keep(state.partial)
        self._log.info("sweep started", backend=plan.name, sweep=order.sweep_id, why=wanted.reason, workload=like.words)

    def _admitted(self, state: BackendState, *, is_asked: bool) -> Admitted | Deferral:
        served = self._publisher.served
        published = served[state.plan.name]
        return state.door.ask(
            self._clock.wall(),
            is_asked=is_asked,
            organic=state.fleet.in_flight_peak,
            cap=sum(served[one.plan.name].cap for one in self._states.values() if one.group_primary is state),
            capacity=None if published.capacity is None else published.capacity.estimate or None,
            replicas=state.fleet.ready_replicas,
        )

    def _hold_back(self, state: BackendState, held: Deferral) -> None:
        """A due sweep waits; in `observe` it counts as done, so that each one that would have run is told."""
        now = self._clock.wall()
        if held.reason is DeferralReason.OBSERVE:
            state.wanted, state.due_at = None, next_due_at(state.plan.schedule, now, now, self._draws.random())
        else:
            state.due_at = max(state.due_at, now + TRY_AGAIN_S if held.until is None else held.until)
        if not state.door.knows(held) or held.reason is DeferralReason.OBSERVE:
            self._log.info("sweep held back", backend=state.plan.name, reason=held.reason.value, why=held.words)

    # ---------------------------------------------------------------------------------------------------- the end
    def end_all(self, ending: Ending) -> Sequence[asyncio.Task[SweepRecord]]:
        """What runs is told to end; `end` takes it in afterwards."""
        running = [state for state in self._states.values() if state.running is not None]
        for state in running:
            self._end_early(state, ending)
        return [state.running for state in running if state.running is not None]

    def _end_early(self, state: BackendState, ending: Ending) -> None:
        """Once: a second cancellation would disturb the first one's tidying."""
        if state.ending is None and state.running is not None:
            state.ending = ending
            state.running.cancel()

    def end(self, state: BackendState) -> None:
        """Take in a sweep that ended, in whatever way. The next due time is set before anything can fail."""
        task, told = state.running, state.partial
        state.sweep_ends(self._clock.monotonic())
        state.running, state.running_id, state.progress, state.partial = None, None, None, None
        if task is None or told is None:
            return
        leads = self._leases.holds_lease(state.plan.engine_group)
        ending, state.ending = state.ending or (UNASKED if leads else LEASE_LOST), None
        now = self._clock.wall()
        record = ended_record(task, told, now, ending)
        self._plan_next(state, record)
        has_answered = record.outcome in SAID_SOMETHING and record.aborted is None
        state.triggers.sweep_ended(self._clock.monotonic(), has_answered=has_answered)
        state.learn(record)
        state.heed(record)
        self._publisher.keep(record)
        state.count(record)
        sharing = [one for one in self._states.values() if one.group_primary is state]
        state.settling = asyncio.create_task(self._settle(sharing, record))
        for one in sharing:
            self._set_health(one, record)
            if leads:
                self._decide(one, record)
        self._log.info(
            "sweep ended", backend=state.plan.name, sweep=record.sweep_id, outcome=str(record.outcome),
            why=record.reason, requests=record.requests, duration=format_duration(round(record.duration_s, 1)),
        )  # fmt: skip

    def _decide(self, state: BackendState, record: SweepRecord) -> None:
        size = state.size(measuring=record.provenance.url)
        served = self._publisher.served[state.plan.name]
        decided = decide(
            record, served, state.plan.policy, self._clock.wall(), size, may_raise=state.group_primary.may_raise
        )  # fmt: skip
        if decided is not None:
            self._publisher.publish(decided)
            state.guard.reset()

    async def _settle(self, sharing: Sequence[BackendState], record: SweepRecord) -> None:
        """Who sees that a sweep ended shall also see what it published: so first give the store its chance."""
        await self._publisher.flush()
        for state in sharing:
            state.remember(record)

    def _plan_next(self, state: BackendState, record: SweepRecord) -> None:
        now, schedule = self._clock.wall(), state.plan.schedule
        is_enough = record.outcome in SAID_SOMETHING and record.aborted is None
        if is_enough or record.outcome is SweepOutcome.CANCELLED:  # who cancelled it does not want it in a minute
            state.failures, state.due_at = 0, next_due_at(schedule, now, now, self._draws.random())
        else:
            state.failures += 1
            state.due_at = retry_at(schedule, state.failures, now, record.duration_s)

    def _set_health(self, state: BackendState, record: SweepRecord) -> None:
        if record.outcome is SweepOutcome.ERROR:
            state.health, state.health_reason = Health.ERROR, f"{record.reason} {record.remedy}".strip()
        elif record.outcome not in SAID_NOTHING:  # even an inconclusive sweep shows that the error is gone
            state.health, state.health_reason = Health.OK, ""
