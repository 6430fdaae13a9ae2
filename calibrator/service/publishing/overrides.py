"""The overrides in force (core.publish.override): served at once, whatever the database does, and written behind.

Whoever pins a cap may be in the middle of an incident, with the database part of it: so the pin holds from the moment
it is asked for, and the answer says whether it would survive a restart yet. What could not be written is tried again.

Pins are set and removed at any instance; the last one stands in the database, and the others follow it. One that has
ended is removed from there by a sole instance only: among several, whose clocks differ, the one that thinks it ended
first would remove the pin that a person has just put in its place.

The last `KEPT` pins of each backend are kept beside it, as they were in force, for whoever asks why the cap was
what it was. That history is for people alone: what cannot be written of it is not tried again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from calibrator.core.publish.snapshot import Override
from calibrator.errors import StoreError
from calibrator.ports.clock import Clock
from calibrator.ports.store import OverrideStore
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.publishing.write_behind import WriteBehind

KEPT = 20
PINS = "pins"  # kind of checkpoint
_PINS = TypeAdapter(tuple[Override, ...])


class OverrideKeeper:
    """Owns the overrides of all backends."""

    def __init__(self, store: OverrideStore, clock: Clock, health: StoreHealth, *, is_sole: bool = True) -> None:
        self._store = store
        self._clock = clock
        self._is_sole = is_sole
        self._pins: dict[str, Override] = {}
        self._unwritten = WriteBehind("override", self._write, clock, health)
        self.asked = 0  # puts and clears so far
        self._log = structlog.get_logger()

    async def restore(self) -> None:
        """Raises StoreError."""
        self._pins.update(await self._store.overrides())

    def follow(self, stored: Mapping[str, Override], asked: int) -> None:
        """What the database had when `asked` puts and clears had been made here: read before a later one, it is old."""
        if asked != self.asked or self._unwritten.waiting:
            return
        for backend in self._pins.keys() | stored.keys():
            known, newest = self._pins.get(backend), stored.get(backend)
            if newest is not None and newest != known:
                self._log.warning(
                    "cap overridden at another instance",
                    backend=backend, cap=newest.cap, by=newest.author, why=newest.reason,
                )  # fmt: skip
        self._pins = {backend: pin for backend, pin in stored.items() if self._clock.wall() < pin.expires_at}

    def of(self, backend: str) -> Override | None:
        """The one in force at this moment."""
        pin = self._pins.get(backend)
        return pin if pin is not None and self._clock.wall() < pin.expires_at else None

    async def put(self, backend: str, override: Override) -> bool:
        """Whether the store has it yet."""
        self.asked += 1
        self._pins[backend] = override
        self._log.warning(
            "cap overridden", backend=backend, cap=override.cap, by=override.author, why=override.reason
        )  # fmt: skip
        return await self._stored(backend)

    async def clear(self, backend: str, author: str) -> bool:
        """False: there was none."""
        self.asked += 1
        was_in_force = self.of(backend) is not None
        if self._pins.pop(backend, None) is not None:
            self._log.warning("override removed", backend=backend, by=author)
            await self._stored(backend)
        return was_in_force

    def tick(self) -> None:
        """End what has expired; write what waits, in the background."""
        for backend in [name for name in self._pins if self.of(name) is None]:
            del self._pins[backend]
            if self._is_sole:
                self._unwritten.put(backend, None)
            self._log.info("override expired", backend=backend)
        self._unwritten.tick()

    async def close(self) -> None:
        """Write what waits, as far as the database lets us."""
        await self._unwritten.close()

    async def _stored(self, backend: str) -> bool:
        self._unwritten.put(backend, self._pins.get(backend))
        await self._unwritten.flush()
        return backend not in self._unwritten.waiting

    async def past(self, backend: str) -> Sequence[Override]:
        """Newest first, the one in force included; one that was removed expired then. Raises StoreError."""
        text = (await self._store.checkpoints(backend)).get(PINS, "[]")
        try:
            return _PINS.validate_json(text)
        except ValidationError:  # damaged, or of another release
            return ()

    async def _write(self, backend: str, pin: Override | None) -> None:
        await self._store.save_override(backend, pin)
        await self._add_to_past(backend, pin)

    async def _add_to_past(self, backend: str, pin: Override | None) -> None:
        now = self._clock.wall()
        try:
            known = await self.past(backend)
            past = list(known)
            if past and past[0].expires_at > now and past[0] != pin:
                past[0] = replace(past[0], expires_at=now)
            if pin is not None and (not past or past[0] != pin):
                past.insert(0, pin)
            if past != list(known):
                await self._store.save_checkpoint(backend, PINS, to_json(past[:KEPT]).decode())
        except StoreError as error:
            self._log.warning("past overrides not stored", backend=backend, error=str(error))
