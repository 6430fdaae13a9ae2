"""The service between sweeps: one tick decides what is due, starts it, collects what ended, and publishes.

    tick:  collect ended sweeps ─▶ publish ─▶ start due sweeps ─▶ write what waits; looks at the engines go beside it

A tick waits for nothing, so it is atomic, and the endless loop around it is trivial. Whatever takes time has a task of
its own: each sweep, each look at an engine's metrics, and the writing to the store. Everything a backend can do wrong
stays with that backend: its errors set its own health. A valid cap is never removed by an error.

Sweeps themselves are in `service.turns`, the look at the replicas in `service.fleet`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from calibrator.core.fleet import FleetLook
from calibrator.core.guard_signals import certified_queue
from calibrator.core.guarded import after_event
from calibrator.core.recommendation import fallback, for_fleet, under_policy
from calibrator.core.snapshot import Health, Override, Recommendation, Snapshot, State
from calibrator.core.sweep_record import SweepRecord
from calibrator.errors import ConfigurationError, StoreError
from calibrator.ports import (
    BackendPlan,
    Clock,
    Discovery,
    Leases,
    Poll,
    Poller,
    Share,
    Store,
    SweepRunner,
    Target,
    Telemetry,
    Tenure,
)
from calibrator.service.backend_state import BackendState, Wanted
from calibrator.service.fleet import Fleet, Surroundings
from calibrator.service.memories import Memories
from calibrator.service.overrides import OverrideKeeper
from calibrator.service.publisher import TREND_POINTS, Publisher
from calibrator.service.shares import ShareKeeper
from calibrator.service.turns import Turns

TICK_S = 0.25
OVERTIME_S = 300.0  # beyond the sweep's own time budget, which does not cover the first look at the backend
STOP_LIMIT_S = 4.0
SWEEPS_READ_AT_START = 20
LEASE_S = 15.0


class Supervisor:
    """Port `Operator`, and the loop behind it."""

    def __init__(
        self,
        plans: Sequence[BackendPlan],
        *,
        runner: SweepRunner,
        store: Store,
        leases: Leases,
        holder: str,
        clock: Clock,
        telemetry: Callable[[Target], Telemetry],
        discovery: Callable[[BackendPlan], Discovery],
        max_parallel: int,
        draws: random.Random,
        new_id: Callable[[], str],
    ) -> None:
        self._states = {
            plan.name: BackendState(plan, self._fleet(plan, discovery(plan), telemetry, clock)) for plan in plans
        }
        self._share_engines()
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._leases = leases
        self._holder = holder
        self._tenures: dict[str, Tenure] = {}  # by backend
        self._publisher = Publisher(store, clock, self._tenures)
        self._turns = Turns(
            self._states,
            runner=runner,
            publisher=self._publisher,
            clock=clock,
            max_parallel=max_parallel,
            draws=draws,
            new_id=new_id,
        )
        self._shares = ShareKeeper(store, clock)
        self._overrides = OverrideKeeper(store, clock)
        self._memories = Memories(store, clock)
        self._log = structlog.get_logger()
        self._started_at = clock.wall()
        self._changes = 0
        self._picture: tuple[tuple[int, int], Snapshot] | None = None
        self._is_ready = False
        self._is_stopping = False
        self._generator_events_per_s: float | None = None

    # --------------------------------------------------------------------------------------------- life cycle
    async def start(self) -> None:
        """Serve what the store remembers, or the fallback. Raises StoreError."""
        now = self._clock.wall()
        await self._take_leases()
        interrupted = await self._store.interrupt_running_sweeps(self._states.keys(), now)
        if interrupted:
            self._log.warning("sweeps of the last run were interrupted", count=interrupted)
        known = {stored.backend: stored for stored in await self._store.latest_recommendations()}
        for name in self._states:
            self._publisher.look_back(await self._store.recommendations(name, TREND_POINTS))
        self._publisher.adopt(stored for stored in known.values() if stored.backend in self._states)
        for name, state in self._states.items():
            self._restore_cap(state.plan, known.get(name), now)
            measured_by = state.leader.plan.name
            self._turns.restore(state, await self._store.sweeps(measured_by, SWEEPS_READ_AT_START), now)
            await state.door.restore(self._store, now)
            await self._memories.recall(state)
        await self._publisher.flush()
        await self._overrides.restore()
        await self._shares.restore(self.snapshot().backends.values())
        self._is_ready = True
        self._changes += 1

    async def _take_leases(self) -> None:
        for state in self._states.values():
            group = state.plan.engine_group
            known = (one for one in self._tenures.values() if one.group == group)
            tenure = next(known, None) or await self._leases.acquire(group, self._holder, LEASE_S)
            if tenure is None:
                raise StoreError(f"Another instance holds the lease of '{group}'.", "Stop that one.")
            self._tenures[state.plan.name] = tenure

    def _restore_cap(self, plan: BackendPlan, known: Recommendation | None, now: float) -> None:
        if known is None:
            self._publisher.publish(fallback(plan.name, plan.policy, now))
            return
        today = under_policy(known, plan.policy, now)
        if today is not known:
            self._publisher.publish(today)

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until told to stop."""
        while not stop.is_set():
            self.tick()
            await self._clock.sleep(TICK_S)

    async def stop(self) -> None:
        """End every sweep, save what they had, start nothing more. May be called again."""
        self._is_stopping = True
        self._shares.ring_all()
        running = [state.running for state in self._states.values() if state.running is not None]
        for sweep in running:
            sweep.cancel()
        if running:
            await asyncio.wait(running, timeout=STOP_LIMIT_S)
        for state in self._states.values():
            if state.running is not None:
                self._guard(partial(self._turns.end, is_stopping=True), state)
        await self._memories.close(self._states.values())
        await self._publisher.close()
        await self._shares.close()
        await self._overrides.close()
        rest = [state.settling for state in self._states.values() if state.settling is not None]
        for task in rest:
            task.cancel()
        closing = (state.fleet.close() for state in self._states.values())
        await asyncio.gather(*rest, *closing, return_exceptions=True)

    # --------------------------------------------------------------------------------------------------- tick
    def tick(self) -> None:
        """One round; never raises, whatever a backend, the store or an engine does."""
        self._changes += 1
        for state in self._states.values():
            self._guard(self._attend, state)
        if not self._is_stopping:
            for state in self._turns.due():
                self._guard(self._turns.start, state)
        self._publisher.write_behind()
        self._overrides.tick()
        self._memories.tick(self._states.values())
        if not self._shares.is_idle:
            self._shares.tick(self.snapshot().backends.values())

    def _guard(self, step: Callable[[BackendState], None], state: BackendState) -> None:
        try:
            step(state)
        except Exception as error:  # noqa: BLE001 - one backend's bug must not end the service for all the others
            self._log.exception("unexpected", backend=state.plan.name)
            state.health, state.health_reason = Health.ERROR, f"unexpected {type(error).__name__}: {error}"
            state.due_at = max(state.due_at, self._clock.wall() + state.plan.schedule.every_s)

    def _attend(self, state: BackendState) -> None:
        state.gateways = self._shares.clients(state.plan.name)
        if not self._is_stopping:
            state.fleet.tend()
        self._turns.attend(state)

    # ------------------------------------------------------------------------------------------------ replicas
    def _fleet(
        self, plan: BackendPlan, discovery: Discovery, telemetry: Callable[[Target], Telemetry], clock: Clock
    ) -> Fleet:
        name = plan.name
        return Fleet(plan, discovery, telemetry, clock, partial(self._surroundings, name), partial(self._saw, name))

    def _share_engines(self) -> None:
        """Backends of one group at the same addresses share the sweeps of the first, and its capacity by weight.

        At other addresses of the group there are other engines, which only must not be swept at the same time.
        """
        sharing: dict[object, list[BackendState]] = {}
        for state in self._states.values():
            plan = state.plan
            places = (plan.replicas.urls or plan.target.url, plan.replicas.dns)
            sharing.setdefault((plan.engine_group, places), []).append(state)
        for states in sharing.values():
            total = sum(state.plan.replicas.weight for state in states)
            for state in states:
                state.leader, state.share = states[0], state.plan.replicas.weight / total

    def _surroundings(self, name: str) -> Surroundings:
        served = self._publisher.served[name]
        return Surroundings(served.cap, served.replica_cap, self._probes_on)

    def _probes_on(self, url: str) -> int:
        """Backends of one engine group have the same replicas: the probes of each are probes to all."""
        return sum(state.probes_in_flight for state in self._states.values() if state.is_measuring(url))

    def _saw(self, name: str, look: FleetLook) -> None:
        """Once a second for each backend: whoever watches the fleet is told here, each within its own `_guard`."""
        self._guard(self._fit_to_fleet, self._states[name])
        self._guard(partial(self._watch_users, look), self._states[name])
        self._guard(partial(self._watch_triggers, look), self._states[name])

    def _fit_to_fleet(self, state: BackendState) -> None:
        """Replicas came or went, or their balance is known better."""
        size = state.size()
        if state.sized == (size.replicas, size.balance):
            return
        known = self._publisher.newest(state.plan.name)
        fitted = for_fleet(known, state.plan.policy, size, self._clock.wall())
        if fitted is not known:
            self._publisher.publish(fitted)
        state.sized = (size.replicas, size.balance)

    def _watch_users(self, look: FleetLook, state: BackendState) -> None:
        name = state.plan.name
        served = self._publisher.served[name]
        event = state.guard.saw(
            look,
            is_guarded=served.state is State.GUARDED,
            is_sweeping=self._is_sweeping(state.plan.engine_group),
            queue_allowed=certified_queue(() if state.last is None else state.last.levels, served.replica_cap),
        )
        if event is None:
            return
        self._changes += 1
        changed = after_event(event, served, state.plan.guard.cut_ratio, state.plan.policy, self._clock.wall())
        if changed is not None:
            self._publisher.publish(changed)
        measures = state.leader
        if event.wants_sweep and measures.wanted is None and measures.running is None:
            measures.wanted = Wanted(self._new_id(), f"guard: {event.words}")
        self._log.warning("guard", backend=name, action=event.action.value, why=event.words)

    def _watch_triggers(self, look: FleetLook, state: BackendState) -> None:
        is_sweeping = self._is_sweeping(state.plan.engine_group)
        state.traffic.saw(look, is_sweeping=is_sweeping)
        due = state.triggers.saw(look, is_sweeping=is_sweeping)
        if due is None or state.leader is not state or state.wanted is not None:
            return
        state.wanted = Wanted(self._new_id(), due.reason, may_raise=due.may_raise, is_warm=due.is_warm)
        if state.plan.care.observe:  # it will be held back, which is told once
            state.triggers.told(look.at_s)
        self._changes += 1

    def _is_sweeping(self, group: str) -> bool:
        return any(state.running is not None for state in self._states.values() if state.plan.engine_group == group)

    # ----------------------------------------------------------------------------------------------- operator
    def snapshot(self) -> Snapshot:
        """Made once a tick and once a change of a cap, however many ask."""
        stamp = (self._changes, self._publisher.changes)
        if self._picture is None or self._picture[0] != stamp:
            self._picture = stamp, self._new_picture()
        return self._picture[1]

    def _new_picture(self) -> Snapshot:
        lags_s = [state.generator_lag_s for state in self._states.values() if state.generator_lag_s is not None]
        served = self._publisher.served
        return Snapshot(
            taken_at=self._clock.wall(),
            started_at=self._started_at,
            backends={
                name: state.view(served[name], self._overrides.of(name), self._publisher.trend(name))
                for name, state in self._states.items()
                if name in served
            },
            ready=self._is_ready,
            generator_lag_s=max(lags_s, default=None),
            generator_events_per_s=self._generator_events_per_s,
        )

    def rate_generator(self, events_per_s: float | None) -> None:
        """What the self-test of the start found; None: nothing."""
        self._generator_events_per_s = events_per_s

    async def request_sweep(self, backend: str, reason: str) -> str:
        state = self._states.get(backend)
        if state is None:
            raise self._unknown(backend)
        state = state.leader
        if self._is_stopping:
            raise ConfigurationError("The service is stopping.", "Ask again after its restart.")
        self._changes += 1
        return self._turns.request(state, reason)

    async def cancel_sweep(self, backend: str, author: str) -> str:
        state = self._states.get(backend)
        if state is None:
            raise self._unknown(backend)
        self._changes += 1
        self._log.warning("sweep cancelled", backend=backend, by=author)
        return self._turns.cancel(state.leader, author)

    async def recommendations(self, backend: str, limit: int) -> Sequence[Recommendation]:
        return await self._publisher.recommendations(backend, limit)

    def pollers(self, backend: str) -> Sequence[Poller]:
        return self._shares.pollers(backend)

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        state = self._states.get(backend)
        return await self._publisher.sweeps(backend if state is None else state.leader.plan.name, limit)

    async def sweep(self, sweep_id: str) -> SweepRecord | None:
        for state in self._states.values():
            if state.running_id == sweep_id and state.partial is not None:
                return state.partial
        return await self._publisher.sweep(sweep_id)

    async def override(self, backend: str, override: Override) -> bool:
        if backend not in self._states:
            raise self._unknown(backend)
        try:
            return await self._overrides.put(backend, override)
        finally:
            self._changes += 1

    async def clear_override(self, backend: str, author: str) -> bool:
        if backend not in self._states:
            raise self._unknown(backend)
        try:
            return await self._overrides.clear(backend, author)
        finally:
            self._changes += 1

    def poll(self, backend: str, poll: Poll) -> Share:
        view = self.snapshot().backends.get(backend)
        if view is None:
            raise self._unknown(backend)
        self._states[backend].polls += not poll.is_waiting
        return self._shares.poll(view, poll)

    async def changed(self, backend: str, limit_s: float) -> None:
        await self._shares.changed(backend, limit_s)

    def _unknown(self, backend: str) -> ConfigurationError:
        return ConfigurationError(
            f"There is no backend '{backend}'.", f"Configured are: {', '.join(sorted(self._states))}."
        )
