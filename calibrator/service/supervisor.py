"""The service between sweeps: one tick decides what is due, starts it, collects what ended, and publishes.

    tick:  collect ended sweeps ─▶ publish ─▶ start due sweeps ─▶ write what waits; engines are scraped beside it

A tick waits for nothing, so it is atomic, and the endless loop around it is trivial. Whatever takes time has a task of
its own: each sweep, each scrape of a fleet, and the writing to the store. Everything a backend can do wrong stays with
that backend: its errors set its own health. A valid cap is never removed by an error.

Sweeps are `service.sweep_scheduler`, what follows from a scrape is `service.fleet_watch`. Where several instances share
a database, `service.publishing.leases` says what this one may do, and `service.replication` what the others did: only
the holder of an engine group's lease sweeps, publishes, guards and reacts to triggers for it; every instance scrapes
and answers.

All parts are built in `wiring.supervision`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from calibrator.core.publish.snapshot import Override, Recommendation, Snapshot
from calibrator.core.records.sweep import SweepRecord
from calibrator.errors import ConfigurationError
from calibrator.ports.clock import Clock
from calibrator.ports.sharing import Poll, Poller, Share
from calibrator.ports.store import ForwardedCommand
from calibrator.service.backend.checkpoints import Checkpoints
from calibrator.service.backend.outcome import STOPPED
from calibrator.service.backend.state import BackendState
from calibrator.service.backend.view import backend_view
from calibrator.service.clock_watch import ClockWatch
from calibrator.service.fleet_watch import FleetWatch
from calibrator.service.publishing.leases import LeaseManager
from calibrator.service.publishing.overrides import OverrideKeeper
from calibrator.service.publishing.publisher import Publisher
from calibrator.service.publishing.shares import Shares
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.replication import Replication
from calibrator.service.sweep_scheduler import SweepScheduler

TICK_S = 0.25
STOP_LIMIT_S = 2.0  # a sweep's process is killed after 1.5 s
GOODBYE_LIMIT_S = 0.3


@dataclass(slots=True)
class Supervisor:
    """Port `Operator`, and the loop behind it."""

    states: Mapping[str, BackendState]
    scheduler: SweepScheduler
    fleet_watch: FleetWatch
    publisher: Publisher
    shares: Shares
    overrides: OverrideKeeper
    checkpoints: Checkpoints
    leases: LeaseManager
    replication: Replication
    health: StoreHealth
    clock: Clock
    new_id: Callable[[], str]
    _clock_watch: ClockWatch = field(init=False)
    _log: Any = field(default_factory=structlog.get_logger)
    _started_at: float = field(init=False)
    _changes: int = 0
    _snapshot: tuple[tuple[int, ...], Snapshot] | None = None
    _is_ready: bool = False
    _is_stopping: bool = False
    _generator_events_per_s: float | None = None

    def __post_init__(self) -> None:
        self._clock_watch, self._started_at = ClockWatch(self.clock), self.clock.wall()

    # --------------------------------------------------------------------------------------------- life cycle
    async def start(self) -> None:
        """Serve what is stored, or the fallback; take the leases that are free. Raises StoreError."""
        await self.replication.begin()
        await self.shares.restore(self.snapshot().backends.values())
        self._is_ready = True
        self._changes += 1

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until stopped."""
        while not stop.is_set():
            self.tick()
            await self.clock.sleep(TICK_S)

    async def stop(self) -> None:
        """End every sweep, save what they had, start nothing more, release the leases. May be called again."""
        self._is_stopping = True
        self.shares.notify_all()
        running = self.scheduler.end_all(STOPPED)
        if running:
            await asyncio.wait(running, timeout=STOP_LIMIT_S)
        for state in self.states.values():
            if state.slot.running is not None:
                self.scheduler.isolate(self.scheduler.end, state)
        await asyncio.gather(
            self.checkpoints.close(self._held()), self.publisher.close(), self.shares.close(), self.overrides.close()
        )
        await self.replication.close(GOODBYE_LIMIT_S)
        settling = [state.slot.settling for state in self.states.values() if state.slot.settling is not None]
        for task in settling:
            task.cancel()
        closing = (state.fleet.close() for state in self.states.values())
        await asyncio.gather(*settling, *closing, return_exceptions=True)

    def _held(self) -> list[BackendState]:
        """Those whose lease this instance holds."""
        return [state for name, state in self.states.items() if self.leases.holds_lease(name)]

    # --------------------------------------------------------------------------------------------------- tick
    def tick(self) -> None:
        """One round; never raises, whatever a backend, the store or an engine does."""
        self._changes += 1
        self._follow_clock()
        self.replication.tick()
        for state in self.states.values():
            self.scheduler.isolate(self._attend, state)
        if not self._is_stopping:
            for state in self.scheduler.due():
                self.scheduler.isolate(self.scheduler.start, state)
        self.publisher.tick()
        self.overrides.tick()
        self.checkpoints.tick(self._held())
        if not self.shares.is_idle:
            self.shares.tick(self.snapshot().backends.values())

    def _follow_clock(self) -> None:
        step_s = self._clock_watch.stepped_s()
        if step_s:
            self._log.warning("the wall clock was set", by_s=round(step_s))
            self.scheduler.clock_stepped(step_s)

    def _attend(self, state: BackendState) -> None:
        state.gateways.clients, state.gateways.clients_over_cap = self.shares.clients(state.plan.name)
        if not self._is_stopping:
            state.fleet.tick(self.fleet_watch)
        self.scheduler.attend(state)

    # ----------------------------------------------------------------------------------------------- operator
    def snapshot(self) -> Snapshot:
        """Made once a tick and once a change of a cap, however many ask."""
        stamp = (
            self._changes, self.publisher.changes, self.health.changes, self.replication.changes,
            self.fleet_watch.changes,
        )  # fmt: skip
        if self._snapshot is None or self._snapshot[0] != stamp:
            self._snapshot = stamp, self._new_snapshot()
        return self._snapshot[1]

    def _new_snapshot(self) -> Snapshot:
        lags_s = [state.results.generator_lag_s for state in self.states.values()]
        served, problem = self.publisher.served, self.health.problem
        return Snapshot(
            taken_at=self.clock.wall(),
            started_at=self._started_at,
            backends={
                name: backend_view(state, served[name], self.overrides.of(name), self.publisher.trend(name), problem)
                for name, state in self.states.items()
                if name in served
            },
            ready=self._is_ready,
            store_problem=problem,
            generator_lag_s=max((lag_s for lag_s in lags_s if lag_s is not None), default=None),
            generator_events_per_s=self._generator_events_per_s,
        )

    def rate_generator(self, events_per_s: float | None) -> None:
        """What the self-test of the start found; None: nothing."""
        self._generator_events_per_s = events_per_s

    async def request_sweep(self, backend: str, reason: str) -> str:
        state = self._commanded(backend)
        name, elsewhere = state.plan.name, state.lease.elsewhere
        if self.leases.holds_lease(name):
            return self.scheduler.request(state, reason)
        if elsewhere is not None:
            raise ConfigurationError(f"Sweep {elsewhere.sweep_id} of '{backend}' is running.", "Wait for its end.")
        sweep_id = self.new_id()
        await self.replication.forward(ForwardedCommand(name, sweep_id, reason, self.clock.wall()))
        return sweep_id

    async def cancel_sweep(self, backend: str, author: str) -> str:
        state = self._commanded(backend)
        name, elsewhere = state.plan.name, state.lease.elsewhere
        self._log.warning("sweep cancelled", backend=backend, by=author)
        if self.leases.holds_lease(name):
            return self.scheduler.cancel(state, author)
        if elsewhere is None:
            raise ConfigurationError(f"No sweep of '{backend}' runs.", "There is nothing to do.")
        await self.replication.forward(ForwardedCommand(name, "", author, self.clock.wall()))
        return elsewhere.sweep_id

    def _commanded(self, backend: str) -> BackendState:
        """Who measures for it. Raises ConfigurationError if there is none, or we stop."""
        state = self.states.get(backend)
        if state is None:
            raise self._unknown(backend)
        if self._is_stopping:
            raise ConfigurationError("The service is stopping.", "Ask again after its restart.")
        self._changes += 1
        return state.group_primary

    async def recommendations(self, backend: str, limit: int) -> Sequence[Recommendation]:
        return await self.publisher.recommendations(backend, limit)

    async def pins(self, backend: str) -> Sequence[Override]:
        return await self.overrides.past(backend)

    def pollers(self, backend: str) -> Sequence[Poller]:
        return self.shares.pollers(backend)

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        state = self.states.get(backend)
        return await self.publisher.sweeps(backend if state is None else state.group_primary.plan.name, limit)

    async def sweep(self, sweep_id: str) -> SweepRecord | None:
        for state in self.states.values():
            if state.slot.running is not None and state.slot.running.sweep_id == sweep_id:
                return state.slot.running.partial
        return await self.publisher.sweep(sweep_id)

    async def samples(self, sweep_id: str) -> bytes | None:
        return await self.publisher.samples(sweep_id)

    async def override(self, backend: str, override: Override) -> bool:
        if backend not in self.states:
            raise self._unknown(backend)
        try:
            return await self.overrides.put(backend, override)
        finally:
            self._changes += 1

    async def clear_override(self, backend: str, author: str) -> bool:
        if backend not in self.states:
            raise self._unknown(backend)
        try:
            return await self.overrides.clear(backend, author)
        finally:
            self._changes += 1

    def poll(self, backend: str, poll: Poll) -> Share:
        view = self.snapshot().backends.get(backend)
        if view is None:
            raise self._unknown(backend)
        self.states[backend].gateways.polls += not poll.is_waiting
        return self.shares.poll(view, poll)

    async def changed(self, backend: str, limit_s: float) -> None:
        await self.shares.changed(backend, limit_s)

    def _unknown(self, backend: str) -> ConfigurationError:
        return ConfigurationError(
            f"There is no backend '{backend}'.", f"Configured are: {', '.join(sorted(self.states))}."
        )
