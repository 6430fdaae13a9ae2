"""Live users beside a sweep: so many in flight at each moment, each sending its next when its last one ended."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from calibrator.core.records.sample import Flight, Label, Phase, Sample
from calibrator.core.records.server_load import ServerLoad
from calibrator.ports.backend import Backend, Connection
from calibrator.ports.clock import Clock
from calibrator.ports.load import PromptSource
from calibrator.ports.telemetry import Telemetry

Shape = Callable[[float], int]  # seconds since the traffic began -> requests in flight
TICK_S = 0.05
LIVE = Label(0, Phase.RAMP)


def steady(requests: int) -> Shape:
    return lambda _: requests


def sinusoidal(mean: int, swing: int, period_s: float) -> Shape:
    return lambda at_s: round(mean + swing * math.sin(2.0 * math.pi * at_s / period_s))


def bursts(low: int, high: int, every_s: float, last_s: float) -> Shape:
    return lambda at_s: high if at_s % every_s < last_s else low


def jump(before: int, after: int, at: float) -> Shape:
    return lambda at_s: before if at_s < at else after


@dataclass(slots=True)
class LiveUsers:
    """`start` it, later `stop` it. The backend stays open."""

    backend: Backend
    prompts: PromptSource
    clock: Clock
    shape: Shape
    samples: list[Sample] = field(default_factory=list)
    in_flight: int = 0
    _wanted: int = 0
    _users: dict[asyncio.Task[None], Connection] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._task is None:
            return
        self._wanted = 0
        self._task.cancel()
        for connection in self._users.values():
            connection.abort()
        await asyncio.wait({self._task, *self._users})

    async def _follow(self) -> None:
        begun_s = self.clock.monotonic()
        while True:
            self._wanted = self.shape(self.clock.monotonic() - begun_s)
            while len(self._users) < self._wanted:
                connection = self.backend.connect()
                user = asyncio.create_task(self._live(connection))
                self._users[user] = connection
                user.add_done_callback(self._gone)
            await self.clock.sleep(TICK_S)

    def _gone(self, user: asyncio.Task[None]) -> None:
        del self._users[user]

    async def _live(self, connection: Connection) -> None:
        residual = True  # of the length that its first request would have: users do not march in step
        try:
            while self.in_flight < self._wanted:
                request = self.prompts.next_request(LIVE, residual=residual)
                residual = False
                self.in_flight += 1
                try:
                    self.samples.append(await connection.send(request, _ignore))
                finally:
                    self.in_flight -= 1
        finally:
            connection.abort()


def _ignore(_: Flight) -> None:
    """Live users have no stopwatch."""


@dataclass(slots=True)
class LateTelemetry:
    """Port `Telemetry`: gauges as they were `lag_s` ago. `start` it; it needs to have looked for that long."""

    telemetry: Telemetry
    clock: Clock
    lag_s: float
    tick_s: float = TICK_S
    problem: str = ""
    _seen: deque[tuple[float, ServerLoad]] = field(default_factory=deque)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._look())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def scrape(self) -> ServerLoad | None:
        if self.lag_s <= 0.0:
            return await self.telemetry.scrape()
        known = [load for at_s, load in self._seen if at_s <= self.clock.monotonic() - self.lag_s]
        return known[-1] if known else None

    async def close(self) -> None:
        await self.telemetry.close()

    async def _look(self) -> None:
        while True:
            load = await self.telemetry.scrape()
            if load is not None:
                self._seen.append((self.clock.monotonic(), load))
            while self._seen and self._seen[0][0] < self.clock.monotonic() - 2.0 * self.lag_s - 1.0:
                self._seen.popleft()
            await self.clock.sleep(self.tick_s)
