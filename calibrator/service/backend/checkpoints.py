"""Keeps what the watches know (`core.publish.checkpoint`) over a restart of the service, and over a change of instance.

    a cause, a cool-down, a restart seen   ─▶ written within `LOOK_S`
    what only grows (live traffic, ages)   ─▶ written every `PERIOD_S`, and at the end

Only who sweeps a backend writes for it; whoever takes it over recalls first. After a kill the newest quarter of an hour
of live traffic is lost, and cool-downs last that much longer. A document that cannot be read, damaged or of another
release, is left alone: the watch begins anew, as without one. A database that fails is tried again.

Owned by the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import structlog
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from calibrator.core.publish.checkpoint import GuardCheckpoint, TrafficCheckpoint, TriggerCheckpoint
from calibrator.errors import StoreError
from calibrator.ports.clock import Clock
from calibrator.ports.store import Store
from calibrator.service.backend.guard import GuardWatch
from calibrator.service.backend.state import BackendState
from calibrator.service.backend.traffic import TrafficLog
from calibrator.service.backend.triggers import TriggerWatch

LOOK_S = 2.0
PERIOD_S = 900.0
RETRY_S = 5.0
CLOSE_LIMIT_S = 1.0
TRIGGERS, TRAFFIC, GUARD = "triggers", "traffic", "guard"
_TRIGGERS = TypeAdapter(TriggerCheckpoint)
_TRAFFIC = TypeAdapter(TrafficCheckpoint)
_GUARD = TypeAdapter(GuardCheckpoint)


@dataclass(slots=True)
class Checkpoints:
    """One for all backends."""

    store: Store
    clock: Clock
    _stamps: dict[str, object] = field(default_factory=dict)  # by backend: what of it was newest when last written
    _due_s: dict[str, float] = field(default_factory=dict)  # by backend: when it is written anyway
    _waiting: dict[tuple[str, str], str] = field(default_factory=dict)  # by backend and kind: documents
    _next_look_s: float = 0.0
    _writing: asyncio.Task[None] | None = None

    async def recall(self, state: BackendState) -> None:
        """Before its first look. Raises StoreError."""
        now_s = self.clock.monotonic()
        for kind, text in (await self.store.memories(state.plan.name)).items():
            try:
                _recall(state, kind, text, now_s)
            except (ValidationError, LookupError, ValueError) as error:
                structlog.get_logger().warning(
                    "a memory cannot be read; begun anew", backend=state.plan.name, kind=kind, error=str(error)[:200]
                )
        self._stamps[state.plan.name] = _stamp(state)
        self._due_s[state.plan.name] = now_s + PERIOD_S

    def tick(self, states: Iterable[BackendState]) -> None:
        """`states`: those that this instance sweeps."""
        now_s = self.clock.monotonic()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + LOOK_S
        for state in states:
            self._look_at(state, now_s)
        if self._waiting and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._flush())

    async def close(self, states: Iterable[BackendState]) -> None:
        """Write everything, as far as the database lets us in `CLOSE_LIMIT_S`."""
        for state in states:
            self._put(state, (TRIGGERS, GUARD, TRAFFIC), self.clock.monotonic())
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._flush()

    def _look_at(self, state: BackendState, now_s: float) -> None:
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
            memory = watches[kind].memory(now_s)
            self._waiting[state.plan.name, kind] = to_json(memory, inf_nan_mode="strings").decode()

    async def _flush(self) -> None:
        """Never raises; what could not be written waits for the next look."""
        for key, document in list(self._waiting.items()):
            try:
                await self.store.save_memory(*key, document)
            except StoreError as error:
                self._next_look_s = self.clock.monotonic() + RETRY_S
                structlog.get_logger().warning("memory not stored yet", backend=key[0], kind=key[1], error=str(error))
                return
            if self._waiting.get(key) is document:
                del self._waiting[key]


def _recall(state: BackendState, kind: str, text: str, now_s: float) -> None:
    if kind == TRIGGERS:
        state.triggers.recall(_TRIGGERS.validate_json(text), now_s)
    elif kind == TRAFFIC:
        state.traffic.recall(_TRAFFIC.validate_json(text), now_s)
    elif kind == GUARD:
        state.guard.recall(_GUARD.validate_json(text), now_s)


def _stamp(state: BackendState) -> object:
    """Differs whenever something happened that a kill must not undo."""
    return state.triggers.stamp, state.guard.stamp
