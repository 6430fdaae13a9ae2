"""What a sweep says about the traffic it sent, and the sweep of a reasoning model: simulated engines, virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from support.virtual_time import run_virtual

from calibrator.backends.simulated.inprocess import SimulatedBackend, SimulatedInspector, SimulatedTelemetry
from calibrator.backends.simulated.parameters import PARAMETER_SETS, EngineParameters
from calibrator.clock import LoopClock
from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import Objective, gap_quantiles, parse_objective
from calibrator.core.records.sample import Flight, ProbeRequest, Sample
from calibrator.core.records.sweep import Grade, SweepOutcome, SweepRecord
from calibrator.core.search.burst_mode import BurstMode
from calibrator.core.workload.classes import PromptFactory, Workload, WorkloadClass
from calibrator.load.closed_loop import ClosedLoop
from calibrator.ports.backend import BackendFacts, Connection
from calibrator.ports.load import LoadGenerator
from calibrator.ports.sweeps import SweepOrder, Target
from calibrator.service.sweep.run import SweepParts, run_sweep

Alter = Callable[[Sample], Sample]
ENGINE = PARAMETER_SETS["large"]
PLAIN = Workload((WorkloadClass(prompt_tokens=400, output_tokens=8),))


@dataclass
class Listener:
    def progress(self, progress: Progress) -> None: ...

    def partial(self, record: SweepRecord) -> None: ...


@dataclass
class AlteredBackend:
    """A simulated engine that reports something else."""

    backend: SimulatedBackend
    alter: Alter = field(default=lambda sample: sample)

    def connect(self) -> Connection:
        return AlteredConnection(self.backend.connect(), self.alter)

    async def close(self) -> None:
        await self.backend.close()


@dataclass
class AlteredConnection:
    connection: Connection
    alter: Alter

    async def send(self, request: ProbeRequest, on_start: Callable[[Flight], None]) -> Sample:
        return self.alter(await self.connection.send(request, on_start))

    def abort(self) -> None:
        self.connection.abort()


def sweep(
    parameters: EngineParameters,
    workload: Workload,
    *,
    objective: str = "ttft p99 <= 300ms",
    levels: tuple[int, ...] = (),
    bounds: Bounds | None = None,
    alter: Alter = lambda sample: sample,
    burst: BurstMode = BurstMode.OFF,
) -> SweepRecord:
    sla: tuple[Objective, ...] = (parse_objective(objective),)
    order = SweepOrder(
        "s1", "chat", Target("http://x/v1", "m"), sla, workload, bounds or Bounds(max_level=64), seed=1,
        levels=levels, requests_per_level=200 if levels else 0, burst=burst,
    )  # fmt: skip

    async def scenario() -> SweepRecord:
        clock = LoopClock()
        backend = SimulatedBackend(parameters, clock)

        def load(facts: BackendFacts) -> LoadGenerator:
            prompts = PromptFactory(workload, facts.token_scale, 1, gap_quantiles(sla), salt="s1")
            return ClosedLoop(AlteredBackend(backend, alter), prompts, sla, clock, cpu_s=lambda: 0.0)

        parts = SweepParts(SimulatedInspector(parameters), SimulatedTelemetry(backend), load, clock)
        return await run_sweep(order, parts, Listener())

    return run_virtual(scenario())


# ----------------------------------------------------------------------------------------------------------- reasoning
def test_a_reasoning_model_is_calibrated_within_its_budget() -> None:
    """4,000 tokens an answer, 3,800 of them before the first word: TTFT bits count at the first thought.

    Eight slots, and a request that waits for one waits for seconds: the capacity is 8.
    """
    thinker = EngineParameters(
        slots=8, decode_base_s=0.002, decode_per_request_s=0.00002, prefill_per_token_s=1e-5, reasoning_tokens=3_800
    )
    workload = Workload((WorkloadClass(prompt_tokens=256, output_tokens=4_000, spread_ratio=0.1),))
    record = sweep(thinker, workload, bounds=Bounds(max_level=32))
    assert (record.outcome, record.grade) == (SweepOutcome.CALIBRATED, Grade.CERTIFIED)
    assert record.capacity is not None
    assert 7 <= record.capacity.estimate <= 8
    assert record.duration_s < Bounds().duration_s
    assert record.requests < Bounds().requests
    at_capacity = next(level for level in record.levels if level.concurrency == record.capacity.estimate)
    assert at_capacity.ttft.p50 is not None
    assert at_capacity.ttfc.p50 is not None
    assert at_capacity.ttft.p50.value_s < 0.1
    assert at_capacity.ttfc.p50.value_s > 7.0
    (achieved,) = record.provenance.classes_achieved
    assert achieved.output_tokens == pytest.approx(4_000, rel=0.02)


# --------------------------------------------------------------------------------------------------------------- burst
def test_a_burst_at_the_capacity_stands_beside_the_steady_state() -> None:
    """Prompts that arrive together are computed one after the other: a burst is slower than the steady state."""
    workload = Workload((WorkloadClass(prompt_tokens=1_000, output_tokens=40),))
    record = sweep(PARAMETER_SETS["large"], workload, objective="ttft p99 <= 500ms", burst=BurstMode.REPORT)
    assert record.capacity is not None
    assert record.burst is not None
    assert record.burst.concurrency == record.capacity.estimate
    assert record.burst.burst.p50 is not None
    assert record.burst.steady is not None
    assert record.burst.steady.p50 is not None
    assert record.burst.burst.p50.value_s > 1.5 * record.burst.steady.p50.value_s
    assert record.requests >= record.history.requests + record.burst.n
    assert record.requests <= sum(dict(record.outcomes).values()) + record.burst.concurrency


def test_no_burst_unless_asked_nor_after_measured_levels() -> None:
    assert sweep(ENGINE, PLAIN, levels=(4,), burst=True).burst is None
    assert sweep(PARAMETER_SETS["small"], PLAIN, bounds=Bounds(max_level=2)).burst is None


# -------------------------------------------------------------------------------------------------------- prefix reuse
def test_intended_prefix_reuse_is_achieved_and_no_suspect() -> None:
    record = sweep(ENGINE, replace(PLAIN, prefix_reuse_ratio=0.5), levels=(8,))
    assert record.provenance.cached_ratio_achieved == pytest.approx(0.48, abs=0.03)  # whole blocks of 16 tokens
    assert record.warnings == ()
    assert record.provenance.workload.endswith("; 50% of the prompt shared")


def test_without_reuse_nothing_comes_from_the_cache() -> None:
    record = sweep(ENGINE, PLAIN, levels=(8,))
    assert record.provenance.cached_ratio_achieved == 0.0
    assert record.warnings == ()


def test_a_cache_that_is_off_leaves_the_wanted_reuse_unachieved() -> None:
    record = sweep(replace(ENGINE, prefix_cache_tokens=0), replace(PLAIN, prefix_reuse_ratio=0.5), levels=(8,))
    (warning,) = record.warnings
    assert warning.startswith("Only 0% of the prompt tokens came from the prefix cache, 50% were meant to")


def test_an_endpoint_that_caches_what_it_has_never_seen_is_suspect() -> None:
    def cached(sample: Sample) -> Sample:
        return replace(sample, cached_tokens=round(0.9 * (sample.prompt_tokens or 0)))

    (warning,) = sweep(ENGINE, PLAIN, levels=(8,), alter=cached).warnings
    assert warning.startswith("suspect_cache: 90% of the prompt tokens came from a cache, 0% were meant to")


# ------------------------------------------------------------------------------------------------------------- lengths
def test_a_server_that_ends_answers_early_is_said_by_class() -> None:
    mix = Workload((WorkloadClass("chat", 3, 100, 20), WorkloadClass("rag", 1, 800, 20)))

    def curt(sample: Sample) -> Sample:
        return replace(sample, completion_tokens=4) if sample.class_name == "rag" else sample

    record = sweep(ENGINE, mix, levels=(8,), alter=curt)
    chat, rag = record.provenance.classes_achieved
    assert (chat.name, rag.name) == ("chat", "rag")
    assert chat.prompt_tokens == pytest.approx(100, abs=1)
    assert rag.prompt_tokens == pytest.approx(800, abs=1)
    assert (chat.output_tokens, rag.output_tokens) == (20.0, 4.0)
    (warning,) = record.warnings
    assert warning.startswith("Class 'rag': answers had 4 tokens on average, 20 were wanted")


def test_a_trace_is_sent_as_recorded() -> None:
    sizes = [(50 + 10 * index, 1 + index % 7) for index in range(40)]
    record = sweep(ENGINE, Workload((WorkloadClass.recorded("t", sizes, stream=True),)), levels=(4,))
    (achieved,) = record.provenance.classes_achieved
    assert achieved.prompt_tokens == pytest.approx(245, rel=0.05)
    assert achieved.output_tokens == pytest.approx(4, rel=0.1)
    assert record.warnings == ()
