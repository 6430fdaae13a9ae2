"""The ports without HTTP: every failure form is data, aborts free the engine, and the gauges are the engine's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from support.virtual_time import run_virtual

from calibrator.backends.simulated.inprocess import SCALE, SimulatedBackend, SimulatedInspector, SimulatedTelemetry
from calibrator.backends.simulated.parameters import SEED_WORKLOAD, EngineParameters, Faults, Refusal
from calibrator.clock import LoopClock
from calibrator.core.records.sample import FailureKind, Flight, Label, Phase, ProbeRequest, Sample
from calibrator.core.workload.classes import PromptFactory, Workload, WorkloadClass
from calibrator.errors import ConfigurationError

PLAIN = EngineParameters(slots=2, decode_base_s=0.1, prefill_per_token_s=0.001, max_context_tokens=2000)


def request(prompt_tokens: int = 100, output_tokens: int = 5, *, stream: bool = True) -> ProbeRequest:
    workload = Workload((WorkloadClass(prompt_tokens=prompt_tokens, output_tokens=output_tokens, stream=stream),))
    return PromptFactory(workload, SCALE, seed=1).next_request(Label(0, Phase.COUNTED), residual=False)


def with_backend(parameters: EngineParameters, scenario: Callable[[SimulatedBackend], Awaitable[None]]) -> None:
    async def main() -> None:
        backend = SimulatedBackend(parameters, LoopClock())
        await scenario(backend)
        await backend.close()

    run_virtual(main())


async def send(backend: SimulatedBackend, wanted: ProbeRequest | None = None) -> tuple[Sample, Flight]:
    flights: list[Flight] = []
    sample = await backend.connect().send(wanted or request(), flights.append)
    assert len(flights) == 1
    return sample, flights[0]


def test_a_sample_has_every_duration_and_count() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        sample, flight = await send(backend)
        assert sample.completed
        assert sample.ttft_s == sample.ttfc_s == pytest.approx(0.2)  # a step of 0.1 with 100 prompt tokens
        assert sample.e2e_s == sample.last_token_s == pytest.approx(0.6)
        assert sample.tpot_s == pytest.approx(0.1)
        assert dict(sample.gaps_s) == pytest.approx({0.5: 0.1, 0.9: 0.1, 0.99: 0.1})
        assert (sample.token_events, sample.completion_tokens, sample.prompt_tokens) == (5, 5, 100)
        assert flight.first_token_s == pytest.approx(0.2)

    with_backend(PLAIN, scenario)


def test_without_a_stream_there_is_only_the_end() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        sample, flight = await send(backend, request(stream=False))
        assert (sample.ttft_s, sample.tpot_s, sample.gaps_s, flight.first_token_s) == (None, None, (), None)
        assert sample.e2e_s == pytest.approx(0.6)

    with_backend(PLAIN, scenario)


@pytest.mark.parametrize(
    ("faults", "kind", "status"),
    [
        (Faults(truncate_ratio=1.0), FailureKind.TRUNCATED, None),
        (Faults(reset_ratio=1.0), FailureKind.RESET, None),
        (Faults(hang_ratio=1.0), FailureKind.STALLED, None),
        (Faults(refuse_ratio=1.0), FailureKind.STATUS, 503),
        (Faults(refuse_ratio=1.0, refusal=Refusal.ERROR_EVENT), FailureKind.ERROR_EVENT, 200),
        (Faults(stall_ratio=1.0, stall_s=30.0), FailureKind.STALLED, None),
    ],
)
def test_every_failure_form_is_data(faults: Faults, kind: FailureKind, status: int | None) -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        sample, _ = await send(backend)
        assert sample.failure is not None
        assert (sample.failure.kind, sample.failure.status) == (kind, status)
        assert not sample.completed
        assert backend.driver.in_flight == 0

    with_backend(replace(PLAIN, faults=faults), scenario)


def test_a_prompt_too_long_is_our_mistake() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        sample, _ = await send(backend, request(prompt_tokens=1999))
        assert sample.is_invalid

    with_backend(PLAIN, scenario)


@pytest.mark.parametrize("how", ["abort", "cancel"])
def test_aborts_and_cancellations_free_running_and_queued_requests(how: str) -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        connections = [backend.connect() for _ in range(5)]
        asks = [asyncio.create_task(one.send(request(output_tokens=500), lambda _: None)) for one in connections]
        await asyncio.sleep(1.0)
        assert (backend.driver.engine.running, backend.driver.engine.waiting) == (2, 3)
        for connection, one in zip(connections, asks, strict=True):
            if how == "abort":
                connection.abort()
            else:
                one.cancel()
        ends = await asyncio.gather(*asks, return_exceptions=True)
        if how == "abort":
            assert all(
                isinstance(end, Sample) and end.cancelled and end.duration_s == pytest.approx(1.0) for end in ends
            )
        else:
            assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        assert (backend.driver.in_flight, backend.driver.engine.kv_tokens) == (0, 0)

    with_backend(PLAIN, scenario)


def test_telemetry_reads_the_engine() -> None:
    async def scenario(backend: SimulatedBackend) -> None:
        telemetry = SimulatedTelemetry(backend)
        asks = [asyncio.create_task(send(backend)) for _ in range(5)]
        await asyncio.sleep(0.25)
        load = await telemetry.scrape()
        assert load is not None
        assert (load.running_requests, load.waiting_requests, load.in_flight_requests) == (2, 3, 5)
        assert load.kv_usage_ratio is not None
        assert load.kv_usage_ratio > 0
        await asyncio.gather(*asks)
        await telemetry.close()

    with_backend(PLAIN, scenario)


def test_the_inspector_knows_everything_and_refuses_what_does_not_fit() -> None:
    async def scenario(_: SimulatedBackend) -> None:
        facts = await SimulatedInspector(EngineParameters()).inspect(SEED_WORKLOAD)
        assert facts.forces_length
        assert facts.token_scale.words_for(104) == 100
        with pytest.raises(ConfigurationError, match="context"):
            await SimulatedInspector(PLAIN).inspect(SEED_WORKLOAD)  # its longest prompt has 3,700 tokens

    with_backend(PLAIN, scenario)
