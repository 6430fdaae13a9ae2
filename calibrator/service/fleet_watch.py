"""What follows from each scrape of a backend's replicas: its cap fits the fleet, guard and triggers are asked.

    scrape ─▶ replicas or balance changed? ─▶ the cap for so many replicas     only who holds the lease
           ─▶ guard: do live users say that the cap is wrong? ─▶ cap, sweep     only who holds the lease
           ─▶ triggers: does anything call for a sweep? ─▶ sweep                all watch; only the holder sweeps

The others watch as well, so that they know when they become the holder. Called by each `Fleet`, which passes its
scrapes in order; each of the three steps is isolated, so that a bug in one costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import structlog

from calibrator.core.live.liveness import certified_queue
from calibrator.core.publish.balance import Balance
from calibrator.core.publish.fleet import FleetLook, Probes
from calibrator.core.publish.guard_cap import after_event
from calibrator.core.publish.recommendation import for_fleet
from calibrator.core.publish.snapshot import State
from calibrator.ports.clock import Clock
from calibrator.service.backend.fleet import ScrapeContext
from calibrator.service.backend.state import BackendState
from calibrator.service.publishing.leases import LeaseManager
from calibrator.service.publishing.publisher import Publisher
from calibrator.service.sweep_scheduler import SweepScheduler


@dataclass(slots=True)
class FleetWatch:
    """`service.backend.fleet.FleetObserver` of all backends."""

    states: Mapping[str, BackendState]
    scheduler: SweepScheduler
    publisher: Publisher
    leases: LeaseManager
    clock: Clock
    changes: int = 0  # of what the snapshot shows
    _fitted: dict[str, tuple[int, int, Balance]] = field(default_factory=dict)  # epoch, replicas and balance of the cap

    def context(self, backend: str) -> ScrapeContext:
        served = self.publisher.served[backend]
        return ScrapeContext(served.cap, served.replica_cap, self._probes_on)

    def scraped(self, backend: str, scrape: FleetLook) -> None:
        """Once a second for each backend."""
        state = self.states[backend]
        if self.leases.holds_lease(backend):
            self.scheduler.isolate(self._fit_to_fleet, state)
            self.scheduler.isolate(partial(self._ask_guard, scrape), state)
        self.scheduler.isolate(partial(self._ask_triggers, scrape), state)

    def _probes_on(self, url: str) -> Probes | None:
        """Backends of one engine group have the same replicas: the probes of each are probes to all."""
        now_s = self.clock.monotonic()
        found = [probes for state in self.states.values() if (probes := state.probes_on(url, now_s)) is not None]
        known = (probes.organic for probes in found if probes.organic is not None)
        return Probes(sum(probes.in_flight for probes in found), next(known, None)) if found else None

    def _fit_to_fleet(self, state: BackendState) -> None:
        """Replicas came or went, or their balance is known better; or the lease, and with it the cap, is new."""
        name, size = state.plan.name, state.size()
        fitted = (self.leases.epoch(name), size.replicas, size.balance)
        if self._fitted.get(name) == fitted:
            return
        known = self.publisher.newest(name)
        changed = for_fleet(known, state.plan.policy, size, self.clock.wall())
        if changed is not known:
            self.publisher.publish(changed)
        self._fitted[name] = fitted

    def _ask_guard(self, scrape: FleetLook, state: BackendState) -> None:
        name, last = state.plan.name, state.group_primary.results.last
        served = self.publisher.served[name]
        event = state.guard.observe(
            scrape,
            is_guarded=served.state is State.GUARDED,
            is_sweeping=self._is_sweeping(state.plan.engine_group),
            queue_allowed=certified_queue(() if last is None else last.levels, served.replica_cap),
        )
        if event is None:
            return
        self.changes += 1
        changed = after_event(event, served, state.plan.guard.cut_ratio, state.plan.policy, self.clock.wall())
        if changed is not None:
            self.publisher.publish(changed)
        if event.wants_sweep:
            self.scheduler.queue(state.group_primary, f"guard: {event.words}")
        structlog.get_logger().warning("guard", backend=name, action=event.action.value, why=event.words)

    def _ask_triggers(self, scrape: FleetLook, state: BackendState) -> None:
        is_sweeping = self._is_sweeping(state.plan.engine_group)
        state.traffic.observe(scrape, is_sweeping=is_sweeping)
        due = state.triggers.observe(scrape, is_sweeping=is_sweeping)
        is_asked_here = state.primary is None and self.leases.holds_lease(state.plan.name)
        if due is None or not is_asked_here or state.slot.requested is not None:
            return
        self.scheduler.queue(state, due.reason, may_raise=due.may_raise, is_warm=due.is_warm)
        if state.plan.limits.observe:  # it will be deferred for good: logged once
            state.triggers.reported(scrape.at_s)
        self.changes += 1

    def _is_sweeping(self, group: str) -> bool:
        return any(state.is_swept for state in self.states.values() if state.plan.engine_group == group)
