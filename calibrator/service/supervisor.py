"""The service between sweeps: one tick decides what is due, starts it, collects what ended, and publishes.

    tick:  collect ended sweeps ─▶ publish ─▶ start due sweeps ─▶ write what waits; looks at the engines go beside it

A tick waits for nothing, so it is atomic, and the endless loop around it is trivial. Whatever takes time has a task of
its own: each sweep, each look at an engine's metrics, and the writing to the store. Everything a backend can do wrong
stays with that backend: its errors set its own health. A valid cap is never removed by an error.

Sweeps themselves are in `service.sweep_scheduler`, the look at the replicas in `service.backend.fleet`. Where several
instances share a database, `service.publishing.leases` says what this one may do, and `service.replication` what the
others did: only who leads an engine group sweeps, publishes, guards and reacts to triggers for it; every instance
scrapes and answers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from calibrator.core.live.liveness import certified_queue
from calibrator.core.publish.fleet import FleetScrape, Probes
from calibrator.core.publish.guard_cap import after_event
from calibrator.core.publish.lease import SOLE, LeasePolicy
from calibrator.core.publish.recommendation import for_fleet
from calibrator.core.publish.snapshot import Health, Override, Recommendation, Snapshot, State
from calibrator.core.records.sweep import SweepRecord
from calibrator.errors import ConfigurationError
from calibrator.ports.clock import Clock
from calibrator.ports.sharing import Poll, Poller, Share
from calibrator.ports.store import ForwardedCommand, Lease, Leases, Store
from calibrator.ports.sweeps import BackendPlan, SweepRunner, Target
from calibrator.ports.telemetry import Discovery, Telemetry
from calibrator.service.backend.checkpoints import Checkpoints
from calibrator.service.backend.fleet import Fleet, ScrapeContext
from calibrator.service.backend.outcome import STOPPED
from calibrator.service.backend.state import BackendState, Wanted
from calibrator.service.clock_watch import ClockWatch
from calibrator.service.publishing.joint_shares import JointShares
from calibrator.service.publishing.leases import LeaseManager
from calibrator.service.publishing.overrides import OverrideKeeper
from calibrator.service.publishing.publisher import Publisher
from calibrator.service.publishing.shares import ShareKeeper, Shares
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.replication import Replication
from calibrator.service.sweep_scheduler import SweepScheduler

TICK_S = 0.25
STOP_LIMIT_S = 2.0  # a sweep's process is killed after 1.5 s
TELL_LIMIT_S = 0.3


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
        lease: LeasePolicy = SOLE,
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
        self._clock = clock
        self._new_id = new_id
        self._changes = 0
        self._health = StoreHealth()
        groups = dict.fromkeys(plan.engine_group for plan in plans)
        self._leases = LeaseManager(
            groups, leases, holder, policy=lease, clock=clock, health=self._health, take_over=self._take_over
        )  # fmt: skip
        self._publisher = Publisher(store, clock, self._tenure_of, self._health, self._lost)
        self._scheduler = SweepScheduler(
            self._states,
            runner=runner,
            publisher=self._publisher,
            tenancy=self._leases,
            clock=clock,
            max_parallel=max_parallel,
            draws=draws,
            new_id=new_id,
        )
        self._shares: Shares = (
            ShareKeeper(store, clock)
            if lease.is_sole
            else JointShares(store, clock, holder, self._tenure_of, self._health)
        )
        self._overrides = OverrideKeeper(store, clock, self._health, is_sole=lease.is_sole)
        self._checkpoints = Checkpoints(store, clock)
        self._replication = Replication(
            self._states,
            store,
            clock,
            self._leases,
            self._publisher,
            self._scheduler,
            self._overrides,
            self._checkpoints,
            self._health,
            self._change,
        )
        self._clock_watch = ClockWatch(clock)
        self._log = structlog.get_logger()
        self._started_at = clock.wall()
        self._picture: tuple[tuple[int, int, int], Snapshot] | None = None
        self._is_ready = False
        self._is_stopping = False
        self._generator_events_per_s: float | None = None

    # --------------------------------------------------------------------------------------------- life cycle
    async def start(self) -> None:
        """Serve what the store remembers, or the fallback; lead what nobody else leads. Raises StoreError."""
        await self._replication.begin()
        await self._shares.restore(self.snapshot().backends.values())
        self._is_ready = True
        self._change()

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until told to stop."""
        while not stop.is_set():
            self.tick()
            await self._clock.sleep(TICK_S)

    async def stop(self) -> None:
        """End every sweep, save what they had, start nothing more, let others lead. May be called again."""
        self._is_stopping = True
        self._shares.notify_all()
        running = self._scheduler.end_all(STOPPED)
        if running:
            await asyncio.wait(running, timeout=STOP_LIMIT_S)
        for state in self._states.values():
            if state.running is not None:
                self._guard(self._scheduler.end, state)
        led = [state for state in self._states.values() if self._holds_lease(state)]
        await asyncio.gather(
            self._checkpoints.close(led), self._publisher.close(), self._shares.close(), self._overrides.close()
        )
        await self._replication.close(TELL_LIMIT_S)
        rest = [state.settling for state in self._states.values() if state.settling is not None]
        for task in rest:
            task.cancel()
        closing = (state.fleet.close() for state in self._states.values())
        await asyncio.gather(*rest, *closing, return_exceptions=True)

    def _change(self) -> None:
        """The snapshot is to be made anew."""
        self._changes += 1

    # ---------------------------------------------------------------------------------------------------- leases
    async def _take_over(self, group: str) -> None:
        await self._replication.take_over(group)

    def _tenure_of(self, backend: str) -> Lease | None:
        return self._leases.tenure(self._states[backend].plan.engine_group)

    def _lost(self, backend: str) -> None:
        self._leases.lost(self._states[backend].plan.engine_group)

    def _holds_lease(self, state: BackendState) -> bool:
        return self._leases.holds_lease(state.plan.engine_group)

    # --------------------------------------------------------------------------------------------------- tick
    def tick(self) -> None:
        """One round; never raises, whatever a backend, the store or an engine does."""
        self._change()
        self._follow_clock()
        self._replication.tick()
        for state in self._states.values():
            self._guard(self._attend, state)
        if not self._is_stopping:
            for state in self._scheduler.due():
                self._guard(self._scheduler.start, state)
        self._publisher.write_behind()
        self._overrides.tick()
        self._checkpoints.tick(state for state in self._states.values() if self._holds_lease(state))
        if not self._shares.is_idle:
            self._shares.tick(self.snapshot().backends.values())

    def _follow_clock(self) -> None:
        step_s = self._clock_watch.stepped_s()
        if step_s:
            self._log.warning("the wall clock was set", by_s=round(step_s))
            for state in self._states.values():
                state.due_at += step_s

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
        self._scheduler.attend(state)

    # ------------------------------------------------------------------------------------------------ replicas
    def _fleet(
        self, plan: BackendPlan, discovery: Discovery, telemetry: Callable[[Target], Telemetry], clock: Clock
    ) -> Fleet:
        name = plan.name
        return Fleet(plan, discovery, telemetry, clock, partial(self._scrape_context, name), partial(self._saw, name))

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
                state.group_primary, state.share = states[0], state.plan.replicas.weight / total

    def _scrape_context(self, name: str) -> ScrapeContext:
        served = self._publisher.served[name]
        return ScrapeContext(served.cap, served.replica_cap, self._probes_on)

    def _probes_on(self, url: str) -> Probes | None:
        """Backends of one engine group have the same replicas: the probes of each are probes to all."""
        now_s = self._clock.monotonic()
        found = [probes for state in self._states.values() if (probes := state.probes_on(url, now_s)) is not None]
        known = (probes.organic for probes in found if probes.organic is not None)
        return Probes(sum(probes.in_flight for probes in found), next(known, None)) if found else None

    def _saw(self, name: str, look: FleetScrape) -> None:
        """Once a second for each backend: whoever watches the fleet is told here, each within its own `_guard`.

        What follows from it is the leading instance's matter; the others watch, so that they know when they lead.
        """
        state = self._states[name]
        if self._holds_lease(state):
            self._guard(self._fit_to_fleet, state)
            self._guard(partial(self._watch_users, look), state)
        self._guard(partial(self._watch_triggers, look), state)

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

    def _watch_users(self, look: FleetScrape, state: BackendState) -> None:
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
        self._change()
        changed = after_event(event, served, state.plan.guard.cut_ratio, state.plan.policy, self._clock.wall())
        if changed is not None:
            self._publisher.publish(changed)
        measures = state.group_primary
        if event.wants_sweep and measures.wanted is None and measures.running is None:
            measures.wanted = Wanted(self._new_id(), f"guard: {event.words}")
        self._log.warning("guard", backend=name, action=event.action.value, why=event.words)

    def _watch_triggers(self, look: FleetScrape, state: BackendState) -> None:
        is_sweeping = self._is_sweeping(state.plan.engine_group)
        state.traffic.saw(look, is_sweeping=is_sweeping)
        due = state.triggers.saw(look, is_sweeping=is_sweeping)
        if due is None or state.group_primary is not state or state.wanted is not None or not self._holds_lease(state):
            return
        state.wanted = Wanted(self._new_id(), due.reason, may_raise=due.may_raise, is_warm=due.is_warm)
        if state.plan.limits.observe:  # it will be held back, which is told once
            state.triggers.told(look.at_s)
        self._changes += 1

    def _is_sweeping(self, group: str) -> bool:
        return any(state.is_swept for state in self._states.values() if state.plan.engine_group == group)

    # ----------------------------------------------------------------------------------------------- operator
    def snapshot(self) -> Snapshot:
        """Made once a tick and once a change of a cap, however many ask."""
        stamp = (self._changes, self._publisher.changes, self._health.changes)
        if self._picture is None or self._picture[0] != stamp:
            self._picture = stamp, self._new_picture()
        return self._picture[1]

    def _new_picture(self) -> Snapshot:
        lags_s = [state.generator_lag_s for state in self._states.values() if state.generator_lag_s is not None]
        served, problem = self._publisher.served, self._health.problem
        return Snapshot(
            taken_at=self._clock.wall(),
            started_at=self._started_at,
            backends={
                name: state.view(
                    served[name], self._overrides.of(name), self._publisher.trend(name), self._health.problem
                )
                for name, state in self._states.items()
                if name in served
            },
            ready=self._is_ready,
            store_problem=problem,
            generator_lag_s=max(lags_s, default=None),
            generator_events_per_s=self._generator_events_per_s,
        )

    def rate_generator(self, events_per_s: float | None) -> None:
        """What the self-test of the start found; None: nothing."""
        self._generator_events_per_s = events_per_s

    async def request_sweep(self, backend: str, reason: str) -> str:
        state = self._asked_about(backend)
        if self._holds_lease(state):
            return self._scheduler.request(state, reason)
        if state.elsewhere is not None:
            running_id = state.elsewhere.sweep_id
            raise ConfigurationError(f"Sweep {running_id} of '{backend}' is running.", "Wait for its end.")
        sweep_id = self._new_id()
        await self._replication.wish(ForwardedCommand(state.plan.name, sweep_id, reason, self._clock.wall()))
        return sweep_id

    async def cancel_sweep(self, backend: str, author: str) -> str:
        state = self._asked_about(backend)
        self._log.warning("sweep cancelled", backend=backend, by=author)
        if self._holds_lease(state):
            return self._scheduler.cancel(state, author)
        if state.elsewhere is None:
            raise ConfigurationError(f"No sweep of '{backend}' runs.", "There is nothing to do.")
        await self._replication.wish(ForwardedCommand(state.plan.name, "", author, self._clock.wall()))
        return state.elsewhere.sweep_id

    def _asked_about(self, backend: str) -> BackendState:
        """Who measures for it. Raises ConfigurationError if there is none, or we stop."""
        state = self._states.get(backend)
        if state is None:
            raise self._unknown(backend)
        if self._is_stopping:
            raise ConfigurationError("The service is stopping.", "Ask again after its restart.")
        self._change()
        return state.group_primary

    async def recommendations(self, backend: str, limit: int) -> Sequence[Recommendation]:
        return await self._publisher.recommendations(backend, limit)

    async def pins(self, backend: str) -> Sequence[Override]:
        return await self._overrides.past(backend)

    def pollers(self, backend: str) -> Sequence[Poller]:
        return self._shares.pollers(backend)

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        state = self._states.get(backend)
        return await self._publisher.sweeps(backend if state is None else state.group_primary.plan.name, limit)

    async def sweep(self, sweep_id: str) -> SweepRecord | None:
        for state in self._states.values():
            if state.running_id == sweep_id and state.partial is not None:
                return state.partial
        return await self._publisher.sweep(sweep_id)

    async def samples(self, sweep_id: str) -> bytes | None:
        return await self._publisher.samples(sweep_id)

    async def override(self, backend: str, override: Override) -> bool:
        if backend not in self._states:
            raise self._unknown(backend)
        try:
            return await self._overrides.put(backend, override)
        finally:
            self._change()

    async def clear_override(self, backend: str, author: str) -> bool:
        if backend not in self._states:
            raise self._unknown(backend)
        try:
            return await self._overrides.clear(backend, author)
        finally:
            self._change()

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
