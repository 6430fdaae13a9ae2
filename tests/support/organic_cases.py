"""Engines of known capacity beside live traffic of several shapes: the rows of the organic-traffic table.

The default abort limits are in force. `BOUNDS` is a larger request budget than the default, so that what is compared is
the capacity beside live traffic with the truth, and not the scatter of a search that runs out of requests;
`DEFAULT_BOUNDS` is what users have.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

from calibrator.backends.simulated.parameters import PARAMETER_SETS, WORKLOADS
from calibrator.backends.simulated.truth import true_capacity
from calibrator.core.records.harm import AbortLimits
from calibrator.core.records.history import Bounds
from calibrator.core.workload.classes import Workload, WorkloadClass
from support.organic import Shape, bursts, sinusoidal, steady
from support.organic_sweep import Engine, sweep_beside

TRUTH_REQUESTS = 20_000
BOUNDS = Bounds(max_level=64, requests=4000, duration_s=3600.0)
DEFAULT_BOUNDS = Bounds(max_level=64)
RUNS = 5

SLOTS = Engine(
    "32 slots",
    replace(
        PARAMETER_SETS["small"],
        slots=32,
        decode_per_request_s=0.00005,
        prefill_per_token_s=0.000_01,
        prefill_chunk_tokens=512,
    ),
    WORKLOADS["small"],
    "ttft p99 <= 40ms",
)
PREFILL = Engine(
    "prefill",
    PARAMETER_SETS["long_prompts"],
    Workload((WorkloadClass(prompt_tokens=1000, output_tokens=16, spread_ratio=0.5, prompt_sigma=0.25),)),
    "ttft p99 <= 380ms",
)
ENGINES = (SLOTS, PREFILL)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Live users: `mean` requests in flight, in some shape."""

    name: str
    mean: int
    shape: Shape


STEADY = tuple(Traffic(f"{count} steady", count, steady(count)) for count in (0, 8, 20))
MOVING = (
    Traffic("8 +-4 in 60 s", 8, sinusoidal(8, 4, 60.0)),
    Traffic("20 +-6 in 60 s", 20, sinusoidal(20, 6, 60.0)),
    Traffic("6, bursts of 14", 8, bursts(6, 14, every_s=20.0, last_s=5.0)),
    Traffic("18, bursts of 26", 20, bursts(18, 26, every_s=30.0, last_s=6.0)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `ignoring`: the same sweeps without a look at the gauges."""

    engine: str
    traffic: str
    lag_s: float
    truth: int
    found: tuple[int, ...]
    ignoring: tuple[int, ...] = ()
    aborted: int = 0  # of the sweeps

    @property
    def median(self) -> int:
        return statistics.median_low(self.found)

    @property
    def error_ratio(self) -> float:
        return self.median / self.truth - 1.0

    def __str__(self) -> str:
        blind = f"{statistics.median_low(self.ignoring):3} {list(self.ignoring)}" if self.ignoring else ""
        return (
            f"{self.engine:9} {self.traffic:17} lag {self.lag_s:g} s  truth {self.truth:3}  found {self.median:3} "
            f"({self.error_ratio:+.0%}) {list(self.found)!s:22}  aborted {self.aborted}  ignoring it {blind}"
        )


def truth_of(engine: Engine) -> int:
    known = true_capacity(
        engine.parameters, engine.workload, engine.sla, max_level=64, boundary_requests=TRUTH_REQUESTS
    )
    return known.capacity


def row(
    engine: Engine,
    traffic: Traffic,
    lag_s: float,
    truth: int,
    *,
    runs: int = RUNS,
    ignoring: int = 1,
    bounds: Bounds = BOUNDS,
) -> Row:
    """One condition, all its sweeps; `ignoring`: how many of them once more without a look at the gauges."""
    limits, seeds = AbortLimits(), range(1, runs + 1)
    seen = [sweep_beside(engine, traffic.shape, seed, lag_s=lag_s, bounds=bounds, abort=limits) for seed in seeds]
    blind = [sweep_beside(engine, traffic.shape, seed, sees=False, bounds=bounds) for seed in seeds[:ignoring]]
    return Row(
        engine.name,
        traffic.name,
        lag_s,
        truth,
        tuple(sorted(one.found for one in seen)),
        tuple(sorted(one.found for one in blind)),
        sum(one.record.aborted is not None for one in seen),
    )


def exceedance_ratio(engine: Engine, traffic: Traffic, lag_s: float, level: int, requests: int) -> float:
    """Of our samples at one level held for so many requests."""
    bounds = Bounds(max_level=64, duration_s=3600.0, overload_s=3600.0)
    held = sweep_beside(
        engine, traffic.shape, 3, lag_s=lag_s, levels=(level,), requests_per_level=requests, bounds=bounds
    )
    (report,) = held.record.levels
    assert report.n == requests, held.record.reason
    assert abs(report.achieved_concurrency / level - 1.0) < 0.02, report.achieved_concurrency
    return report.exceedances / report.n
