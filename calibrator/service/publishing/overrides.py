"""The pins in force (core.publish.override): served at once, whatever the database does, and written behind.

Whoever pins a cap may be in the middle of an incident, with the database part of it: so the pin holds from the moment
it is asked for, and the answer says whether a restart would remember it yet. What could not be written is tried again.

Pins are set and removed at any instance; the last word stands in the database, and the others follow it. One that has
ended is removed from there by a sole instance only: among several, whose clocks differ, the one that thinks it ended
first would remove the pin that a person has just put in its place.

The last `KEPT` pins of each backend are remembered beside it, as they were in force, for whoever asks why the cap was
what it was. That history is for people alone: what cannot be written of it is not tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from calibrator.core.publish.snapshot import Override
from calibrator.errors import StoreError
from calibrator.ports.clock import Clock
from calibrator.ports.store import Store
from calibrator.service.publishing.store_health import StoreHealth

RETRY_S = 5.0
CLOSE_LIMIT_S = 1.0
KEPT = 20
PINS = "pins"  # kind of memory
_PINS = TypeAdapter(tuple[Override, ...])


class OverrideKeeper:
    """Owns the overrides of all backends."""

    def __init__(self, store: Store, clock: Clock, health: StoreHealth | None = None, *, is_sole: bool = True) -> None:
        self._store = store
        self._clock = clock
        self._health = health or StoreHealth()
        self._is_sole = is_sole
        self._pins: dict[str, Override] = {}
        self._unwritten: set[str] = set()
        self._one_writer = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None
        self._not_before_s = 0.0
        self.asked = 0  # puts and clears so far
        self._log = structlog.get_logger()

    async def restore(self) -> None:
        """Raises StoreError."""
        self._pins.update(await self._store.overrides())

    def follow(self, stored: Mapping[str, Override], asked: int) -> None:
        """What the database had when `asked` puts and clears had been made here: read before a later one, it is old."""
        if asked != self.asked or self._unwritten:
            return
        for backend in self._pins.keys() | stored.keys():
            known, told = self._pins.get(backend), stored.get(backend)
            if told is not None and told != known:
                self._log.warning(
                    "cap overridden elsewhere", backend=backend, cap=told.cap, by=told.author, why=told.reason
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
                self._unwritten.add(backend)
            self._log.info("override expired", backend=backend)
        is_writing = self._writing is not None and not self._writing.done()
        if self._unwritten and not is_writing and self._clock.monotonic() >= self._not_before_s:
            self._writing = asyncio.create_task(self._flush())

    async def close(self) -> None:
        """Write what waits, as far as the database lets us in `CLOSE_LIMIT_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._flush()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _stored(self, backend: str) -> bool:
        self._unwritten.add(backend)
        await self._flush()
        return backend not in self._unwritten

    async def past(self, backend: str) -> Sequence[Override]:
        """Newest first, the one in force included; one that was removed expired then. Raises StoreError."""
        text = (await self._store.checkpoints(backend)).get(PINS, "[]")
        try:
            return _PINS.validate_json(text)
        except ValidationError:  # damaged, or of another release
            return ()

    async def _remember(self, backend: str, pin: Override | None) -> None:
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
            self._log.warning("override not remembered", backend=backend, error=str(error))

    async def _flush(self) -> None:
        async with self._one_writer:
            for backend in sorted(self._unwritten):
                pin = self._pins.get(backend)
                try:
                    await self._store.save_override(backend, pin)
                except StoreError as error:
                    self._not_before_s = self._clock.monotonic() + RETRY_S
                    self._health.fails("overrides", error)
                    self._log.warning("override not stored yet", backend=backend, error=str(error))
                    return
                self._health.works("overrides")
                await self._remember(backend, pin)
                if self._pins.get(backend) is pin:
                    self._unwritten.discard(backend)
