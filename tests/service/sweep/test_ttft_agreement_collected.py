"""The engine's histogram beside our own times, through a whole sweep of the simulated engine over virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from support.virtual_time import run_virtual

from calibrator.backends.simulated.inprocess import (
    SimulatedBackend,
    SimulatedConnection,
    SimulatedInspector,
    SimulatedTelemetry,
)
from calibrator.backends.simulated.parameters import PARAMETER_SETS, WORKLOADS
from calibrator.clock import LoopClock
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import parse_objective
from calibrator.core.records.sample import Flight, Label, Phase, ProbeRequest, Sample
from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.workload.classes import PromptFactory
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.backend import BackendFacts
from calibrator.ports.load import LoadGenerator
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.service.sweep.run import SweepParts, run_sweep
from calibrator.service.sweep.ttft_agreement import TtftAgreement

ENGINE = PARAMETER_SETS["small"]
ORDER = SweepOrder(
    "s", "chat", Target("http://engine/v1", "simulated"), (parse_objective("ttft p99 <= 2s"),), WORKLOADS["small"],
    Bounds(), seed=1, levels=(4, 8), requests_per_level=400,
)  # fmt: skip


class Listener:
    """Hears nothing."""

    def progress(self, progress: Progress) -> None: ...

    def partial(self, record: SweepRecord) -> None: ...


@dataclass
class Proxy:
    """Port `Backend`: a proxy in front of the engine that takes its time; the engine knows nothing of it."""

    engine: SimulatedBackend
    delay_s: float

    def connect(self) -> ProxyConnection:
        return ProxyConnection(self.engine.connect(), self.delay_s)

    async def close(self) -> None:
        await self.engine.close()


@dataclass
class ProxyConnection:
    inner: SimulatedConnection
    delay_s: float

    async def send(self, request: ProbeRequest, on_start: Callable[[Flight], None]) -> Sample:
        await asyncio.sleep(self.delay_s)
        sample = await self.inner.send(request, on_start)
        late_s = self.delay_s
        assert sample.ttft_s is not None
        return replace(sample, ttft_s=sample.ttft_s + late_s, duration_s=sample.duration_s + late_s)

    def abort(self) -> None:
        self.inner.abort()


async def live_users(engine: SimulatedBackend, count: int) -> None:
    """Traffic of others, in the same histogram."""
    prompts = PromptFactory(ORDER.workload, (await SimulatedInspector(ENGINE).inspect(ORDER.workload)).token_scale, 9)

    async def user() -> None:
        connection = engine.connect()
        while True:
            await connection.send(prompts.next_request(Label(0, Phase.RAMP), residual=False), lambda _: None)

    await asyncio.gather(*(user() for _ in range(count)))


def sweep(delay_s: float, users: int = 0) -> SweepRecord:
    async def scenario() -> SweepRecord:
        clock = LoopClock()
        engine = SimulatedBackend(ENGINE, clock)

        def load(facts: BackendFacts) -> LoadGenerator:
            prompts = PromptFactory(ORDER.workload, facts.token_scale, ORDER.seed)
            return ClosedLoop(Proxy(engine, delay_s), prompts, ORDER.objectives, clock, cpu_s=lambda: 0.0)

        parts = SweepParts(SimulatedInspector(ENGINE), SimulatedTelemetry(engine), load, clock)
        others = asyncio.create_task(live_users(engine, users))
        record = await run_sweep(ORDER, parts, Listener())
        others.cancel()
        return record

    return run_virtual(scenario())


def disagreements(record: SweepRecord) -> list[str]:
    return [text for text in record.warnings if "the engine's own histogram" in text]


def test_an_engine_reached_directly_agrees() -> None:
    assert disagreements(sweep(0.0)) == []


def test_what_a_proxy_adds_is_said_with_both_numbers() -> None:
    (text,) = disagreements(sweep(0.5))
    assert "in flight: we measure" in text
    assert "something between us and the engine adds latency" in text


def test_among_live_users_nothing_is_said() -> None:
    assert disagreements(sweep(0.5, users=4)) == []


def load_of(*counts: float) -> ServerLoad:
    return ServerLoad("e", ttft_s=Histogram((0.1, 0.2, float("inf")), counts))


def sample(ttft_s: float | None) -> Sample:
    return Sample(1, Label(1, Phase.COUNTED), "c", stream=True, wanted_prompt_tokens=1, started_s=0.0, duration_s=1.0,
                  ttft_s=ttft_s)  # fmt: skip


@pytest.mark.parametrize(
    ("ttft_s", "end", "says"),
    [
        (0.9, load_of(150.0, 150.0, 150.0), True),
        (0.05, load_of(150.0, 150.0, 150.0), False),
        (0.9, load_of(5.0, 5.0, 5.0), False),  # the engine restarted
        (0.9, ServerLoad("e"), False),  # it stopped telling
    ],
)
def test_a_stretch_lies_between_its_first_and_its_last_scrape(ttft_s: float, end: ServerLoad, *, says: bool) -> None:
    watch = TtftAgreement()
    watch.ended([sample(5.0)] * 70)  # before the first scrape
    watch.scraped(load_of(100.0, 100.0, 100.0))
    watch.ended([sample(ttft_s)] * 50)
    watch.ended([sample(None)] * 10)  # failed
    watch.scraped(end)
    watch.ended([sample(5.0)] * 70)  # after the last
    watch.leave(8)
    assert bool(watch.warnings) is says
