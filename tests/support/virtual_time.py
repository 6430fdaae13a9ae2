"""An event loop on virtual time: hours pass in milliseconds, in exact order, without patching anything.

asyncio asks its selector to wait until the next timer. This selector never waits: when nothing is ready it adds the
wanted wait to a counter, and the loop's `time()` returns that counter. No timer and nothing ready is a deadlock.
No sockets and no threads under it: in-memory transports only.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class JumpSelector(selectors.DefaultSelector):
    """Jumps to the next timer instead of waiting for it."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("deadlock: no timer, nothing readable")
        if not ready and timeout is not None:
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio on virtual time."""

    def __init__(self) -> None:
        self._jump = JumpSelector()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s


class Ticks(Protocol):
    """A supervisor."""

    def tick(self) -> None: ...

    async def run(self, stop: asyncio.Event) -> None: ...


async def ticking(service: Ticks, stop: asyncio.Event, every_s: float | None = None) -> None:
    """Run the service, or tick it by hand at another pace: hours that pass need no four ticks a second."""
    if every_s is None:
        await service.run(stop)
        return
    while not stop.is_set():
        service.tick()
        await asyncio.sleep(every_s)


def run_virtual(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end on virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
