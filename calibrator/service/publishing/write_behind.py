"""Writes to the store in the background: whoever has something to store never waits for the database.

    put ─▶ newest value of each key waits ─▶ a pass writes one after the other ─▶ what is written waits no longer
                                            └ one fails: the pass ends, and the next begins `retry_s` later

- A value that was put while an older one of its key was being written stays, and is written next.
- There is one pass at a time. A key that failed comes last in the next one, so that it holds up no other.
- What waits is in `waiting`, so that it can be read as if it were stored. It is lost with the process only.
- Each outage is logged once, and reported as a problem of the store until nothing waits that may be written.

A write may have been done although its answer was lost: `write` must bear being repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from calibrator.ports.clock import Clock
from calibrator.service.publishing.store_health import StoreHealth

RETRY_S = 5.0
CLOSE_LIMIT_S = 1.0

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def _always(_key: object) -> bool:
    return True


@dataclass(slots=True)
class WriteBehind(Generic[K, V]):
    """Written by its owner through `put` and `discard`."""

    what: str  # for log and health
    write: Callable[[K, V], Awaitable[None]]  # raises what it likes: then it was not written
    clock: Clock
    health: StoreHealth
    retry_s: float = RETRY_S
    every_s: float = 0.0  # at most one pass in that time begins by itself
    limit_s: float | None = None  # of one write; None: the store bounds it
    may_write: Callable[[K], bool] = _always  # what may not be written yet waits without being a problem
    waiting: dict[K, V] = field(default_factory=dict)
    _one_pass: asyncio.Lock = field(default_factory=asyncio.Lock)
    _running: asyncio.Task[bool] | None = None
    _not_before_s: float = 0.0
    _is_failing: bool = False

    def put(self, key: K, value: V) -> None:
        """The newest of its key wins."""
        self.waiting[key] = value

    def discard(self, key: K) -> None:
        self.waiting.pop(key, None)

    def tick(self) -> None:
        """Begin a pass, unless nothing waits, one is under way, or it is too soon."""
        if not any(map(self.may_write, self.waiting)):
            self._works()
        elif (self._running is None or self._running.done()) and self.clock.monotonic() >= self._not_before_s:
            self._running = asyncio.create_task(self.flush())

    async def flush(self) -> bool:
        """Write what waits now; never raises. False: the rest has to wait."""
        async with self._one_pass:
            self._not_before_s = self.clock.monotonic() + self.every_s
            for key in [key for key in self.waiting if self.may_write(key)]:
                if not await self._write(key):
                    return False
            if self._is_failing:
                structlog.get_logger().info(f"{self.what} stored again")
            self._works()
            return True

    async def idle(self) -> None:
        """Return between two passes."""
        async with self._one_pass:
            pass

    async def close(self, limit_s: float = CLOSE_LIMIT_S) -> None:
        """Write what waits, as far as the database lets us within the limit."""
        tasks = [asyncio.create_task(self.flush()), *([] if self._running is None else [self._running])]
        await asyncio.wait(tasks, timeout=limit_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, key: K) -> bool:
        if key not in self.waiting:  # discarded meanwhile
            return True
        value = self.waiting[key]
        try:
            async with asyncio.timeout(self.limit_s):
                await self.write(key, value)
        except Exception as error:  # noqa: BLE001 - whatever one write does, the others and the service go on
            self._fails(key, error)
            return False
        if key in self.waiting and self.waiting[key] is value:
            del self.waiting[key]
        return True

    def _fails(self, key: K, error: Exception) -> None:
        self._not_before_s = self.clock.monotonic() + self.retry_s
        self.health.fails(self.what, error)
        if not self._is_failing:
            structlog.get_logger().warning(f"{self.what} not stored yet", key=key, error=repr(error))
        self._is_failing = True
        if key in self.waiting:
            self.waiting[key] = self.waiting.pop(key)

    def _works(self) -> None:
        self._is_failing = False
        self.health.works(self.what)
