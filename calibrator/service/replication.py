"""This instance among the others on one database: what the holder leaves for them, and what each follows.

| written by | what | read by |
|---|---|---|
| the holder of the lease | recommendations (`service.publishing.publisher`) | everybody else, who serves them |
| the holder | status of a running sweep, what its probes take of the cap | everybody else, who serves less |
| any instance | overrides | everybody |
| any instance | commands: start or cancel a sweep; a lowering that could not be stored | the holder, once |

Changes are notified at once (`ReplicatedStore.changed`), and polled for every `POLL_S` anyway. A poll that fails
changes nothing: what was known last is served on, and the snapshot says that the database fails.

Taking over a group, an instance reads everything anew: what the holder before it left without an end is marked as
interrupted, its sweep's status is void, its calibrations are what the next sweep starts from, and its cap stands,
neither lost nor raised.

A sole instance (`core.publish.lease.SOLE`) follows nobody.

Writes `lease` of every backend. Called by `service.supervisor`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import structlog

from calibrator.core.publish.lease import is_settled_by
from calibrator.core.publish.recommendation import fallback, under_policy
from calibrator.core.publish.snapshot import Recommendation
from calibrator.core.records.sweep import SweepRecord
from calibrator.errors import ConfigurationError
from calibrator.ports.clock import Clock
from calibrator.ports.store import ForwardedCommand, ReplicatedStore, SweepStatus
from calibrator.service.backend.checkpoints import Checkpoints
from calibrator.service.backend.state import BackendState
from calibrator.service.publishing.leases import LeaseManager
from calibrator.service.publishing.overrides import OverrideKeeper
from calibrator.service.publishing.publisher import TREND_POINTS, Publisher
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.publishing.write_behind import WriteBehind
from calibrator.service.sweep_scheduler import SweepScheduler

POLL_S = 1.0  # the fallback where notifications do not come through; the contract is 2 s
STEP_LIMIT_S = 5.0
PAUSE_S = 0.05  # between two polls, however many notifications there are
PROGRESS_EVERY_S = 1.0  # what probes take of the cap is written at once
STATUS_RETRY_S = 0.25
LAST_SWEEP_S = 5.0  # a sweep's record is written behind its recommendation
SWEEPS_READ_AT_START = 20


class Replication:
    """`Successor` of the holders before. Owned by the supervisor."""

    def __init__(
        self,
        states: Mapping[str, BackendState],
        store: ReplicatedStore,
        clock: Clock,
        *,
        leases: LeaseManager,
        publisher: Publisher,
        scheduler: SweepScheduler,
        overrides: OverrideKeeper,
        checkpoints: Checkpoints,
        health: StoreHealth,
    ) -> None:
        self._states = states
        self._store = store
        self._clock = clock
        self._leases = leases
        self._publisher = publisher
        self._scheduler = scheduler
        self._overrides = overrides
        self._checkpoints = checkpoints
        self._health = health
        self._statuses = WriteBehind(
            "sweep status", self._write_status, clock, health,
            retry_s=STATUS_RETRY_S, limit_s=STEP_LIMIT_S, may_write=leases.holds_lease,
        )  # fmt: skip
        self._written: dict[str, tuple[SweepStatus | None, float]] = {}  # of backends whose lease is ours, and when
        self._unforwarded: list[ForwardedCommand] = []  # for the holder; they came up while it was us
        self._last_sweep_until_s: dict[str, float] = {}  # for how long the last sweep is read again
        self._tasks: list[asyncio.Task[None]] = []
        self.changes = 0  # of what the snapshot shows

    # ------------------------------------------------------------------------------------------------ life cycle
    async def begin(self) -> None:
        """Serve what is stored, and take over what is free. Raises StoreError."""
        known = await self._store.latest_recommendations()
        for name in self._states:
            self._publisher.look_back(await self._store.recommendations(name, TREND_POINTS))
        self._publisher.adopt(stored for stored in known if stored.backend in self._states)
        await self._leases.begin(self)
        now = self._clock.wall()
        for name, state in self._states.items():
            self._publisher.serve_fallback(fallback(name, state.plan.policy, now))
        self._read_last_sweeps_of(self._states)
        await self._publisher.flush()
        await self._overrides.restore()
        if not self._leases.is_sole:
            await self.poll()
            self._tasks = [asyncio.create_task(self._leases.run(self)), asyncio.create_task(self._follow())]
        self._note_leases()

    async def close(self, limit_s: float) -> None:
        """After everything else was written: write that nothing runs, and release the leases."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._leases.is_sole:
            self._put_statuses()
            await self._statuses.close(limit_s)
        await self._leases.release()

    def tick(self) -> None:
        """Note what became of the leases; write for the others what our sweeps do."""
        if not self._leases.is_sole:
            self._note_leases()
            self._put_statuses()
            self._statuses.tick()

    def _note_leases(self) -> None:
        for name, state in self._states.items():
            is_held = self._leases.holds_lease(name)
            self.changes += state.lease.is_held != is_held
            state.lease.is_held = is_held
            if is_held:
                self._forget_status(state)  # it was our own
            if not self._leases.epoch(name) and name in self._written:
                del self._written[name]
                self._statuses.discard(name)
                self._pass_on(state)

    def _pass_on(self, state: BackendState) -> None:
        """What the new holder cannot know. What guard and triggers asked for here they ask for there."""
        name, requested = state.plan.name, self._scheduler.withdraw(state)
        lowered = self._publisher.demote(name)
        if lowered is not None:
            self._unforwarded.append(ForwardedCommand(name, "", lowered.reason, lowered.published_at, lowered))
        if requested is not None and requested.by_person:
            now = self._clock.wall()
            self._unforwarded.append(ForwardedCommand(name, requested.sweep_id, requested.reason, now))

    # -------------------------------------------------------------------------------------------------- take-over
    async def take_over(self, group: str) -> None:
        """Raises StoreError; then it is tried again."""
        states = {name: state for name, state in self._states.items() if state.plan.engine_group == group}
        now = self._clock.wall()
        interrupted = await self._store.interrupt_running_sweeps(list(states), now)
        if interrupted:
            structlog.get_logger().warning("sweeps of the last run were interrupted", group=group, count=interrupted)
        known = {stored.backend: stored for stored in await self._store.latest_recommendations()}
        primaries = [name for name, state in states.items() if state.primary is None]
        sweeps = {name: await self._store.sweeps(name, SWEEPS_READ_AT_START) for name in primaries}
        for state in states.values():
            await state.admission.restore(self._store, now)
        for name, state in states.items():
            self._begin(state, known.get(name), sweeps.get(name), now)
            await self._checkpoints.restore(state)
        self.changes += 1

    def _begin(
        self, state: BackendState, known: Recommendation | None, sweeps: Sequence[SweepRecord] | None, now: float
    ) -> None:
        """`sweeps`: None if another backend of the group measures for it."""
        plan = state.plan
        self._publisher.begin(plan.name, known, is_sole=self._leases.is_sole)
        if sweeps is not None:
            self._scheduler.restore(state, sweeps, now)
        state.guard.reset()
        self._forget_status(state)
        self._written[plan.name] = (None, float("-inf"))
        if known is None:
            self._publisher.publish(fallback(plan.name, plan.policy, now))
            return
        newest = self._publisher.newest(plan.name)
        today = under_policy(newest, plan.policy, now)
        if today is not newest:
            self._publisher.publish(today)

    # --------------------------------------------------------------------------------------------- statuses of sweeps
    def _put_statuses(self) -> None:
        """Those that the others do not know yet."""
        now_s = self._clock.monotonic()
        for name, (written, written_s) in self._written.items():
            status = _status_of(self._states[name])
            is_urgent = written_s < 0.0 or _urgent_part(status) != _urgent_part(written)
            if is_urgent or (status != written and now_s >= written_s + PROGRESS_EVERY_S):
                self._statuses.put(name, status)

    async def _write_status(self, backend: str, status: SweepStatus | None) -> None:
        await self._store.save_sweep_status(backend, status)
        if backend in self._written:
            self._written[backend] = (status, self._clock.monotonic())

    # ---------------------------------------------------------------------------------------------------- commands
    async def forward(self, command: ForwardedCommand) -> None:
        """To the holder. Raises StoreError."""
        await self._store.add_command(command)

    async def _forward_waiting(self) -> None:
        """Before anything newer is followed; to ourselves, too, if we hold the lease again."""
        while self._unforwarded:
            await self._store.add_command(self._unforwarded[0])
            del self._unforwarded[0]

    def _carry_out(self, command: ForwardedCommand) -> None:
        state = self._states.get(command.backend)
        if state is None:
            return
        try:
            if command.lowered is not None:
                self._lower(command.lowered)
            elif command.sweep_id:
                self._scheduler.request(state, command.reason, command.sweep_id)
            else:
                self._scheduler.cancel(state, command.reason)
        except ConfigurationError as error:
            structlog.get_logger().warning("forwarded command refused", backend=command.backend, why=str(error))
        self.changes += 1

    def _lower(self, lowered: Recommendation) -> None:
        if not is_settled_by(self._publisher.newest(lowered.backend), lowered):
            self._publisher.publish(lowered)

    # ----------------------------------------------------------------------------------------------------- following
    async def _follow(self) -> None:
        while True:
            await self._store.changed(POLL_S)
            await self.poll()
            self._leases.wake()
            await self._clock.sleep(PAUSE_S)

    async def poll(self) -> None:
        """Take in what the others wrote; never raises."""
        try:
            async with asyncio.timeout(STEP_LIMIT_S):
                await self._forward_waiting()
                asked = self._overrides.asked
                stored = await self._store.latest_recommendations()
                overrides, statuses = await self._store.overrides(), await self._store.sweep_statuses()
                changed = {one.backend for one in stored if one.backend in self._states and self._serves_anew(one)}
                self._overrides.follow(overrides, asked)
                self._follow_sweeps(statuses, changed)
                await self._read_last_sweeps()
                held = [name for name in self._states if self._leases.holds_lease(name)]
                for command in await self._store.take_commands(held) if held else ():
                    self._carry_out(command)
        except Exception as error:  # noqa: BLE001 - whatever the database does, what is known is served on
            self._health.fails("reading", error)
            return
        self._health.works("reading")

    def _serves_anew(self, stored: Recommendation) -> bool:
        return not self._leases.holds_lease(stored.backend) and self._publisher.follow(stored)

    def _follow_sweeps(self, statuses: Mapping[str, SweepStatus], changed: set[str]) -> None:
        now_s = self._clock.monotonic()
        for name, state in self._states.items():
            if self._leases.holds_lease(name):
                continue
            before, after = state.lease.elsewhere, statuses.get(name)
            self._forget_status(state)
            state.lease.elsewhere = after
            is_another = before is None or after is None or before.sweep_id != after.sweep_id
            if before is not None and is_another:
                changed.add(name)
                state.triggers.sweep_ended(now_s)
            if after is not None and is_another:
                state.triggers.sweep_started(now_s)
        self._read_last_sweeps_of(changed)
        self.changes += 1

    def _read_last_sweeps_of(self, backends: Iterable[str]) -> None:
        measured_by = {self._states[name].group_primary.plan.name for name in backends}
        self._last_sweep_until_s |= dict.fromkeys(measured_by, self._clock.monotonic() + LAST_SWEEP_S)

    def _forget_status(self, state: BackendState) -> None:
        if state.lease.elsewhere is not None:
            state.lease.probed = state.lease.elsewhere.url, self._clock.monotonic()
            state.lease.elsewhere = None

    async def _read_last_sweeps(self) -> None:
        """What the page and the metrics show of them, and when the next are due."""
        now_s = self._clock.monotonic()
        self._last_sweep_until_s = {
            name: until_s for name, until_s in self._last_sweep_until_s.items() if now_s < until_s
        }
        for name in self._last_sweep_until_s:
            if not self._leases.holds_lease(name):
                records = await self._store.sweeps(name, 2)
                self._scheduler.follow(self._states[name], records, self._clock.wall())


def _status_of(state: BackendState) -> SweepStatus | None:
    running = state.group_primary.slot.running
    if running is None:
        return None
    return SweepStatus(running.sweep_id, state.reserved_for_probes, running.progress, running.target.url)


def _urgent_part(status: SweepStatus | None) -> tuple[str, int] | None:
    return None if status is None else (status.sweep_id, status.reserved_for_probes)
