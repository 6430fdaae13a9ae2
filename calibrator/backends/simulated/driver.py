"""Runs the pure engine on a clock: one task, one sleep a step.

Steps follow each other at absolute times: the next one starts where the last one ended, not when this task woke up, so
a slow event loop makes tokens late but never the engine slower. Requests that arrive while a step runs (or while its
end is being handed out late) join the step after.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from calibrator.backends.simulated.engine import Engine, Job
from calibrator.backends.simulated.parameters import EngineParameters
from calibrator.ports.clock import Clock


@dataclass(slots=True, eq=False)
class Request(Job):
    """A job that somebody waits for. `on_token` is called once per token; the last call finds `is_done` true."""

    on_token: Callable[[], None] = field(default=lambda: None, repr=False)
    finish_reason: str = "length"
    first_token_s: float = math.inf
    ended_s: float = math.inf


@dataclass(slots=True)
class Driver:
    """`start` it on the running loop, then `submit`."""

    parameters: EngineParameters
    clock: Clock
    on_first_token: Callable[[Request], None] = lambda _: None
    on_end: Callable[[Request], None] = lambda _: None  # after the last token
    requests_total: int = 0
    peak_in_flight: int = 0
    engine: Engine[Request] = field(init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.engine = Engine(self.parameters)

    @property
    def in_flight(self) -> int:
        return self.engine.running + self.engine.waiting

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="simulated-engine")

    async def stop(self) -> None:
        """Requests in flight never get another token."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.result()

    def submit(self, request: Request) -> bool:
        """False: refused."""
        if self._task is None or self._task.done():
            raise RuntimeError("the engine does not run")
        self.requests_total += 1
        if not self.engine.submit(request):
            return False
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        self._wake.set()
        return True

    def cancel(self, request: Request) -> None:
        self.engine.cancel(request)

    async def _run(self) -> None:
        now_s = self.clock.monotonic()
        while True:
            step = self.engine.start_step(now_s)
            if step is None:
                self._wake.clear()
                await self._wake.wait()
                now_s = max(now_s, self.clock.monotonic())
                continue
            now_s += step.duration_s
            await self.clock.sleep(max(0.0, now_s - self.clock.monotonic()))
            self._hand_out(now_s)

    def _hand_out(self, now_s: float) -> None:
        end = self.engine.finish_step()
        for request in end.prefilled:
            if request.first_token_s == math.inf:  # else it was preempted and computed again
                request.first_token_s = now_s
                self.on_first_token(request)
        for request in end.finished:
            request.ended_s = now_s
        for tokens in (end.decoded, end.prefilled):
            for request in tokens:
                request.on_token()
        for request in end.finished:
            self.on_end(request)
