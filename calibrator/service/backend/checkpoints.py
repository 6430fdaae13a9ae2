"""Keeps what guard, triggers and live traffic know (`core.publish.checkpoint`) over a restart of the service and over
a change of instance.

    a cause, a cool-down, an engine's restart   ─▶ written within `EVERY_S`
    what only grows (live traffic, ages)        ─▶ written every `PERIOD_S`, and at the end

Only the holder of a backend's lease writes for it; whoever takes it over restores first. After a kill the newest
quarter of an hour of live traffic is lost, and cool-downs last that much longer. A checkpoint that cannot be read,
damaged or of another release, is left alone: the watch begins anew, as without one.

Owned by the supervisor.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from calibrator.core.publish.checkpoint import GuardCheckpoint, TrafficCheckpoint, TriggerCheckpoint
from calibrator.ports.clock import Clock
from calibrator.ports.store import CheckpointStore
from calibrator.service.backend.guard import GuardWatch
from calibrator.service.backend.state import BackendState
from calibrator.service.backend.traffic import TrafficLog
from calibrator.service.backend.triggers import TriggerWatch
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.publishing.write_behind import WriteBehind

EVERY_S = 2.0
PERIOD_S = 900.0
TRIGGERS, TRAFFIC, GUARD = "triggers", "traffic", "guard"
_TRIGGERS = TypeAdapter(TriggerCheckpoint)
_TRAFFIC = TypeAdapter(TrafficCheckpoint)
_GUARD = TypeAdapter(GuardCheckpoint)


class Checkpoints:
    """One for all backends."""

    def __init__(self, store: CheckpointStore, clock: Clock, health: StoreHealth) -> None:
        self._store = store
        self._clock = clock
        self._unwritten = WriteBehind("checkpoint", self._write, clock, health)  # by backend and kind
        self._stamps: dict[str, object] = {}  # by backend: what of it was newest when last written
        self._due_s: dict[str, float] = {}  # by backend: when it is written anyway
        self._next_s = 0.0

    async def restore(self, state: BackendState) -> None:
        """Before its first scrape. Raises StoreError."""
        now_s = self._clock.monotonic()
        for kind, text in (await self._store.checkpoints(state.plan.name)).items():
            try:
                _restore(state, kind, text, now_s)
            except (ValidationError, LookupError, ValueError) as error:
                structlog.get_logger().warning(
                    "checkpoint unreadable: begun anew", backend=state.plan.name, kind=kind, error=str(error)[:200]
                )
        self._stamps[state.plan.name] = _stamp(state)
        self._due_s[state.plan.name] = now_s + PERIOD_S

    def tick(self, states: Iterable[BackendState]) -> None:
        """`states`: those whose lease this instance holds."""
        now_s = self._clock.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + EVERY_S
        for state in states:
            self._put_changed(state, now_s)
        self._unwritten.tick()

    async def close(self, states: Iterable[BackendState]) -> None:
        """Write everything, as far as the database lets us."""
        for state in states:
            self._put(state, (TRIGGERS, GUARD, TRAFFIC), self._clock.monotonic())
        await self._unwritten.close()

    def _put_changed(self, state: BackendState, now_s: float) -> None:
        name, stamp = state.plan.name, _stamp(state)
        due_s = self._due_s.setdefault(name, now_s + PERIOD_S)
        is_due = now_s >= due_s
        if is_due:
            self._due_s[name] = now_s + PERIOD_S
        if is_due or self._stamps.get(name) != stamp:
            self._put(state, (TRIGGERS, GUARD, TRAFFIC) if is_due else (TRIGGERS, GUARD), now_s)
        self._stamps[name] = stamp

    def _put(self, state: BackendState, kinds: Iterable[str], now_s: float) -> None:
        watches: dict[str, TriggerWatch | TrafficLog | GuardWatch] = {
            TRIGGERS: state.triggers,
            TRAFFIC: state.traffic,
            GUARD: state.guard,
        }
        for kind in kinds:
            document = to_json(watches[kind].checkpoint(now_s), inf_nan_mode="strings").decode()
            self._unwritten.put((state.plan.name, kind), document)

    async def _write(self, key: tuple[str, str], document: str) -> None:
        await self._store.save_checkpoint(*key, document)


def _restore(state: BackendState, kind: str, text: str, now_s: float) -> None:
    if kind == TRIGGERS:
        state.triggers.restore(_TRIGGERS.validate_json(text), now_s)
    elif kind == TRAFFIC:
        state.traffic.restore(_TRAFFIC.validate_json(text), now_s)
    elif kind == GUARD:
        state.guard.restore(_GUARD.validate_json(text), now_s)


def _stamp(state: BackendState) -> object:
    """Differs whenever something happened that a kill must not undo."""
    return state.triggers.stamp, state.guard.stamp
