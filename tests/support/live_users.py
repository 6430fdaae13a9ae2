"""Live traffic on a simulated engine in virtual time: Poisson arrivals behind a gateway that keeps the cap."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from calibrator.backends.simulated.driver import Driver, Request
from calibrator.backends.simulated.metrics import TTFT_BUCKETS_S
from calibrator.backends.simulated.parameters import EngineParameters
from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.ports.clock import Clock

BOUNDS_S = (*TTFT_BUCKETS_S, float("inf"))


@dataclass
class LiveEngine:
    """Port `Telemetry`, and the engine behind it."""

    parameters: EngineParameters
    clock: Clock
    driver: Driver = field(init=False)
    ttfts_s: list[float] = field(default_factory=list)
    turned_away: int = 0
    finished: int = 0
    problem: str = ""
    _counts: list[float] = field(default_factory=lambda: [0.0] * len(BOUNDS_S))

    def __post_init__(self) -> None:
        self.driver = Driver(self.parameters, self.clock, on_end=self._ended)

    def change_speed(self, factor: float) -> None:
        """Every step takes 1 / factor as long as at first."""
        slower = replace(
            self.parameters,
            decode_base_s=self.parameters.decode_base_s / factor,
            prefill_per_token_s=self.parameters.prefill_per_token_s / factor,
        )
        self.driver.engine.parameters = slower

    async def serve(self, per_second: float, cap: Callable[[], int], seed: int = 1) -> None:
        """Until cancelled. A gateway at its cap turns requests away."""
        draws = random.Random(seed)
        self.driver.start()
        try:
            while True:
                await self.clock.sleep(draws.expovariate(per_second))
                if self.driver.in_flight >= cap():
                    self.turned_away += 1
                    continue
                tokens = draws.randint(80, 120)
                self.driver.submit(Request(prompt_tokens=200, output_tokens=tokens, arrived_s=self.clock.monotonic()))
        finally:
            await self.driver.stop()

    def _ended(self, request: Request) -> None:
        ttft_s = request.first_token_s - request.arrived_s
        self.finished += 1
        self.ttfts_s.append(ttft_s)
        self._counts = [
            count + (ttft_s <= bound_s) for count, bound_s in zip(self._counts, BOUNDS_S, strict=True)
        ]  # fmt: skip

    async def scrape(self) -> ServerLoad:
        engine = self.driver.engine
        await asyncio.sleep(0.0)
        return ServerLoad(
            "vllm",
            running_requests=float(engine.running),
            waiting_requests=float(engine.waiting),
            process_start="1",
            finished_total=float(self.finished),
            output_tokens_total=float(engine.counters.generated_tokens),
            ttft_s=Histogram(BOUNDS_S, tuple(self._counts)),
        )

    async def close(self) -> None:
        """Nothing is held."""
