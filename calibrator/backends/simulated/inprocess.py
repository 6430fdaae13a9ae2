"""The simulated engine without HTTP: the ports `Backend`, `Telemetry` and `Inspector` for virtual-time sweeps.

It answers as the HTTP server does (same engine, same driver, same tokenizer), minus network and parsing.
"""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

from calibrator.backends.openai_answer import gap_quantiles
from calibrator.backends.simulated import tokenizer
from calibrator.backends.simulated.driver import Driver, Request
from calibrator.backends.simulated.engine import Fate
from calibrator.backends.simulated.metrics import TTFT_BUCKETS_S
from calibrator.backends.simulated.parameters import EngineParameters, Refusal
from calibrator.backends.simulated.prefix_cache import block_hashes
from calibrator.core.records.sample import Failure, FailureKind, Flight, ProbeRequest, Sample
from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.core.workload.classes import TokenScale, Workload
from calibrator.errors import ConfigurationError
from calibrator.ports.backend import BackendFacts
from calibrator.ports.clock import Clock

MODEL = "simulated"
SCALE = TokenScale(overhead=float(tokenizer.OVERHEAD_TOKENS), per_word=1.0)
REFUSAL_S = 0.001  # a refusal takes a moment, too
ROUNDING_S = 1e-9
TTFT_BOUNDS_S = (*TTFT_BUCKETS_S, inf)


@dataclass(slots=True)
class SimulatedBackend:
    """Port `Backend`. The engine starts with the first request and runs until `close`."""

    parameters: EngineParameters
    clock: Clock
    stall_timeout_s: float = 10.0
    driver: Driver = field(init=False)
    _ttft_counts: list[int] = field(default_factory=lambda: [0] * len(TTFT_BOUNDS_S))

    def __post_init__(self) -> None:
        self.driver = Driver(self.parameters, self.clock)
        self.driver.on_first_token = self._observe

    def connect(self) -> SimulatedConnection:
        return SimulatedConnection(self)

    async def close(self) -> None:
        await self.driver.stop()

    @property
    def ttft_s(self) -> Histogram:
        """With the buckets of the HTTP server's page."""
        return Histogram(TTFT_BOUNDS_S, tuple(map(float, accumulate(self._ttft_counts))))

    def _observe(self, request: Request) -> None:
        self._ttft_counts[bisect_left(TTFT_BOUNDS_S, request.first_token_s - request.arrived_s)] += 1


@dataclass(slots=True)
class SimulatedConnection:
    """Port `Connection`."""

    backend: SimulatedBackend
    _stamps: array[float] = field(default_factory=lambda: array("d"))
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _aborted: bool = False

    async def send(self, request: ProbeRequest, on_start: Callable[[Flight], None]) -> Sample:
        driver, clock = self.backend.driver, self.backend.clock
        driver.start()
        self._stamps, self._aborted = array("d"), False
        flight = Flight(request, clock.monotonic())
        on_start(flight)
        job = self._job(flight)
        if not self.backend.parameters.fits(job.prompt_tokens, job.output_tokens):
            too_long = f"{job.prompt_tokens} + {job.output_tokens} tokens exceed the context"
            return self._sample(flight, job, Failure(FailureKind.STATUS, too_long, 400))
        if not driver.submit(job):
            await clock.sleep(REFUSAL_S)
            return self._sample(flight, job, self._refusal())
        try:
            failure = await self._follow(flight, job)
        finally:
            driver.cancel(job)
        return self._sample(flight, job, failure)

    def abort(self) -> None:
        self._aborted = True
        self._changed.set()

    def _job(self, flight: Flight) -> Request:
        request, clock = flight.request, self.backend.clock
        prompt = tokenizer.words(request.text)
        caches = self.backend.parameters.prefix_cache_tokens > 0
        reasoning_tokens = self.backend.parameters.reasoning_tokens

        def on_token() -> None:
            self._stamps.append(clock.monotonic())
            if request.stream and flight.first_token_s is None:
                flight.first_token_s = self._stamps[0]
            if request.stream and len(self._stamps) == reasoning_tokens + 1:
                flight.first_content_s = self._stamps[-1]
            if job.is_done:
                self._changed.set()

        job = Request(
            prompt_tokens=tokenizer.prompt_tokens(prompt),
            output_tokens=request.output_tokens,
            arrived_s=flight.started_s,
            blocks=block_hashes(prompt) if caches else (),
            on_token=on_token,
        )
        return job

    async def _follow(self, flight: Flight, job: Request) -> Failure | None:
        """Wait for the end, an abort, or silence."""
        while not self._aborted:
            if job.is_done and job.fate is not Fate.HANGS:
                return _CUT.get(job.fate)
            self._changed.clear()
            since_s = self._stamps[-1] if self._stamps else flight.started_s
            left_s = since_s + self.backend.stall_timeout_s - self.backend.clock.monotonic()
            if left_s <= ROUNDING_S:
                return Failure(FailureKind.STALLED, f"no progress for {self.backend.stall_timeout_s:g} s")
            with contextlib.suppress(TimeoutError):  # then tokens may have come meanwhile
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
        return None

    def _refusal(self) -> Failure:
        form = self.backend.driver.engine.faults.refusal or self.backend.parameters.refusal
        kind = FailureKind.STATUS if form is Refusal.STATUS_503 else FailureKind.ERROR_EVENT
        return Failure(kind, "the queue is full", 503 if form is Refusal.STATUS_503 else 200)

    def _sample(self, flight: Flight, job: Request, failure: Failure | None) -> Sample:
        request, stamps = flight.request, self._stamps
        first_s = stamps[0] - flight.started_s if stamps and request.stream else None
        content_s = None if flight.first_content_s is None else flight.first_content_s - flight.started_s
        complete = failure is None and not self._aborted
        return Sample(
            request_id=request.request_id,
            label=request.label,
            class_name=request.class_name,
            stream=request.stream,
            wanted_prompt_tokens=request.prompt_tokens,
            wanted_output_tokens=request.output_tokens,
            started_s=flight.started_s,
            duration_s=self.backend.clock.monotonic() - flight.started_s,
            ttft_s=first_s,
            ttfc_s=content_s,
            last_token_s=stamps[-1] - flight.started_s if first_s is not None else None,
            gaps_s=gap_quantiles(stamps, request.gap_quantiles) if request.stream else (),
            token_events=len(stamps) if request.stream else 0,
            prompt_tokens=job.prompt_tokens if complete else None,
            completion_tokens=job.made_tokens if complete else None,
            cached_tokens=job.cached_tokens if complete else None,
            failure=None if self._aborted else failure,
            cancelled=self._aborted,
        )


_CUT = {
    Fate.TRUNCATED: Failure(FailureKind.TRUNCATED, "the stream ended without a finish_reason"),
    Fate.RESET: Failure(FailureKind.RESET, "the connection broke"),
}


@dataclass(frozen=True, slots=True)
class SimulatedTelemetry:
    """Port `Telemetry`: the engine's gauges, read at once. Named as its HTTP server names itself."""

    backend: SimulatedBackend

    @property
    def problem(self) -> str:
        return ""

    async def scrape(self) -> ServerLoad | None:
        engine = self.backend.driver.engine
        return ServerLoad(
            engine="vllm",
            running_requests=float(engine.running),
            waiting_requests=float(engine.waiting),
            kv_usage_ratio=engine.kv_usage_ratio,
            preemptions_total=float(engine.counters.preemptions),
            process_start=str(id(engine)),
            refused_total=float(engine.counters.refused),
            ttft_s=self.backend.ttft_s,
        )

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class SimulatedInspector:
    """Port `Inspector`: everything is known."""

    parameters: EngineParameters

    async def inspect(self, workload: Workload) -> BackendFacts:
        longest = workload.longest
        answer_tokens = round(longest.output_tokens * (1 + longest.spread_ratio))
        if not self.parameters.fits(longest.longest_prompt_tokens, answer_tokens):
            raise ConfigurationError(
                f"The longest request ({longest.longest_prompt_tokens} + {answer_tokens} tokens) exceeds the context "
                f"of {self.parameters.max_context_tokens} tokens.",
                "Shorten the workload's prompts or answers.",
            )
        return BackendFacts(
            model=MODEL,
            token_scale=SCALE,
            forces_length=True,
            max_context_tokens=self.parameters.max_context_tokens,
            engine=MODEL,
        )
