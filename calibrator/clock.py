"""The two real clocks. Under a virtual-time event loop, tests use `LoopClock`: `sleep` and `monotonic` then agree."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """`time.monotonic` rather than the loop's clock: uvloop caches its time with millisecond resolution."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class LoopClock:
    """Time of the running event loop; `wall` starts at `epoch_s`."""

    def __init__(self, epoch_s: float = 1_800_000_000.0) -> None:
        self._epoch_s = epoch_s

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return self._epoch_s + asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
