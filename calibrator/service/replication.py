"""This instance among the others on one database: what the holder leaves for them, and what each follows.

| written by | what | read by |
|---|---|---|
| the holder of the group | recommendations (`service.publishing.publisher`) | everybody else, who serves them |
| the holder | activities: a running sweep, what its probes take of the cap | everybody else, who serves less |
| any instance | overrides | everybody |
| any instance | wishes: start or cancel a sweep; a lowering that could not be stored | the holder, once |

News are heard of at once (`Store.changed`), and looked for every `FOLLOW_S` anyway. A look that fails changes nothing:
what was known last is served on, and the snapshot says that the database fails.

Taking over a group, an instance reads everything anew: what the holder before it left without an end is marked as
interrupted, its activity is void, its calibrations are what the next sweep starts from, and its cap stands, neither
lost nor raised.

A sole instance (`core.publish.lease.SOLE`) follows nobody.

Called by `service.supervisor`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from calibrator.core.publish.lease import is_settled_by
from calibrator.core.publish.recommendation import fallback, under_policy
from calibrator.core.publish.snapshot import Override, Recommendation
from calibrator.core.records.sweep import SweepRecord
from calibrator.errors import ConfigurationError
from calibrator.ports.clock import Clock
from calibrator.ports.store import ForwardedCommand, Store, SweepStatus
from calibrator.service.backend.checkpoints import Checkpoints
from calibrator.service.backend.state import BackendState
from calibrator.service.publishing.leases import LeaseManager
from calibrator.service.publishing.overrides import OverrideKeeper
from calibrator.service.publishing.publisher import TREND_POINTS, Publisher
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.sweep_scheduler import SweepScheduler

FOLLOW_S = 1.0  # the fallback where news do not come through; the contract is 2 s
LOOK_LIMIT_S = 5.0
PAUSE_S = 0.05  # between two looks, however many news there are
SHOW_EVERY_S = 1.0  # progress; what probes take of the cap is told at once
SEE_S = 5.0  # a sweep's record is written behind its recommendation
SWEEPS_READ_AT_START = 20


@dataclass(frozen=True, slots=True)
class _Look:
    """What stood in the database."""

    stored: Sequence[Recommendation]
    overrides: Mapping[str, Override]
    activities: Mapping[str, SweepStatus]
    asked: int  # of our own overrides when it was read


@dataclass(slots=True)
class Replication:
    """Owned by the supervisor."""

    states: Mapping[str, BackendState]
    store: Store
    clock: Clock
    tenancy: LeaseManager
    publisher: Publisher
    turns: SweepScheduler
    overrides: OverrideKeeper
    memories: Checkpoints
    health: StoreHealth
    changed: Callable[[], None]  # the snapshot is to be made anew
    _untold: list[ForwardedCommand] = field(
        default_factory=list
    )  # of ours, for the holder: it was us when they came up
    _told: dict[str, tuple[SweepStatus | None, float]] = field(default_factory=dict)  # activity as written, and when
    _see_until_s: dict[str, float] = field(default_factory=dict)  # for how long the last sweep is looked for
    _telling: asyncio.Task[None] | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------------ life cycle
    async def begin(self) -> None:
        """Serve what is stored, and take over what is free. Raises StoreError."""
        known = await self.store.latest_recommendations()
        for name in self.states:
            self.publisher.look_back(await self.store.recommendations(name, TREND_POINTS))
        self.publisher.adopt(stored for stored in known if stored.backend in self.states)
        await self.tenancy.begin()
        now = self.clock.wall()
        for name, state in self.states.items():
            self.publisher.serve_fallback(fallback(name, state.plan.policy, now))
            self._see_until_s[name] = self.clock.monotonic() + SEE_S
        await self.publisher.flush()
        await self.overrides.restore()
        if not self.tenancy.is_sole:
            await self.look()
            self._tasks = [asyncio.create_task(self.tenancy.run()), asyncio.create_task(self._follow())]
        self._notice()

    async def close(self, limit_s: float) -> None:
        """After everything else was written: say that nothing runs, and let go of the leases."""
        tasks = [*self._tasks, *([] if self._telling is None else [self._telling])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self.tenancy.is_sole:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._tell()
        await self.tenancy.release()

    def tick(self) -> None:
        """Notice what became of the leases; tell the others what our sweeps do."""
        if self.tenancy.is_sole:
            return
        self._notice()
        is_telling = self._telling is not None and not self._telling.done()
        if not self._news():
            self.health.works("activities")  # there is nothing left to fail
        elif not is_telling:
            self._telling = asyncio.create_task(self._tell())

    def _notice(self) -> None:
        for name, state in self.states.items():
            group = state.plan.engine_group
            leads = self.tenancy.holds_lease(group)
            if state.is_led != leads:
                self.changed()
            state.is_led = leads
            if leads:
                self._forget_activity(state)  # what stood there was our own
            if not self.tenancy.epoch(group) and name in self._told:
                del self._told[name]
                self._pass_on(state)

    def _pass_on(self, state: BackendState) -> None:
        """What the new holder cannot know. What the watches asked for here they ask for there."""
        name, wanted, state.wanted = state.plan.name, state.wanted, None
        lowered = self.publisher.demote(name)
        if lowered is not None:
            self._untold.append(ForwardedCommand(name, "", lowered.reason, lowered.published_at, lowered))
        if wanted is not None and wanted.by_person:
            self._untold.append(ForwardedCommand(name, wanted.sweep_id, wanted.reason, self.clock.wall()))

    # -------------------------------------------------------------------------------------------------- take-over
    async def take_over(self, group: str) -> None:
        """Raises StoreError; then it is tried again."""
        names = [name for name, state in self.states.items() if state.plan.engine_group == group]
        now = self.clock.wall()
        interrupted = await self.store.interrupt_running_sweeps(names, now)
        if interrupted:
            structlog.get_logger().warning("sweeps of the last run were interrupted", group=group, count=interrupted)
        known = {stored.backend: stored for stored in await self.store.latest_recommendations()}
        sweeps = {name: await self._sweeps(self.states[name], SWEEPS_READ_AT_START) for name in names}
        for name in names:
            await self.states[name].door.restore(self.store, now)
        for name in names:
            self._begin(self.states[name], known.get(name), sweeps[name], now)
            await self.memories.recall(self.states[name])
        self.changed()

    def _begin(
        self, state: BackendState, known: Recommendation | None, sweeps: Sequence[SweepRecord], now: float
    ) -> None:
        plan = state.plan
        self.publisher.begin(plan.name, known, is_sole=self.tenancy.is_sole)
        self.turns.restore(state, sweeps, now)
        state.guard.reset()
        self._forget_activity(state)
        state.sized = None
        self._told[plan.name] = (None, float("-inf"))
        if known is None:
            self.publisher.publish(fallback(plan.name, plan.policy, now))
            return
        newest = self.publisher.newest(plan.name)
        today = under_policy(newest, plan.policy, now)
        if today is not newest:
            self.publisher.publish(today)

    async def _sweeps(self, state: BackendState, count: int) -> Sequence[SweepRecord]:
        return await self.store.sweeps(state.group_primary.plan.name, count)

    # -------------------------------------------------------------------------------------------------- activities
    def _activity(self, state: BackendState) -> SweepStatus | None:
        group_primary = state.group_primary
        if group_primary.running_id is None or group_primary.running is None or group_primary.target is None:
            return None
        return SweepStatus(
            group_primary.running_id, state.reserved_for_probes, group_primary.progress, group_primary.target.url
        )

    def _news(self) -> dict[str, SweepStatus | None]:
        """What the others are to hear, of the backends that we lead."""
        now_s, found = self.clock.monotonic(), dict[str, SweepStatus | None]()
        for name, (told, told_s) in self._told.items():
            state = self.states[name]
            current = self._activity(state)
            is_urgent = told_s < 0.0 or _urgent_part(current) != _urgent_part(told)
            if (is_urgent or (current != told and now_s >= told_s + SHOW_EVERY_S)) and state.is_led:
                found[name] = current
        return found

    async def _tell(self) -> None:
        for name, activity in self._news().items():
            try:
                async with asyncio.timeout(LOOK_LIMIT_S):
                    await self.store.save_sweep_status(name, activity)
            except Exception as error:  # noqa: BLE001 - the next tick tries again
                self.health.fails("activities", error)
                return
            self.health.works("activities")
            if name in self._told:
                self._told[name] = (activity, self.clock.monotonic())

    # ------------------------------------------------------------------------------------------------------ wishes
    async def wish(self, wish: ForwardedCommand) -> None:
        """Raises StoreError."""
        await self.store.add_command(wish)

    async def _tell_wishes(self) -> None:
        """Before anything newer is followed; to ourselves, too, if we lead again."""
        while self._untold:
            await self.store.add_command(self._untold[0])
            del self._untold[0]

    def _grant(self, wish: ForwardedCommand) -> None:
        state = self.states.get(wish.backend)
        if state is None:
            return
        log = structlog.get_logger()
        try:
            if wish.lowered is not None:
                self._lower(wish.lowered)
            elif wish.sweep_id:
                self.turns.request(state, wish.reason, wish.sweep_id)
            else:
                self.turns.cancel(state, wish.reason)
        except ConfigurationError as error:
            log.warning("what was asked for elsewhere is refused", backend=wish.backend, why=str(error))
        self.changed()

    def _lower(self, lowered: Recommendation) -> None:
        if not is_settled_by(self.publisher.newest(lowered.backend), lowered):
            self.publisher.publish(lowered)

    # ----------------------------------------------------------------------------------------------------- following
    async def _follow(self) -> None:
        while True:
            await self.store.changed(FOLLOW_S)
            await self.look()
            self.tenancy.wake()
            await self.clock.sleep(PAUSE_S)

    async def look(self) -> None:
        """Take in what the others wrote; never raises."""
        try:
            async with asyncio.timeout(LOOK_LIMIT_S):
                await self._tell_wishes()
                asked = self.overrides.asked
                look = _Look(
                    await self.store.latest_recommendations(),
                    await self.store.overrides(),
                    await self.store.sweep_statuses(),
                    asked,
                )
                self._heed(look)
                await self._see_last_sweeps()
                led = [name for name, state in self.states.items() if self.tenancy.holds_lease(state.plan.engine_group)]
                for wish in await self.store.take_commands(led) if led else ():
                    self._grant(wish)
        except Exception as error:  # noqa: BLE001 - whatever the database does, what is known is served on
            self.health.fails("reading", error)
            return
        self.health.works("reading")

    def _heed(self, look: _Look) -> None:
        news = {stored.backend for stored in look.stored if stored.backend in self.states and self._served_anew(stored)}
        self.overrides.follow(look.overrides, look.asked)
        for name, state in self.states.items():
            if self.tenancy.holds_lease(state.plan.engine_group):
                continue
            before = state.elsewhere
            self._forget_activity(state)
            state.elsewhere = look.activities.get(name)
            if before is not None and (state.elsewhere is None or state.elsewhere.sweep_id != before.sweep_id):
                news.add(name)
                state.triggers.sweep_ended(self.clock.monotonic())
            if state.elsewhere is not None and (before is None or state.elsewhere.sweep_id != before.sweep_id):
                state.triggers.sweep_started(self.clock.monotonic())
        self._see_until_s |= dict.fromkeys(news, self.clock.monotonic() + SEE_S)
        self.changed()

    def _forget_activity(self, state: BackendState) -> None:
        if state.elsewhere is not None:
            state.sweep_ends(self.clock.monotonic())
            state.elsewhere = None

    def _served_anew(self, stored: Recommendation) -> bool:
        state = self.states[stored.backend]
        return not self.tenancy.holds_lease(state.plan.engine_group) and self.publisher.follow(stored)

    async def _see_last_sweeps(self) -> None:
        """What the page and the metrics show of them, and when the next are due."""
        now_s = self.clock.monotonic()
        self._see_until_s = {name: until_s for name, until_s in self._see_until_s.items() if now_s < until_s}
        for name in self._see_until_s:
            state = self.states[name]
            if not self.tenancy.holds_lease(state.plan.engine_group):
                self.turns.see(state, await self._sweeps(state, 2), self.clock.wall())


def _urgent_part(activity: SweepStatus | None) -> tuple[str, int] | None:
    return None if activity is None else (activity.sweep_id, activity.reserved_for_probes)
