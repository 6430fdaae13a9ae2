"""The default engine with its workload is the seed document's server; in-process and in pure virtual time alike."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest
from support.virtual_time import run_virtual

from calibrator.backends.simulated.inprocess import SCALE, SimulatedBackend
from calibrator.backends.simulated.parameters import PARAMETER_SETS, SEED_WORKLOAD, WORKLOADS, EngineParameters
from calibrator.backends.simulated.virtual_loop import VirtualRequest, run_level
from calibrator.clock import LoopClock
from calibrator.core.records.sample import Flight, Label, Phase, Sample
from calibrator.core.workload.classes import PromptFactory, Workload

SEED = PARAMETER_SETS["seed"]
COUNTED = Label(1, Phase.COUNTED)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


def largest_difference(one: list[float], other: list[float]) -> float:
    """Of the two empirical distributions (Kolmogorov-Smirnov), in bins of 0.1 ms: steps make equal times."""
    bins = [Counter(round(value * 1e4 + 0.123) for value in values) for values in (one, other)]
    distance = largest = 0.0
    for place in sorted(bins[0] | bins[1]):
        distance += bins[0][place] / len(one) - bins[1][place] / len(other)
        largest = max(largest, abs(distance))
    return largest


async def closed_loop(parameters: EngineParameters, workload: Workload, users: int, count: int) -> list[Sample]:
    """`count` samples after a warm-up of ten requests a user, through the port, by a loop of this test's own."""
    backend = SimulatedBackend(parameters, LoopClock())
    prompts = PromptFactory(workload, SCALE, seed=7)
    warm_up, last = 10 * users, 10 * users + count
    samples: list[Sample] = []

    def started(_: Flight) -> None:
        return

    async def user(number: int) -> None:
        await asyncio.sleep(0.005 * number)
        connection = backend.connect()
        while len(samples) < count:
            request = prompts.next_request(COUNTED, residual=False)
            sample = await connection.send(request, started)
            if warm_up <= sample.request_id < last:
                samples.append(sample)

    await asyncio.gather(*(user(number) for number in range(users)))
    await backend.close()
    return samples


@pytest.mark.parametrize(("users", "p99_ms"), [(8, 90.0), (32, 280.0), (64, 480.0)])
def test_the_default_engine_has_the_curve_of_the_seed_document(users: int, p99_ms: float) -> None:
    samples = run_virtual(closed_loop(SEED, SEED_WORKLOAD, users, 10_000))
    assert all(sample.completed and sample.prompt_tokens == sample.wanted_prompt_tokens for sample in samples[:100])
    ttft_s = [sample.ttft_s for sample in samples if sample.ttft_s is not None]
    assert len(ttft_s) == 10_000
    assert 1000.0 * quantile(ttft_s, 0.99) == pytest.approx(p99_ms, rel=0.15)


def test_low_levels_are_quick_and_high_ones_not_too_busy_for_python() -> None:
    """A sweep must be short, and one process must be able to really serve it."""
    for users, residence_s, requests_per_second in ((1, 0.2, 60), (8, 0.2, 150), (64, 1.0, 160)):
        seen: list[VirtualRequest] = []
        duration_s = run_level(SEED, SEED_WORKLOAD, users, 3000, seen.append)
        assert quantile([one.e2e_s for one in seen], 0.5) < residence_s
        assert 3000 / duration_s < requests_per_second


@pytest.mark.parametrize(("users", "name"), [(24, "seed"), (8, "long_prompts"), (30, "tight_memory")])
def test_in_process_and_pure_virtual_time_agree(users: int, name: str) -> None:
    """Event by event on asyncio, and in leaps without it: the same distributions of every latency."""
    parameters, workload = PARAMETER_SETS[name], WORKLOADS[name]
    samples = run_virtual(closed_loop(parameters, workload, users, 4000))
    virtual: list[VirtualRequest] = []
    run_level(parameters, workload, users, 4000, virtual.append, with_gaps=True)
    pairs = (
        ([sample.ttft_s for sample in samples], [one.ttft_s for one in virtual]),
        ([sample.e2e_s for sample in samples], [one.e2e_s for one in virtual]),
        ([sample.tpot_s for sample in samples], [one.tpot_s for one in virtual]),
        ([sample.latency_s("itl", 0.9) for sample in samples], [one.gap_s(0.9) for one in virtual]),
    )
    for measured, expected in pairs:
        known = [value for value in measured if value is not None]
        assert len(known) == 4000
        assert largest_difference(known, expected) < 0.08  # between two seeds of either: up to 0.07
