"""An engine that its KV memory limits is calibrated beside live users: full memory is where it works.

The engine hands its memory out in blocks, a hundredth each, so that its gauge reads 100 % while a few tokens are still
free, as those of real engines do. `pytest -s` prints the five sweeps.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from support.organic import steady
from support.organic_cases import DEFAULT_BOUNDS, truth_of
from support.organic_sweep import Engine, sweep_beside

from calibrator.backends.simulated.parameters import PARAMETER_SETS, WORKLOADS
from calibrator.core.records.harm import AbortLimits, AbortReason
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import SweepRecord

ENGINE = Engine("memory", PARAMETER_SETS["tight_memory"], WORKLOADS["tight_memory"], "ttft p99 <= 250ms")
LIVE_RATIO = 0.3  # of the true capacity
TOLERANCE_RATIO = 0.10
SEEDS = range(1, 6)
BLOCKS = 100

pytestmark = pytest.mark.timeout(180)


def in_blocks(_: float, load: ServerLoad) -> ServerLoad:
    return replace(load, kv_usage_ratio=math.ceil(BLOCKS * (load.kv_usage_ratio or 0.0)) / BLOCKS)


def sweep(users: int, seed: int, abort: AbortLimits) -> SweepRecord:
    return sweep_beside(ENGINE, steady(users), seed, bounds=DEFAULT_BOUNDS, abort=abort, change=in_blocks).record


def test_the_capacity_is_found_beside_thirty_per_cent_of_live_load() -> None:
    truth = truth_of(ENGINE)
    records = [sweep(round(LIVE_RATIO * truth), seed, AbortLimits()) for seed in SEEDS]
    found = [0 if record.capacity is None else record.capacity.estimate for record in records]
    harm = [record.harm for record in records]
    print(f"\ntruth {truth}, beside {round(LIVE_RATIO * truth)} users: found {found}")
    print(f"live late {[one.live_exceedances for one in harm]}, preemptions {[one.preemptions for one in harm]}")
    fullest = [max(level.server.kv_usage_ratio or 0.0 for level in record.levels) for record in records]
    assert (min(fullest), min(one.preemptions for one in harm)) >= (1.0, 1), "memory is what limits, in every sweep"
    assert all(record.aborted is None for record in records)
    assert sum(abs(one - truth) <= TOLERANCE_RATIO * truth for one in found) >= 4


def test_with_a_bound_on_the_gauge_it_cannot_be_found() -> None:
    record = sweep(12, 1, AbortLimits(kv_usage_ratio=1.0))
    assert record.aborted is not None
    assert record.aborted.reason is AbortReason.KV_USAGE
